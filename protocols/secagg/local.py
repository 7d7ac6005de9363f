"""A whole session in one process, with clients that vanish on demand: for simulations, tests and first steps.

Example:
    >>> import numpy as np
    >>> from protocols.secagg.client import SecAggClient
    >>> from protocols.secagg.guard import MemoryGuard
    >>> from protocols.secagg.identity import Identity, Roster
    >>> from protocols.secagg.server import SecAggServer
    >>> from protocols.secagg.session import ClientPolicy, SessionParameters, recommended
    >>> names, context = ("ada", "bob", "eve"), bytes(32)
    >>> identities = {name: Identity.generate() for name in names}
    >>> roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    >>> counts = recommended(3, max_colluders=0)
    >>> parameters = SessionParameters(
    ...     session_id=bytes(32), round=0, exchange=0, roster=names, max_colluders=0, quorum=counts.quorum,
    ...     threshold=counts.threshold, min_survivors=counts.min_survivors, degree=counts.degree,
    ...     vector_length=2, modulus_bits=8, bound=9, context=context)
    >>> policy = ClientPolicy(
    ...     max_colluders=0, min_survivors=2, min_quorum=2, min_contributors=2,
    ...     exact_round=(0, 0), exact_form=parameters.form)
    >>> clients = {
    ...     name: SecAggClient(client_id=name, identity=identities[name], roster=roster, policy=policy,
    ...                        guard=MemoryGuard(), context=context)
    ...     for name in names}
    >>> server = SecAggServer(parameters=parameters, roster=roster)
    >>> vectors = {name: np.array([1, 2], dtype=np.uint32) for name in names}
    >>> result = run_session(clients, server, vectors, {"eve": "mask"})
    >>> result.sum.tolist(), result.survivors, dict(result.lost)
    ([2, 4], ('ada', 'bob'), {'eve': 'mask'})
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocols.errors import GuardViolation, LocalProtocolError, PolicyViolation, RemoteProtocolError
from protocols.secagg.interface import PHASES, AggregationClient, AggregationServer, Phase, SecAggResult

Direction = Literal["up", "down"]


@dataclass
class SessionLog:
    """What happened in a session, also if it aborted.

    `traffic` counts bytes by (client_id, direction, phase): "up" is the client's message of that phase,
    "down" the server's that asks for it. `refused` says why a client left by its own decision,
    `rejected` why the server lost one because of what it sent.
    """

    traffic: Counter[tuple[str, Direction, Phase]] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)

    def bytes_by_client(self, direction: Direction) -> dict[str, int]:
        """Return each client's bytes in that direction over all phases."""
        totals: Counter[str] = Counter()
        for (client_id, way, _), size in self.traffic.items():
            totals[client_id] += size if way == direction else 0
        return dict(totals)


def run_session(
    clients: Mapping[str, AggregationClient],
    server: AggregationServer,
    vectors: Mapping[str, NDArray[np.uint32]],
    dropouts: Mapping[str, Phase] | None = None,
    *,
    attachments: Mapping[str, bytes] | None = None,
    log: SessionLog | None = None,
) -> SecAggResult:
    """Return the sum over the clients that survive.

    Args:
        clients, vectors: by client_id; ring elements, uint32 of shape (vector_length,).
        dropouts: clients that are lost before they send the message of that phase.
        attachments: what clients attach to their confirmation.
        log: is filled as the session goes, if given.

    Raises:
        SessionAborted: too few clients survived.
        LocalProtocolError: a dropout names no phase or no client, or a client was given a wrong vector.
    """
    dropouts, attachments = dropouts or {}, attachments or {}
    log = SessionLog() if log is None else log
    if unknown := set(dropouts) - set(clients) or set(dropouts.values()) - set(PHASES):
        raise LocalProtocolError(f"no such client or phase to drop: {', '.join(sorted(unknown))}")
    gone: set[str] = set()
    inbox = server.start()
    for phase in PHASES:
        gone |= {client_id for client_id, when in dropouts.items() if when == phase}
        for client_id in [name for name in inbox if name in clients and name not in gone]:
            message = inbox[client_id]
            log.traffic[client_id, "down", phase] += len(message)
            try:
                answer = _answer(
                    clients[client_id], phase, message, vectors[client_id], attachments.get(client_id, b"")
                )
            except (RemoteProtocolError, PolicyViolation, GuardViolation) as error:
                log.refused[client_id] = str(error)
                continue
            log.traffic[client_id, "up", phase] += len(answer)
            try:
                server.receive(client_id, answer)
            except RemoteProtocolError as error:
                log.rejected[client_id] = error.reason
        inbox = server.advance()
    return server.result()


def _answer(
    client: AggregationClient, phase: Phase, message: bytes, vector: NDArray[np.uint32], attachment: bytes
) -> bytes:
    """Return a client's message of that phase."""
    match phase:
        case "advertise":
            return client.advertise(message)
        case "share":
            return client.share(message)
        case "mask":
            return client.mask(message, vector)
        case "confirm":
            return client.confirm(message, attachment)
        case "reveal":
            return client.reveal(message)
