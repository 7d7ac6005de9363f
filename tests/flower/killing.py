"""kill -9 at a named point, on paper: processes that really die, between one durable write and the next.

A message is handled in a process of its own, forked for it, as a SuperNode starts one. That process counts the writes
that must survive it (a transaction that changed something, a file flushed to disk) and kills itself just before one of
them. What it leaves is on disk and nowhere else: its answer, and what it had in memory, are gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict

from accounting.ledger import Ledger
from fedlora_priv.engines.flower.client_app import ANSWER, make_app
from fedlora_priv.engines.flower.engine import Timing
from fedlora_priv.engines.flower.records import from_record, to_record
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import ClientSetup, FederationClient
from protocols.secagg.codec import decode
from protocols.secagg.guard import SqliteGuard
from protocols.secagg.messages import Proposal
from tests.federation.paper import RUN, Paper

from .lab import FLOWER_RUN, Link, PaperNode, attach, step_of

PATIENT = Timing(train_s=60.0, phase_s=60.0, join_s=60.0, poll_s=0.01)
"""Nobody waits so long here: Flower answers with an error in place of a node or an app that has died."""


class Doom:
    """Ends this process by SIGKILL just before its durable write of that number, from 0."""

    def __init__(self, point: int) -> None:
        self._left = point

    def __call__(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def install(self) -> None:
        """Count every durable write of this process from now on."""
        doom, fsync = self, os.fsync

        class Counting(sqlite3.Connection):
            begun_with = 0

            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if sql == "BEGIN IMMEDIATE":
                    self.begun_with = self.total_changes
                if sql == "COMMIT" and self.total_changes > self.begun_with:
                    doom()
                return super().execute(sql, *arguments)

        def flushed(descriptor: int) -> None:
            doom()
            fsync(descriptor)

        sqlite3.connect = partial(sqlite3.connect, factory=Counting)  # type: ignore[assignment] # in this process only
        os.fsync = flushed  # type: ignore[assignment] # so too


def in_its_own_process(point: int, work: Callable[[], Any]) -> Any:
    """What `work` returns in a process that is killed before its durable write `point`; None if it was killed.

    The last point is after all writes, before anybody hears of the result.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            doom = Doom(point)
            doom.install()
            result = pickle.dumps(work())
            doom()
            with os.fdopen(writing, "wb") as out:
                out.write(result)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        result = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert status == 0
    return pickle.loads(result)


class DiskNode(PaperNode):
    """A node that has nothing but its home, of which every message opens ledger and guard anew."""

    def __init__(self, setup: ClientSetup) -> None:
        super().__init__(replace(setup, train=partial(self._trained, setup)))
        self.guard_file = setup.home.path / "guard.sqlite"

    def open(self, context: Context, data: bytes) -> FederationClient:
        setup = self.setup
        return FederationClient(
            replace(
                setup,
                ledger=ledger_of(setup),
                guard=SqliteGuard(self.guard_file, scope=RUN.hex()),
                lock=setup.home.lock(),
            )
        )

    def _trained(self, setup: ClientSetup, *arguments: Any) -> Any:
        """Train, and say so in a file that no crash takes back."""
        with (setup.home.path / "trainings").open("a") as file:
            file.write("one\n")
        return setup.train(*arguments)


def ledger_of(setup: ClientSetup) -> Ledger:
    """A client's ledger, verified row by row."""
    return Ledger.open(
        setup.home.ledger_path,
        client_id=setup.client_id,
        dataset_id="d",
        partition_id="p",
        public=True,
    )


class DeadlyLink(Link):
    """A SuperLink whose nodes can be killed.

    Args:
        paper: the federation; its own processes end here, and their homes are what nodes go on with.
    """

    def __init__(self, paper: Paper) -> None:
        super().__init__({100 + i: DiskNode(c._setup) for i, c in enumerate(paper.clients, start=1)})
        paper.close()
        self.doom: Callable[[Message], int | None] = lambda message: None
        self.gone: Callable[[Message], bool] = lambda message: False
        self.struck = False
        self.revealed: defaultdict[tuple[bytes, int], set[bytes]] = defaultdict(set)
        self._session: dict[int, bytes] = {}

    def handled(self, message: Message, node: int) -> Message | None:
        """As a SuperNode: a process for the message where somebody is to die in it."""
        self._note_session(message, node)
        if self.gone(message):
            return lost(message)
        point = self.doom(message)
        reply = super().handled(message, node) if point is None else self._forked(message, node, point)
        if reply is not None and not reply.has_error() and step_of(message) == "reveal":
            answer = wire.decode(from_record(reply.content, ANSWER))
            if answer.kind == wire.PHASE:
                self.revealed[self._session[node], node].add(answer.blobs["body"])
        return reply

    def _forked(self, message: Message, node: int, point: int) -> Message | None:
        """Handle a message in a process of its own; what it answers and keeps comes back if it lives."""

        def work() -> tuple[dict[str, bytes], dict[str, bytes]]:
            reply = make_app(self.nodes[node])(message, self.contexts[node])
            return values(reply.content), values(self.contexts[node].state)

        found = in_its_own_process(point, work)
        self.struck = found is None
        if found is None:
            return lost(message)
        answered, kept = found
        self.contexts[node].state = to_record(**kept)
        return Message(to_record(**answered), reply_to=message)

    def _note_session(self, message: Message, node: int) -> None:
        """Remember which session a node is asked to advertise for."""
        if step_of(message) == "train":
            body = wire.decode(from_record(message.content, "message")).blobs[wire.PROPOSAL]
            self._session[node] = decode(Proposal, body, "server").parameters.session_id

    def forget(self, node: int, run: int = FLOWER_RUN) -> None:
        """The SuperNode ends, and what it had in memory with it; or another run of Flower begins."""
        self.contexts[node] = Context(
            run_id=run, node_id=node, node_config={}, state=RecordDict(), run_config={}
        )


def lost(message: Message) -> Message:
    """What Flower answers in place of a node, or an app of it, that has died."""
    return Message(Error(code=1, reason="killed"), reply_to=message)


def values(record: RecordDict) -> dict[str, bytes]:
    """The bytes in a record of ours, by name."""
    return {name: value for one in record.values() for name, value in one.items()}  # type: ignore[misc] # of all kinds of records


def deadly(paper: Paper) -> DeadlyLink:
    """Send a paper federation through nodes that can be killed."""
    link = DeadlyLink(paper)
    attach(paper, link, PATIENT)
    return link


def require_right_budgets(link: DeadlyLink, *, rounds: int, extra: int = 0, missed: int = 0) -> None:
    """Every training is charged, each round once: but `missed` of all of them, and `extra` at most a second time."""
    over = 0
    for node in link.nodes.values():
        log = node.setup.home.path / "trainings"
        trainings = len(log.read_text().splitlines()) if log.exists() else 0
        with ledger_of(node.setup) as ledger:  # verified from its first row
            charges = ledger.charges(run=RUN.hex())
        assert trainings <= len(charges)
        assert {charge.round for charge in charges} <= set(range(1, rounds + 1))
        assert all(charge.committed is not None for charge in charges if charge.releases)
        assert len({charge.round for charge in charges if charge.releases}) == sum(
            bool(charge.releases) for charge in charges
        )  # one update of a round at most has left
        over += len(charges) - rounds
    assert -missed <= over <= extra - missed


def require_one_kind_of_share(link: DeadlyLink) -> None:
    """In no session has a client revealed twice, so of nobody both shares: one answer has one of each owner."""
    assert link.revealed
    assert all(len(answers) == 1 for answers in link.revealed.values())


def same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two states are equal bit for bit, and are not empty."""
    assert one.keys() == other.keys()
    assert any(array.any() for array in one.values())
    for name, array in one.items():
        assert np.array_equal(array, other[name]), name
