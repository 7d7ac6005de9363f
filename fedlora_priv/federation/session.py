"""An experiment's sessions of secure aggregation: what the server proposes and what a client accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedlora_priv.federation.course import band_senders
from protocols.secagg.parameters import abort_bound_of_losses
from protocols.secagg.session import (
    ClientPolicy,
    CoordinateGroup,
    SessionParameters,
    Thresholds,
    VectorForm,
    recommended,
)

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment

MAX_MODULUS_BITS = 32


def session_parameters(
    experiment: Experiment,
    participants: tuple[str, ...],
    *,
    round: int,
    exchange: int = 0,
    senders: int | None = None,
    session_id: bytes,
    context: bytes,
    vector_length: int,
    modulus_bits: int,
    bound: int,
    groups: tuple[CoordinateGroup, ...] = (),
) -> SessionParameters:
    """Return the proposal of one exchange's session over these participants, on the experiment's graph.

    Fewer participants than it has neighbours all mask with each other.

    The participants of a later exchange are those whose sum the first one gave, and all of them must be in the sum:
    that of others would be no part of the same thing, and told apart from the first it would say who differs. A band
    is another thing, on coordinates of its own, so it may lose some.

    Args:
        senders: of a band: how many clients send it, lost ones included.
        groups: who contributes where; everybody everywhere unless given.
    """
    secure = experiment.secure_aggregation
    quorum, threshold, min_survivors = thresholds(experiment, senders)
    if exchange > 0 and senders is None:
        min_survivors = len(participants)
    return SessionParameters(
        session_id=session_id,
        round=round,
        exchange=exchange,
        roster=participants,
        max_colluders=secure.max_colluders,
        quorum=quorum,
        threshold=threshold,
        min_survivors=min_survivors,
        degree=secure.degree(len(participants)),
        vector_length=vector_length,
        modulus_bits=modulus_bits,
        bound=bound,
        context=context,
        groups=groups,
        min_contributors=min_contributors(experiment) if experiment.allocation.in_parts else min_survivors,
    )


def min_contributors(experiment: Experiment) -> int:
    """Return how many survivors any sum on a part of the model must have, where clients train parts."""
    return experiment.allocation.least_contributors(experiment.secure_aggregation)


def client_policy(
    experiment: Experiment,
    max_vector_length: int,
    *,
    round: int,
    exchange: int = 0,
    senders: int | None = None,
    cohort: frozenset[str] | None = None,
    form: VectorForm | Callable[[tuple[str, ...]], VectorForm] | None = None,
    max_proposal_bytes: int = ClientPolicy.max_proposal_bytes,
) -> ClientPolicy:
    """Return what a client of this experiment accepts for its upload of that exchange, whatever a server proposes.

    Args:
        senders: of a band: how many clients send it.
        cohort: who was summed in the round's first exchange; None in that one itself, and in bands.
        form: that of the client's own upload, by roster where clients train parts: whether it refuses must not depend
            on what is in it.
        max_proposal_bytes: of a proposal with all the groups of that form.

    A client may mask again in a failed round (`allow_remask`): in mode `local`, the only one there is, its
    update is private by itself.
    """
    secure, most = experiment.secure_aggregation, senders or experiment.federation.clients
    quorum, threshold, min_survivors = thresholds(experiment, senders)
    return ClientPolicy(
        max_colluders=secure.max_colluders,
        min_survivors=min_survivors,
        min_quorum=quorum,
        min_contributors=min_contributors(experiment) if experiment.allocation.in_parts else min_survivors,
        min_threshold=threshold,
        min_degree=secure.degree(most),
        max_clients=most,
        max_vector_length=max_vector_length,
        max_modulus_bits=MAX_MODULUS_BITS,
        max_proposal_bytes=max_proposal_bytes,
        exact_roster=cohort,
        exact_round=(round, exchange),
        exact_form=form,
        allow_remask=True,
    )


def thresholds(experiment: Experiment, senders: int | None = None) -> tuple[int, int, int]:
    """Return (quorum, threshold, min_survivors) of the federation's sessions or, given how many send it, of a band's.

    A band's are the smallest safe ones, but for `min_survivors` of the experiment file: whoever asks for so many in a
    sum asks for it in every sum.

    Raises:
        LocalProtocolError: so few senders cannot be protected.
    """
    secure = experiment.secure_aggregation
    if senders is None:
        return secure.thresholds(experiment.federation.clients)
    counts = recommended(senders, secure.max_colluders, secure.degree(senders))
    min_survivors = max(counts.min_survivors, secure.min_survivors or 0)
    return counts.quorum, min(counts.threshold, min_survivors), min_survivors


def masks(experiment: Experiment) -> dict[str, Any]:
    """Return what the experiment says of its sessions, which each client records; without sessions, that alone."""
    secure, n = experiment.secure_aggregation, experiment.federation.clients
    if secure.mode == "insecure":
        return {"mode": secure.mode}
    stated = {"mode": secure.mode, "max_colluders": secure.max_colluders, **_counts(experiment, n)}
    bands = [
        {"exchange": j, **_counts(experiment, len(senders), band=True)}
        for j, senders in enumerate(band_senders(experiment))
        if j
    ]
    return stated | ({"bands": bands} if bands else {})


def _counts(experiment: Experiment, clients: int, *, band: bool = False) -> dict[str, int]:
    """Return the counts of a session that so many clients send, the federation's own or a band's."""
    quorum, threshold, min_survivors = thresholds(experiment, clients if band else None)
    return {
        "clients": clients,
        "quorum": quorum,
        "threshold": threshold,
        "min_survivors": min_survivors,
        "neighbours": experiment.secure_aggregation.degree(clients),
    }


def protection(experiment: Experiment, spare: int | None = None) -> dict[str, Any]:
    """Return what a plan and a report state of the sessions: `masks`, and how many losses a round or a band survives.

    `losses_survived` clients may be lost, whoever they are and wherever on the ring; of more, as far as the counts
    allow them, `abort_bounds` has by their number an upper bound on the probability that the round is lost
    (docs/parameters.md). It ends with the first that says nothing.

    Args:
        spare: of clients that train parts: how many more than it needs the part has that the fewest train. Of as many
            losses and no more the round is sure to survive; of how likely more are to hit that part nothing is said.
    """
    stated = masks(experiment)
    if stated["mode"] == "insecure":
        return stated
    colluders = stated["max_colluders"]
    if "bands" in stated:
        stated["bands"] = [band | _survives(band, colluders) for band in stated["bands"]]
    return stated | _survives(stated, colluders, spare)


def _survives(stated: Mapping[str, Any], colluders: int, spare: int | None = None) -> dict[str, Any]:
    """Return `losses_survived` and `abort_bounds` of sessions with these counts."""
    n, least = stated["clients"], stated["min_survivors"]
    counts = Thresholds(stated["quorum"], stated["threshold"], least, stated["neighbours"])
    survived, bounds = 0, {}
    for losses in range(1, n - least + 1):
        certain = spare is None or losses <= spare
        bound = abort_bound_of_losses(n, colluders, counts, losses) if certain else 1.0
        if bound == 0:
            survived = losses
            continue
        bounds[str(losses)] = bound
        if bound >= 1:
            break
    return {"losses_survived": survived, "abort_bounds": bounds}


def require_sound(experiment: Experiment) -> None:
    """Raise unless the experiment's own clients would accept its sessions, full and at their smallest.

    Raises:
        ProtocolError: they would not; says which rule is broken.
    """
    everybody = experiment.client_ids
    _require_sound(experiment, everybody, 0)
    if experiment.communication.densities:
        for j, senders in enumerate(band_senders(experiment)):
            if j:
                _require_sound(experiment, senders, j)


def _require_sound(experiment: Experiment, senders: tuple[str, ...], exchange: int) -> None:
    """Raise unless the sessions of one exchange known from the start are sound, full and at their smallest."""
    band = len(senders) if exchange else None
    _, _, min_survivors = thresholds(experiment, band)
    for n in {len(senders), min_survivors}:
        parameters = session_parameters(
            experiment,
            senders[:n],
            round=1,
            exchange=exchange,
            senders=band,
            session_id=bytes(32),
            context=bytes(32),
            vector_length=1,
            modulus_bits=MAX_MODULUS_BITS,
            bound=1,
        )
        client_policy(experiment, 1, round=1, exchange=exchange, senders=band).check(parameters)
