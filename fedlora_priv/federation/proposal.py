"""From a budget of bytes to lines of the experiment file: ``fedlora plan --upload-budget``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fedlora_priv.communication.budget import Proposed, propose
from fedlora_priv.communication.choices import SupportKind
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.meter import Summed, most_uploaded, wire_bytes
from fedlora_priv.config import Experiment
from fedlora_priv.federation import wire
from fedlora_priv.federation.course import vote_rules, votes, whole_rounds
from fedlora_priv.federation.foretold import anchor_bytes
from fedlora_priv.federation.learner import Say
from fedlora_priv.federation.session import protection, session_parameters
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.methods import phases
from fedlora_priv.methods.base import Contract
from protocols.secagg.session import SessionParameters
from protocols.voting import BALLOT_BOUND

LONGEST_LEDGER = 99_999_999
"""More rows than a ledger of a whole run has; an anchor says in decimal how many there are."""
BEGUN = wire.Message(wire.TRAIN), wire.Message(wire.TRAINED)
"""How a round begins, as far as it matters to what goes up."""


def proposed(experiment: Experiment, budget: int, say: Say = lambda line: None) -> dict[str, Any]:
    """Return the density and bits with which no client uploads more than `budget` bytes in a round, as JSON values.

    `fewer_neighbours` has the same for the thinnest ring that still survives a loss, where more arrives like that.
    `whole_rounds` at the beginning send `whole` bytes instead, to rank coordinates by.

    Raises:
        CommunicationError: nothing fits, or nothing is proposed for such an experiment.
    """
    parts = assemble(experiment, say)
    contracts = _contracts(parts)
    thinner = _thinner(experiment)
    other = None if thinner is None else _try(parts, thinner, contracts, budget)
    try:
        best = _propose(parts, experiment, contracts, budget)
    except CommunicationError:
        if other is None or thinner is None:
            raise
        raise CommunicationError(
            f"{budget} bytes a round are too few for the keys and shares of "
            f"{experiment.secure_aggregation.degree(experiment.federation.clients)} neighbours",
            f"set secure_aggregation.neighbours = {thinner.secure_aggregation.neighbours}: then {other.coordinates:,} "
            f"coordinates at {other.value_bits} bits fit",
        ) from None
    helps = other is not None and thinner is not None and other.kept > best.kept
    chosen = experiment.communication.model_copy(update={"support": _support(experiment, best)})
    return {
        "budget": budget,
        **asdict(best),
        "dimension": max(contract.dimension for contract in contracts),
        "lines": lines(experiment, best),
        "whole_rounds": whole_rounds(experiment.model_copy(update={"communication": chosen})),
        "fewer_neighbours": {
            "neighbours": thinner.secure_aggregation.neighbours,
            **asdict(other),
            "losses_survived": protection(thinner)["losses_survived"],
        }
        if helps and thinner is not None and other is not None
        else None,
    }


def _support(experiment: Experiment, best: Proposed) -> SupportKind:
    """Return the file's support, unless it does not go with the density."""
    support = experiment.communication.support
    if best.density == 1.0 and support != "voted-topk":
        return "dense"
    return "server-topk" if support == "dense" else support


def lines(experiment: Experiment, best: Proposed) -> list[str]:
    """Return what to put into the experiment file."""
    return [
        "[communication]",
        f'support = "{_support(experiment, best)}"',
        f"density = {best.density!r}",
        f"value_bits = {best.value_bits}",
    ]


def _contracts(parts: Parts) -> list[Contract]:
    """Return the contracts of the run's rounds.

    Raises:
        CommunicationError: nothing is proposed for such an experiment.
    """
    experiment = parts.experiment
    contracts = [
        phase.contract(parts.layout) for phase, _ in phases(parts.method, experiment.federation.rounds)
    ]
    if experiment.secure_aggregation.mode == "insecure":
        raise CommunicationError("a budget is for masked uploads", "set secure_aggregation.mode = 'secure'")
    if experiment.communication.densities:
        raise CommunicationError(
            "a budget gives one density, and communication.densities has one for each client", "leave it out"
        )
    if max(contract.exchanges for contract in contracts) > 1:
        raise CommunicationError(
            f"{parts.method.name!r} may sum more than once in a round, and a budget is for one sum",
            "choose a method of one exchange ('fedlora methods' lists them); 'fedlora plan' shows what others take",
        )
    return contracts


def _propose(parts: Parts, experiment: Experiment, contracts: list[Contract], budget: int) -> Proposed:
    """Return the best that fits, in rounds of the largest contract."""
    largest = max(contracts, key=lambda contract: contract.dimension)
    attached = max(anchor_bytes(c, parts.dataset_id, LONGEST_LEDGER) for c in experiment.client_ids)
    return propose(
        budget,
        _session(experiment, 1, 32, 1),
        largest.dimension,
        travels_whole=any(contract.travels_whole for contract in contracts),
        attachment_bytes=attached,
        other_bytes=_vote(experiment, largest, attached),
        begun_by=(wire.Message(wire.EXCHANGE), wire.Message(wire.READY)) if votes(experiment, 1) else BEGUN,
    )


def _vote(experiment: Experiment, contract: Contract, attached: int) -> int:
    """Return what a round's vote takes."""
    if not votes(experiment, 1):
        return 0
    rules = vote_rules(experiment, contract, 1)
    session = _session(experiment, contract.dimension, rules.modulus_bits, BALLOT_BOUND)
    return most_uploaded(wire_bytes([Summed(session, "votes", attachment_bytes=attached, begun_by=BEGUN)]))


def _session(experiment: Experiment, length: int, bits: int, bound: int) -> SessionParameters:
    """Return a session of everybody."""
    return session_parameters(
        experiment,
        experiment.client_ids,
        round=1,
        session_id=bytes(32),
        context=bytes(32),
        vector_length=length,
        modulus_bits=bits,
        bound=bound,
    )


def _thinner(experiment: Experiment) -> Experiment | None:
    """Return the experiment on the ring of fewest neighbours that survives a loss; None if it is on none thicker."""
    secure, n = experiment.secure_aggregation, experiment.federation.clients
    for neighbours in range(2, secure.degree(n), 2):
        ring = secure.model_copy(update={"neighbours": neighbours, "threshold": None})
        if neighbours > secure.max_colluders:
            thinner = experiment.model_copy(update={"secure_aggregation": ring})
            if protection(thinner)["losses_survived"] > 0:
                return thinner
    return None


def _try(parts: Parts, experiment: Experiment, contracts: list[Contract], budget: int) -> Proposed | None:
    """Return the best that fits, or None."""
    try:
        return _propose(parts, experiment, contracts, budget)
    except CommunicationError:
        return None
