"""One round, as the server conducts it: who trains, the sum of their uploads, who was lost and when."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from accounting.anchor import Anchor
from accounting.errors import LedgerError
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Engine, Step
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.allocating import pruning
from fedlora_priv.federation.exchange import Exchange, ExchangeSum, Summed
from fedlora_priv.federation.own_rank import FADED
from fedlora_priv.federation.round_record import ExchangeRecord, RoundRecord
from fedlora_priv.federation.session import min_contributors, session_parameters, thresholds
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.methods.errors import SumError
from fedlora_priv.methods.layout import State
from protocols.errors import ProtocolError, RemoteProtocolError, SessionAborted
from protocols.packing import unpack
from protocols.secagg.identity import Roster
from protocols.secagg.interface import PHASES
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import SessionParameters

_NAME = re.compile(r"[A-Za-z]{1,40}")

BUDGET_CODE = "BudgetExceeded"
"""The code with which a client refuses a round that its remaining budget does not cover."""


@dataclass(frozen=True)
class RoundResult:
    """The record of a round and the sums of its exchanges, or None if it was lost; who signed what of its ledger."""

    record: RoundRecord
    summed: Summed | None = None
    anchors: Mapping[str, Anchor] = field(default_factory=dict)


Announce = Callable[[Summed], Exchange | None]
"""The round's next exchange, given the sums so far; None if they are enough."""


class _NoSumError(Exception):
    """An exchange gave no sum; says why."""


@dataclass
class _Running:
    """A round in progress.

    Args:
        participants: who is asked next: everybody, then those in the first exchange's sum.
        anchors: the last one of each client, as signed.
    """

    task: RoundTask
    record: RoundRecord
    participants: tuple[str, ...] = ()
    anchors: dict[str, Anchor] = field(default_factory=dict)


class RoundConductor:
    """Conducts rounds of one experiment over an engine; keeps nothing between them.

    Args:
        begun: the global state before the first round, which every client has.
    """

    def __init__(
        self, experiment: Experiment, begun: State, roster: Roster, run: bytes, engine: Engine
    ) -> None:
        self._experiment = experiment
        self._begun = begun
        self._roster = roster
        self._run = run
        self._engine = engine

    def conduct(self, task: RoundTask, announce: Announce) -> RoundResult:
        """Return the sums over the survivors of the task's round, exchange after exchange.

        All exchanges have the same survivors but bands, of which each has its own. If one that follows from sums is
        lost, so is the round, unless it is optional; a lost band costs only its coordinates.
        """
        running = _Running(task, RoundRecord(task.round, findings=task.findings), self._engine.client_ids)
        summed: Summed | None = None
        try:
            summed = self._exchanges(running, announce)
        except (_NoSumError, SumError) as error:
            running.record.aborted = str(error)
        return RoundResult(running.record, summed, running.anchors)

    def _exchanges(self, running: _Running, announce: Announce) -> Summed:
        """Return the sums of all exchanges of a round; of those before an optional one, if that is lost.

        Raises:
            _NoSumError, SumError: the round is lost.
        """
        task = running.task
        total, running.participants = self._sum(running, task.first, running.participants)
        running.record.survivors = running.participants
        summed = Summed((ExchangeSum(task.first, total, len(running.participants)),))
        for band in task.bands:
            with contextlib.suppress(_NoSumError):  # its coordinates stay as they are
                total, survivors = self._sum(running, band, self._senders(running, band))
                summed = summed.with_part(band, total, len(survivors))
        while (exchange := announce(summed)) is not None:
            try:
                total, _ = self._sum(running, exchange, running.participants)
            except _NoSumError:
                if exchange.optional:
                    return summed
                raise
            summed = summed.with_part(exchange, total, summed.n)
        return summed

    def _senders(self, running: _Running, band: Exchange) -> tuple[str, ...]:
        """Return who can still send a band: who sends it, is in the first sum, and was not lost since."""
        gone = {client_id for client_id, _ in (*running.record.lost, *running.record.refused)}
        return tuple(c for c in running.participants if c in (band.leg.senders or ()) and c not in gone)

    def _ask(
        self, running: _Running, messages: Mapping[str, bytes], kind: str, step: Step
    ) -> dict[str, wire.Message]:
        """Return the good answers; whoever is silent or answers anything else is lost, or has refused."""
        answers, record = self._engine.exchange(messages, step), running.record
        good = {}
        for client_id in messages:
            answer = _decoded(answers.get(client_id))
            if answer is not None and answer.kind == kind:
                good[client_id] = answer
            elif answer is not None and answer.kind == wire.REFUSED:
                record.refused.append((client_id, _code(answer)))
            else:
                record.lose(client_id, step.name)
        return good

    def _sum(
        self, running: _Running, exchange: Exchange, asked: tuple[str, ...]
    ) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
        """Return the modular sum of one exchange over those who are `asked`, and who is in it.

        Raises:
            _NoSumError: too few clients for it.
        """
        insecure = self._experiment.secure_aggregation.mode == "insecure"
        total, survivors = (self._plain_sum if insecure else self._secure_sum)(running, exchange, asked)
        running.record.exchanges[-1].survivors = survivors
        return total, survivors

    def _begin(
        self,
        running: _Running,
        exchange: Exchange,
        asked: tuple[str, ...],
        proposals: Mapping[str, bytes] | None = None,
    ) -> tuple[Step, dict[str, wire.Message]]:
        """Tell clients that an exchange begins, for the first of which they train; return who is ready, in order.

        Args:
            proposals: of a session, one for each of them, which they answer by the way.

        Raises:
            _NoSumError: one of the first sum is gone, without whom there is no later one but of bands.
        """
        task = running.task
        kind, phase = (wire.READY, "announce") if exchange.number else (wire.TRAINED, "train")
        message = exchange.to_message() if exchange.number else task.to_message(self._begun)
        step = Step(task.round, phase, exchange.number, exchange.leg.carries, proposes=proposals is not None)
        told: Mapping[str, bytes]
        if proposals is None:
            told = dict.fromkeys(asked, wire.encode(message))
        else:  # all are proposed the same, so that a large state is encoded once
            same = {p: wire.encode(message.with_blob(wire.PROPOSAL, p)) for p in set(proposals.values())}
            told = {client_id: same[proposals[client_id]] for client_id in asked}
        ready = self._ask(running, told, kind, step)
        if not exchange.number:
            self._hear(running.record, ready, step)
        if exchange.answers and len(ready) < len(asked):
            raise _NoSumError(
                f"exchange {exchange.number} needs all {len(asked)} clients of the first one, and "
                f"{len(ready)} were ready"
            )
        return step, ready

    def _hear(self, record: RoundRecord, ready: dict[str, wire.Message], step: Step) -> None:
        """Note whose tail has faded, where clients announce it; whoever announces nothing, or nonsense, is lost."""
        if pruning(self._experiment) is None:
            return
        announced = {client_id: answer.fields.get(FADED) for client_id, answer in ready.items()}
        record.faded = tuple(client_id for client_id, bit in announced.items() if bit)
        for client_id, bit in announced.items():
            if type(bit) is not int or bit not in (0, 1):
                del ready[client_id]
                record.lose(client_id, step.name)

    def _secure_sum(
        self, running: _Running, exchange: Exchange, asked: tuple[str, ...]
    ) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
        """Run one session of secure aggregation; return the sum and its survivors."""
        try:
            parameters, server = self._open(running, exchange, asked)
            entry = ExchangeRecord(
                parameters.session_id.hex(), announced=exchange.recorded, number=exchange.number
            )
            running.record.exchanges.append(entry)
            outgoing = server.advance()
            for phase in PHASES[1:]:
                step = Step(running.task.round, phase, exchange.number, exchange.leg.carries)
                self._phase(running, server, outgoing, step)
                outgoing = server.advance()
            result = server.result()
        except SessionAborted as error:
            where = Step(running.task.round, error.phase, exchange.number).name
            raise _NoSumError(f"secure aggregation ended in {where}: {error.reason}") from error
        entry.transcript = result.transcript.hex()
        running.anchors |= _anchors(result.attachments, self._roster)
        return result.sum, result.survivors

    def _open(
        self, running: _Running, exchange: Exchange, asked: tuple[str, ...]
    ) -> tuple[SessionParameters, SecAggServer]:
        """Begin an exchange with the proposal of its session; return it with all advertisements that came.

        Where everybody masks with everybody, whoever has not answered is one of the losses that the session allows.
        On a ring each would be a neighbour that others lack, and losses in training are the likeliest: those who are
        there are then proposed a ring of their own.
        """
        parameters = self._parameters(running, exchange, asked)
        server = SecAggServer(parameters=parameters, roster=self._roster)
        step, ready = self._begin(running, exchange, asked, server.start())
        there = tuple(ready)
        if len(there) < len(asked) and parameters.degree < parameters.n - 1:
            parameters = self._parameters(running, exchange, there)
            server = SecAggServer(parameters=parameters, roster=self._roster)
            step = Step(running.task.round, "advertise", exchange.number, exchange.leg.carries)
            self._phase(running, server, server.start(), step)
        else:
            self._require_enough(exchange, there)
            bodies = {c: answer.blobs.get(wire.ADVERTISEMENT, b"") for c, answer in ready.items()}
            self._receive(running, server, bodies, step)
        return parameters, server

    def _phase(
        self, running: _Running, server: SecAggServer, outgoing: Mapping[str, bytes], step: Step
    ) -> None:
        """Deliver one phase's messages and hand the answers to the protocol."""
        messages = {
            client_id: wire.encode(wire.Message(wire.PHASE, {"phase": step.phase}, {"body": body}))
            for client_id, body in outgoing.items()
        }
        answers = self._ask(running, messages, wire.PHASE, step)
        bodies = {client_id: answer.blobs.get("body", b"") for client_id, answer in answers.items()}
        self._receive(running, server, bodies, step)

    def _receive(
        self, running: _Running, server: SecAggServer, bodies: Mapping[str, bytes], step: Step
    ) -> None:
        """Hand answers to the protocol; whoever's is bad is lost, and what else it has said with it."""
        for client_id, body in bodies.items():
            try:
                server.receive(client_id, body)
            except RemoteProtocolError as error:
                running.record.lose(error.client_id, step.name)

    def _require_enough(self, exchange: Exchange, asked: tuple[str, ...]) -> None:
        """Raise SessionAborted if there are fewer clients than a sum may have, or a part of it."""
        band = exchange.leg.senders
        _, _, least = thresholds(self._experiment, None if band is None else len(band))
        lost = tuple(sorted(set(self._engine.client_ids if band is None else band) - set(asked)))
        if len(asked) < least:
            raise SessionAborted("train", lost, f"{len(asked)} clients take part, a sum needs {least}")
        groups = exchange.channel.form_on(asked).groups
        fewest = min((len(group.contributors) for group in groups), default=len(asked))
        if groups and fewest < (needed := min_contributors(self._experiment)):
            raise SessionAborted("train", lost, f"{fewest} clients train a layer, its sum needs {needed}")

    def _parameters(self, running: _Running, exchange: Exchange, asked: tuple[str, ...]) -> SessionParameters:
        """Return the proposal of an exchange's session.

        Raises:
            SessionAborted: fewer clients than a sum may have, or a part of it.
        """
        task, form, band = running.task, exchange.channel.form_on(asked), exchange.leg.senders
        senders = None if band is None else len(band)
        self._require_enough(exchange, asked)
        return session_parameters(
            self._experiment,
            asked,
            round=task.round,
            exchange=exchange.number,
            senders=senders,
            session_id=secrets.token_bytes(32),
            context=task.context(bytes.fromhex(self._experiment.digest()), self._run, exchange),
            vector_length=form.vector_length,
            modulus_bits=form.modulus_bits,
            bound=form.bound,
            groups=form.groups,
        )

    def _plain_sum(
        self, running: _Running, exchange: Exchange, asked: tuple[str, ...]
    ) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
        """Add the unmasked uploads: the `insecure` path, for baselines and for tests of the masked one."""
        _, ready = self._begin(running, exchange, asked)
        request = wire.encode(wire.Message(wire.UPLOAD))
        step = Step(running.task.round, "upload", exchange.number)
        answers = self._ask(running, dict.fromkeys(ready, request), wire.UPLOAD, step)
        form = exchange.channel.form
        total = np.zeros(form.vector_length, dtype=np.uint32)
        survivors = []
        for client_id, answer in answers.items():
            try:
                total += unpack(answer.blobs.get("body", b""), form.modulus_bits, form.vector_length)
                survivors.append(client_id)
            except ProtocolError:
                running.record.lose(client_id, step.name)
        total &= np.uint32((1 << form.modulus_bits) - 1)
        if not survivors:
            raise _NoSumError("no client sent an upload")
        if exchange.answers and len(survivors) < len(asked):
            raise _NoSumError(f"exchange {exchange.number} lost a client of the first one")
        running.record.exchanges.append(ExchangeRecord(announced=exchange.recorded, number=exchange.number))
        return total, tuple(survivors)


def _code(refusal: wire.Message) -> str:
    """Return the name that a refusal gives; whatever else it says is not kept: it may be anybody's text."""
    code = refusal.fields.get("code")
    return code if isinstance(code, str) and _NAME.fullmatch(code) else "unnamed"


def _decoded(data: bytes | None) -> wire.Message | None:
    """Return the message of an answer; None where there is no answer, or nobody can read it."""
    with contextlib.suppress(FederationError):
        return None if data is None else wire.decode(data)
    return None


def _anchors(attachments: Mapping[str, bytes], roster: Roster) -> dict[str, Anchor]:
    """Return the ledger anchors that came with confirmations; an attachment that is none is left out."""
    anchors = {}
    for client_id, attachment in attachments.items():
        with contextlib.suppress(LedgerError):
            anchor = Anchor.from_bytes(attachment)
            anchor.verify(roster[client_id])
            if anchor.client_id == client_id:
                anchors[client_id] = anchor
    return anchors
