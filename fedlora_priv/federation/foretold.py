"""The bytes of a run before it, round by round and kind by kind: the server's own code over made-up clients' sums.

Nothing is trained, masked or spent. Made-up clients move what is trained by steps of the planned size, and each round's
messages and sessions are those that the server would make of their sums; `communication.meter` says what they take.
Nobody is lost, so a real round of everybody takes as much: to the byte, but for four things that depend on the data:
which coordinates have moved already (what travels down of a sparse update), whether a method asks for an exchange that
it can do without, the digits of what is measured of clients' own models, and what is found on the way: which layers are
whose once they have been scored again (lists of clients by layer are in proposals), which ranks clients have pruned. On
a ring, who is beside whom moves some bytes from client to client: a table is of one draw, and beside it stands what no
draw exceeds for any client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from accounting.anchor import Anchor
from fedlora_priv.communication import meter
from fedlora_priv.communication.meter import Table, Told, wire_bytes
from fedlora_priv.federation import personal, wire
from fedlora_priv.federation.allocating import pruning
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.exchange import Exchange, Summed
from fedlora_priv.federation.own_rank import FADED
from fedlora_priv.federation.rehearsal import CROWD, made_up, planned_step
from fedlora_priv.federation.server import FederationServer, ServerState
from fedlora_priv.federation.session import session_parameters
from fedlora_priv.federation.setup import Parts
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.federation.trained import least_trained
from fedlora_priv.federation.vectors import flatten
from fedlora_priv.methods import server_optimizer_for
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.layout import State
from protocols.packing import packed_size
from protocols.prg import SecretStream
from protocols.private import PrivateAtClient
from protocols.secagg.session import SessionParameters


@dataclass(frozen=True)
class Foretold:
    """A round's bytes.

    Args:
        drawn: in some order of the ring; their sum over clients is the same in all.
        longest: of each client, not less than in any order. The same on a complete graph.
    """

    drawn: Table = field(default_factory=Counter)
    longest: Table = field(default_factory=Counter)

    def add(self, step: Told | meter.Summed) -> None:
        """Add the bytes of a step."""
        self.drawn.update(wire_bytes([step]))
        self.longest.update(
            wire_bytes([replace(step, longest=True) if isinstance(step, meter.Summed) else step])
        )


def foretold(parts: Parts) -> list[Foretold]:
    """Return the bytes of each round of a run in which nobody is lost, in clients' homes that no run has used.

    Raises:
        SumError: what clients would send makes no global state; the run could not either.
    """
    acted = _Acted(parts)
    return [acted.round() for _ in range(parts.experiment.federation.rounds)]


def first_session(parts: Parts, exchange: Exchange, round: int = 1) -> SessionParameters:
    """Return the session of an exchange in which everybody who sends it takes part."""
    asked = exchange.leg.senders or parts.experiment.client_ids
    form = exchange.channel.form_on(asked)
    return session_parameters(
        parts.experiment,
        asked,
        round=round,
        exchange=exchange.number,
        senders=None if exchange.leg.senders is None else len(asked),
        session_id=bytes(32),
        context=bytes(32),
        vector_length=form.vector_length,
        modulus_bits=form.modulus_bits,
        bound=form.bound,
        groups=form.groups,
    )


def anchor_bytes(client_id: str, dataset_id: str, rows: int) -> int:
    """Return the length of a client's signed anchor of a ledger with so many rows."""
    return len(Anchor(client_id, dataset_id, "0" * 64, rows, "0" * 64, "0" * 128).to_bytes())


@dataclass
class _Acted:
    """A run of made-up clients, as far as it has got.

    Args:
        ledgers: by client, how many rows its ledger has: an anchor says it in decimal.
    """

    parts: Parts
    ledgers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        parts = self.parts
        self._noise = max(plan.noise_multiplier for plan in parts.plans.values())
        optimizer = server_optimizer_for(parts.experiment)
        self._server = FederationServer(
            parts.experiment, parts.layout, parts.method, parts.initial, self._noise, optimizer
        )
        self._rescoring = parts.rescoring()
        if self._rescoring is not None:  # later scores are as long as the first, whatever they are
            scores = parts.first_findings.scores or parts.experiment.allocation.scores
            self._rescoring = replace(self._rescoring, measure=lambda state: scores)
        self._begun = self._state = self._found(self._server.begin())
        self._insecure = parts.experiment.secure_aggregation.mode == "insecure"
        self.ledgers.update(dict.fromkeys(parts.experiment.client_ids, 1))

    def round(self) -> Foretold:
        """Act the next round out; return its bytes."""
        task, everybody = self._server.task(self._state), self.parts.experiment.client_ids
        self.ledgers.update(dict.fromkeys(everybody, 2))  # reserved, committed
        told = Foretold()
        crowd = self._crowd(task)
        summed = Summed(())
        for exchange in task.known:
            summed = self._sum(summed, task, exchange, crowd, told)
        while (answer := self._server.announce(self._state, task, summed)) is not None:
            summed = self._sum(summed, task, answer, crowd, told)
        self._state = self._found(self._server.advance(self._state, task, summed))
        for question in self._measured(self._state):
            told.add(question)
        return told

    def _found(self, state: ServerState) -> ServerState:
        """Return the state with what is found of it, as if nothing else were found than before the first round."""
        return state if self._rescoring is None else self._rescoring.before(state)

    def _crowd(self, task: RoundTask) -> list[Mapping[str, NDArray[np.float32]]]:
        """Return what made-up clients have trained in a round; as many as there are where ranks of sums matter."""
        parts, method = self.parts, self.parts.method.at(task.round)
        contract, seed = method.contract(parts.layout), parts.experiment.experiment.seed
        start = method.start(parts.layout, task.state, Shared(seed, task.round, rehearsal=True))
        d = least_trained(parts.experiment, parts.layout, method, task.round, task.findings)
        spread = planned_step(parts.experiment, d, self._noise)
        clients = parts.experiment.federation.clients
        count = clients if contract.changes_base else min(CROWD, clients)
        first = CROWD * task.round
        return [made_up(parts.layout, contract, start, spread, seed, first + k) for k in range(count)]

    def _sum(
        self,
        before: Summed,
        task: RoundTask,
        exchange: Exchange,
        crowd: list[Mapping[str, NDArray[np.float32]]],
        told: Foretold,
    ) -> Summed:
        """Add an exchange's bytes to a round's; return the sums with that of the crowd."""
        senders = exchange.leg.senders or self.parts.experiment.client_ids
        for step in self._upload(task, exchange, senders):
            told.add(step)
        total = sum(self._sent(task, exchange, trained, k) for k, trained in enumerate(crowd))
        ring_sum = np.asarray(total, np.uint32) & np.uint32((1 << exchange.channel.form.modulus_bits) - 1)
        return before.with_part(exchange, ring_sum, len(crowd))

    def _upload(
        self, task: RoundTask, exchange: Exchange, senders: tuple[str, ...]
    ) -> list[Told | meter.Summed]:
        """Return how an exchange begins and its uploads travel: in a session, or without masks."""
        request = exchange.to_message() if exchange.number else task.to_message(self._begun.state)
        ready = wire.Message(wire.READY) if exchange.number else wire.Message(wire.TRAINED, self._announced())
        form, rows = exchange.channel.form, 1 if self._insecure else 2
        self.ledgers.update(dict.fromkeys(senders, rows))
        if self._insecure:
            body = bytes(packed_size(form.vector_length, form.modulus_bits))
            answer = wire.Message(wire.UPLOAD, {}, {"body": body})
            told = (request, ready), (wire.Message(wire.UPLOAD), answer)
            return [Told(*both, senders, set(senders)) for both in told]
        parameters = first_session(self.parts, exchange, task.round)
        attached = {c: anchor_bytes(c, self.parts.dataset_id, self.ledgers[c]) for c in senders}
        carries, begun_by = exchange.leg.carries, (request, ready)
        return [meter.Summed(parameters, carries, attachment_bytes=attached, begun_by=begun_by)]

    def _announced(self) -> dict[str, int]:
        """Return what every client announces when it has trained: that its tail has not faded, where it says."""
        return {} if pruning(self.parts.experiment) is None else {FADED: 0}

    def _sent(
        self, task: RoundTask, exchange: Exchange, trained: Mapping[str, NDArray[np.float32]], client: int
    ) -> NDArray[np.uint32]:
        """Return what one of the crowd sends in an exchange, as ring elements."""
        parts, leg = self.parts, exchange.leg
        method, seed = parts.method.at(task.round), parts.experiment.experiment.seed
        shared = Shared(seed, task.round, leg.upload, exchange.announced)
        upload: State = method.upload(parts.layout, task.state, trained, shared)
        values = flatten(method.contract(parts.layout).exchange(leg.upload), upload)
        if isinstance(exchange.channel, BallotChannel):
            return exchange.channel.votes(PrivateAtClient(values, "nobody's: it is made up"))
        return exchange.channel.encode(values, SecretStream(bytes([client % 256]) * 32))

    def _measured(self, state: ServerState) -> list[Told]:
        """Return what asks how good clients' own models are, where they have any that may be measured."""
        parts, federation = self.parts, self.parts.experiment.federation
        due = state.round % federation.evaluate_every == 0 or state.round == federation.rounds
        if not due or not parts.home_roles or parts.evaluation is None:
            return []
        everybody = parts.experiment.client_ids
        question = personal.question(parts.layout, parts.home_roles, state.state, state.round, keep=False)
        answer = wire.Message(wire.PERSONAL, {"quality": 0.5})
        return [Told(question, answer, everybody, set(everybody))]
