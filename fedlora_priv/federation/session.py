"""An experiment's sessions of secure aggregation: what the server proposes and what a client accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.secagg.session import ClientPolicy, SessionParameters, VectorForm

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment

MAX_MODULUS_BITS = 32


def session_parameters(
    experiment: Experiment,
    participants: tuple[str, ...],
    *,
    round: int,
    exchange: int = 0,
    session_id: bytes,
    context: bytes,
    vector_length: int,
    modulus_bits: int,
    bound: int,
) -> SessionParameters:
    """Return the proposal of one exchange's session over these participants, on a complete graph.

    The participants of a later exchange are those whose sum the first one gave, and all of them must be in the sum:
    that of others would be no part of the same thing, and told apart from the first it would say who differs.
    """
    secure = experiment.secure_aggregation
    quorum, threshold, min_survivors = secure.thresholds(experiment.federation.clients)
    if exchange > 0:
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
        degree=len(participants) - 1,
        vector_length=vector_length,
        modulus_bits=modulus_bits,
        bound=bound,
        context=context,
    )


def client_policy(
    experiment: Experiment,
    max_vector_length: int,
    *,
    round: int,
    exchange: int = 0,
    cohort: frozenset[str] | None = None,
    form: VectorForm | None = None,
) -> ClientPolicy:
    """Return what a client of this experiment accepts for its upload of that exchange, whatever a server proposes.

    Args:
        cohort: who was summed in the round's first exchange; None in that one itself.
        form: that of the client's own upload: whether it refuses must not depend on what is in it.

    A client may mask again in a failed round (`allow_remask`): in mode `local`, the only one there is, its
    update is private by itself.
    """
    secure, clients = experiment.secure_aggregation, experiment.federation.clients
    quorum, _, min_survivors = secure.thresholds(clients)
    return ClientPolicy(
        max_colluders=secure.max_colluders,
        min_survivors=min_survivors,
        min_quorum=quorum,
        min_contributors=min_survivors,
        max_clients=clients,
        max_vector_length=max_vector_length,
        max_modulus_bits=MAX_MODULUS_BITS,
        exact_roster=cohort,
        exact_round=(round, exchange),
        exact_form=form,
        allow_remask=True,
    )


def require_sound(experiment: Experiment) -> None:
    """Raise unless the experiment's own clients would accept its sessions, full and at their smallest.

    Raises:
        PolicyViolation: they would not; says which rule is broken.
    """
    _, _, min_survivors = experiment.secure_aggregation.thresholds(experiment.federation.clients)
    for n in {experiment.federation.clients, min_survivors}:
        parameters = session_parameters(
            experiment,
            experiment.client_ids[:n],
            round=1,
            session_id=bytes(32),
            context=bytes(32),
            vector_length=1,
            modulus_bits=MAX_MODULUS_BITS,
            bound=1,
        )
        client_policy(experiment, 1, round=1).check(parameters)
