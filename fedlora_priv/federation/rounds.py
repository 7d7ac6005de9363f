"""One round, as the server conducts it: who trains, the sum of their uploads, who was lost and when."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.anchor import Anchor
from accounting.errors import LedgerError
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Engine, Step
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.session import session_parameters
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.methods.base import Layout
from protocols.errors import ProtocolError, RemoteProtocolError, SessionAborted
from protocols.packing import unpack
from protocols.secagg.identity import Roster
from protocols.secagg.interface import PHASES
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import SessionParameters

BUDGET_CODE = "BudgetExceeded"
"""The code with which a client refuses a round that its remaining budget does not cover."""


@dataclass
class ExchangeRecord:
    """One exchange of a round: which sum it was.

    Args:
        session: hex id of the secure aggregation session; None where the sum is unmasked.
        transcript: hex T1 of that session, which every survivor signed; None if it gave no sum.
        announced: hex digest of what the server had told everybody before; None in the first exchange.
    """

    session: str | None = None
    transcript: str | None = None
    announced: str | None = None


@dataclass
class RoundRecord:
    """What happened in a round; public, and what the report says of it.

    Args:
        round: number of the round.
        survivors: the clients in the sum of the first exchange, and of any later one, in roster order; empty if
            there was none.
        lost: (client_id, phase) of the clients that did not answer.
        refused: (client_id, code) of the clients that would not take part.
        exchanges: every masked session that began, and every unmasked sum, in order.
        certificate: how far the result is from the mean of the clients' products, as `Certificate.to_json` says
            it, where the method can tell.
        aborted: why the round has left the global state as it was, or None.
    """

    round: int
    survivors: tuple[str, ...] = ()
    lost: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    certificate: dict[str, Any] | None = None
    aborted: str | None = None

    def losses(self) -> dict[str, list[dict[str, str]]]:
        """Return who was lost and who refused, as metrics and report list them."""
        return {
            "lost": [{"client_id": client_id, "phase": phase} for client_id, phase in self.lost],
            "refused": [{"client_id": client_id, "code": code} for client_id, code in self.refused],
        }


@dataclass(frozen=True)
class RoundResult:
    """The modular sum of the survivors' uploads (None if the round was lost) and the record of the round."""

    record: RoundRecord
    ring_sum: NDArray[np.uint32] | None = None
    anchors: Mapping[str, Anchor] = field(default_factory=dict)


class RoundConductor:
    """Conducts rounds of one experiment over an engine; keeps nothing between them."""

    def __init__(
        self, experiment: Experiment, layout: Layout, roster: Roster, run: bytes, engine: Engine
    ) -> None:
        self._experiment = experiment
        self._layout = layout
        self._roster = roster
        self._run = run
        self._engine = engine

    def conduct(self, task: RoundTask) -> RoundResult:
        """Return the sum over the survivors of the task's round."""
        record = RoundRecord(task.round)
        participants = self._train(task, record)
        if self._experiment.secure_aggregation.mode == "insecure":
            return self._plain_sum(task, participants, record)
        return self._secure_sum(task, participants, record)

    def _train(self, task: RoundTask, record: RoundRecord) -> tuple[str, ...]:
        """Ask everybody to train; return those who did, in roster order."""
        message = wire.encode(task.to_message(self._layout))
        answers = self._ask(dict.fromkeys(self._engine.client_ids, message), wire.TRAINED, "train", record)
        return tuple(client_id for client_id in self._engine.client_ids if client_id in answers)

    def _ask(
        self, messages: Mapping[str, bytes], kind: str, phase: str, record: RoundRecord
    ) -> dict[str, wire.Message]:
        """Return the good answers; whoever is silent or answers anything else is lost, or has refused."""
        answers = self._engine.exchange(messages, Step(record.round, phase))
        good = {}
        for client_id in messages:
            if client_id not in answers:
                record.lost.append((client_id, phase))
                continue
            try:
                answer = wire.decode(answers[client_id])
            except FederationError:
                record.lost.append((client_id, phase))
                continue
            if answer.kind == kind:
                good[client_id] = answer
            elif answer.kind == wire.REFUSED:
                record.refused.append((client_id, str(answer.fields.get("code"))))
            else:
                record.lost.append((client_id, phase))
        return good

    def _secure_sum(self, task: RoundTask, participants: tuple[str, ...], record: RoundRecord) -> RoundResult:
        """Run one session of secure aggregation over the participants."""
        try:
            parameters = self._parameters(task, participants)
            server = SecAggServer(parameters=parameters, roster=self._roster)
            exchange = ExchangeRecord(parameters.session_id.hex())
            record.exchanges.append(exchange)
            outgoing = server.start()
            for phase in PHASES:
                self._phase(server, phase, outgoing, record)
                outgoing = server.advance()
            result = server.result()
        except SessionAborted as error:
            record.aborted = f"secure aggregation ended in {error.phase}: {error.reason}"
            return RoundResult(record)
        record.survivors, exchange.transcript = result.survivors, result.transcript.hex()
        return RoundResult(record, result.sum, _anchors(result.attachments, self._roster))

    def _phase(
        self, server: SecAggServer, phase: str, outgoing: Mapping[str, bytes], record: RoundRecord
    ) -> None:
        """Deliver one phase's messages and hand the answers to the protocol."""
        messages = {
            client_id: wire.encode(wire.Message(wire.PHASE, {"phase": phase}, {"body": body}))
            for client_id, body in outgoing.items()
        }
        for client_id, answer in self._ask(messages, wire.PHASE, phase, record).items():
            try:
                server.receive(client_id, answer.blobs.get("body", b""))
            except RemoteProtocolError as error:
                record.lost.append((error.client_id, phase))

    def _parameters(self, task: RoundTask, participants: tuple[str, ...]) -> SessionParameters:
        """Return the proposal of this round's session.

        Raises:
            SessionAborted: fewer participants than a sum may have.
        """
        n = len(participants)
        _, _, least = self._experiment.secure_aggregation.thresholds(self._experiment.federation.clients)
        if n < least:
            lost = tuple(sorted(set(self._engine.client_ids) - set(participants)))
            raise SessionAborted("train", lost, f"{n} clients take part, a sum needs {least}")
        quantiser = task.channel.quantiser
        return session_parameters(
            self._experiment,
            participants,
            round=task.round,
            session_id=secrets.token_bytes(32),
            context=task.context(bytes.fromhex(self._experiment.digest()), self._run),
            vector_length=len(task.channel.support),
            modulus_bits=quantiser.modulus_bits,
            bound=quantiser.levels,
        )

    def _plain_sum(self, task: RoundTask, participants: Iterable[str], record: RoundRecord) -> RoundResult:
        """Add the unmasked uploads: the `insecure` path, for baselines and for tests of the masked one."""
        request = wire.encode(wire.Message(wire.UPLOAD))
        answers = self._ask(dict.fromkeys(participants, request), wire.UPLOAD, "upload", record)
        quantiser, k = task.channel.quantiser, len(task.channel.support)
        total = np.zeros(k, dtype=np.uint32)
        survivors = []
        for client_id, answer in answers.items():
            try:
                total += unpack(answer.blobs.get("body", b""), quantiser.modulus_bits, k)
                survivors.append(client_id)
            except ProtocolError:
                record.lost.append((client_id, "upload"))
        total &= np.uint32((1 << quantiser.modulus_bits) - 1)
        record.survivors = tuple(survivors)
        if not survivors:
            record.aborted = "no client sent an upload"
            return RoundResult(record)
        record.exchanges.append(ExchangeRecord())
        return RoundResult(record, total)


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
