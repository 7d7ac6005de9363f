"""A SuperLink that is somebody's own: every phase, both ways, everything that it can do to Flower's messages.

Five clients, real Flower messages, one victim (client-2, node 102) and its neighbour (client-3). What must hold is the
same in every case (`judge`): the round ends; its sum is the integers of those that the record calls survivors, or there
is none and a reason; whoever was not meddled with is in it; nothing leaves a node twice that may leave it once; what a
refusal says is a name; and the next round, undisturbed, is everybody's again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.testing import assert_array_equal

from fedlora_priv.engines.flower import engine
from fedlora_priv.engines.flower.client_app import ANSWER, make_app
from fedlora_priv.engines.flower.engine import FlowerEngine
from fedlora_priv.engines.flower.records import HELLO, RECORD, from_record, to_record
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import record, wire
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fra import FRALoRA
from protocols.secagg.interface import PHASES
from tests.federation import paper as on_paper
from tests.federation.paper import RUN, Paper

from .lab import SOON, STEPS, VICTIM, Link, PaperNode, step_of, told

NEIGHBOUR = 103
NAMED = re.compile(r"[A-Za-z]{1,40}")


def saying(message: Message, data: bytes) -> Message:
    """A message with other bytes in it."""
    other = copy.deepcopy(message)
    other.content = to_record(**{ANSWER if message.metadata.reply_to_message_id else "message": data})
    return other


# --- what one message becomes -----------------------------------------------------------------------------------


def flipped_at(share: float) -> Callable[[Message], list[Message]]:
    """One bit is another, so far into the message."""

    def change(message: Message) -> list[Message]:
        data = bytearray(told(message))
        data[int((len(data) - 1) * share)] ^= 4
        return [saying(message, bytes(data))]

    return change


def without_record(message: Message) -> list[Message]:
    other = copy.deepcopy(message)
    other.content = RecordDict()
    return [other]


def of_another_kind(message: Message) -> list[Message]:
    other = copy.deepcopy(message)
    other.content = RecordDict({RECORD: MetricRecord({"message": 1.0})})
    return [other]


def of_text(message: Message) -> list[Message]:
    other = copy.deepcopy(message)
    other.content = RecordDict({RECORD: ConfigRecord({"message": "text", ANSWER: "text"})})
    return [other]


REFUSAL = wire.Message(wire.REFUSED, {"code": "\x1b[31mMrs Miller has a fever" * 99})

CHANGES: dict[str, Callable[[Message], list[Message]]] = {
    "header altered": flipped_at(0.02),
    "middle altered": flipped_at(0.5),
    "end altered": flipped_at(1.0),
    "cut short": lambda message: [saying(message, told(message)[:-1])],
    "longer": lambda message: [saying(message, told(message) + b"\0")],
    "nothing": lambda message: [saying(message, b"")],
    "noise": lambda message: [saying(message, bytes(range(256)) * 4)],
    "without record": without_record,
    "of another kind": of_another_kind,
    "text": of_text,
    "a refusal with a text": lambda message: [saying(message, wire.encode(REFUSAL))],
    "dropped": lambda message: [],
    "repeated": lambda message: [message, message, message],
}


FEW = ("middle altered", "end altered", "without record", "a refusal with a text", "dropped", "repeated")


# --- the SuperLink ----------------------------------------------------------------------------------------------


class SuperLink(Link):
    """A SuperLink that sees a step's messages before it delivers any, and its replies before it hands any on.

    Args:
        nodes: by node id.
        down, up: what becomes of all messages of a step, and of all replies to them. A pair is (the message or reply
            that it stands for, what is delivered in its place).
    """

    def __init__(
        self, nodes: dict[int, Any], down: Callable[..., Iterable[Any]], up: Callable[..., Iterable[Any]]
    ) -> None:
        super().__init__(nodes)
        self.all_down, self.all_up = down, up
        self.said: list[tuple[int, Message]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"{len(self.sent)}-{number}"
            message.metadata.__dict__["_run_id"] = self.run.run_id
        self.sent += messages
        replies = []
        for meant, delivered in self.all_down(messages):
            node = meant.metadata.dst_node_id
            reply = make_app(self.nodes[node])(copy.deepcopy(delivered), self.contexts[node])
            reply.metadata.__dict__["_reply_to_message_id"] = meant.metadata.message_id
            self.said.append((node, reply))
            replies.append((meant, reply))
        for meant, reply in self.all_up(replies):
            reply.metadata.__dict__["_reply_to_message_id"] = meant.metadata.message_id
            reply.metadata.__dict__["_src_node_id"] = meant.metadata.dst_node_id
            self.replies.append(reply)
        return [message.metadata.message_id for message in messages]


@dataclass
class Meddler:
    """Does something to the victim's messages of one step, in one direction, once.

    Args:
        step: of which messages.
        change: what becomes of the victim's message or reply.
        swap: whether the neighbour's is exchanged with it instead.
        kept: what to put in its place; by step, with the direction.
    """

    step: str
    change: Callable[[Message], list[Message]] | None = None
    swap: bool = False
    kept: dict[str, Message] = field(default_factory=dict)
    late: bool = False
    early: bool = False
    active: bool = True
    done: int = 0
    held: Message | None = None

    def __call__(self, pairs: list[tuple[Message, Message]]) -> list[tuple[Message, Message]]:
        """Return what is delivered."""
        mine = next((pair for pair in pairs if pair[0].metadata.dst_node_id == VICTIM), None)
        if mine is None:
            return pairs
        if self.held is not None:  # what was kept back comes before the next
            before, self.held = (mine[0], self.held), None
            return [
                before if self.early else mine,
                mine if self.early else before,
                *(p for p in pairs if p is not mine),
            ]
        if not self.active or self.done or step_of(mine[0]) != self.step:
            return pairs
        self.done += 1
        others = [pair for pair in pairs if pair is not mine]
        if self.late or self.early:
            self.held = mine[1]
            return others
        if self.swap:
            theirs = next(pair for pair in others if pair[0].metadata.dst_node_id == NEIGHBOUR)
            rest = [pair for pair in others if pair is not theirs]
            return [(mine[0], theirs[1]), (theirs[0], mine[1]), *rest]
        if self.kept:
            return [(mine[0], copy.deepcopy(self.kept[self.step])), *others]
        assert self.change is not None
        return [*((mine[0], other) for other in self.change(mine[1])), *others]


def honest(pairs: list[tuple[Message, Message]]) -> list[tuple[Message, Message]]:
    return pairs


def connect(
    small: Paper, way: str = "down", meddler: Callable[..., Any] = honest, run: bytes = RUN
) -> SuperLink:
    """Send everything of a paper federation through a SuperLink that meddles one way."""
    nodes = {100 + i: PaperNode(client._setup) for i, client in enumerate(small.clients, start=1)}
    down, up = (meddler, honest) if way == "down" else (honest, meddler)
    link = SuperLink(nodes, lambda messages: down([(m, m) for m in messages]), up)
    small.use(FlowerEngine(link, small.roster, run, SOON))  # type: ignore[arg-type] # a Link is no Grid
    return link


class Clock:
    """A clock that only sleeping moves: what is waited for in vain costs no test a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "time", Clock())


# --- what must hold ---------------------------------------------------------------------------------------------


@pytest.fixture
def plain(paper: Callable[..., Paper]) -> Callable[[Iterable[str]], Any]:
    """What the first round's sum of some clients must be: their unmasked uploads, added up."""
    small = paper(FedIT(), secure_aggregation={"mode": "insecure"})
    uploads: dict[str, np.ndarray] = {}
    for client in small.clients:
        small.use(LocalEngine([client]))
        task = small.server.task(small.state)
        summed = small.conductor.conduct(task, lambda _: None).summed
        assert summed is not None
        (part,) = summed.parts
        uploads[client.client_id] = part.ring_sum.copy()
        modulus = 1 << part.exchange.channel.form.modulus_bits

    def total(clients: Iterable[str]) -> Any:
        return sum(uploads[client_id].astype(np.uint64) for client_id in clients) % modulus

    return total


def judge(
    small: Paper, link: SuperLink, result: RoundResult, plain: Callable[..., Any], touched: set[str]
) -> None:
    """What holds of a round whatever the SuperLink did in it.

    Args:
        touched: the clients whose messages it meddled with.
    """
    if result.summed is None:
        assert result.record.aborted
    else:
        (part,) = result.summed.parts
        survivors = set(result.record.survivors)
        assert part.n == len(survivors) >= 3
        assert set(small.experiment.client_ids) - survivors <= touched
        assert_array_equal(part.ring_sum, plain(survivors))
    assert {client_id for client_id, _ in (*result.record.lost, *result.record.refused)} <= touched
    assert all(NAMED.fullmatch(code) for _, code in result.record.refused)
    leaves_once(link)
    for client in small.clients:
        assert len(client._setup.ledger.charges(run=RUN.hex(), round=result.record.round)) <= 1


def leaves_once(link: SuperLink, exchanges: int = 1) -> None:
    """No node gave two different masked vectors or two different sets of shares for one sum; no refusal has a text."""
    given: dict[tuple[int, str, str], set[bytes]] = {}
    rounds = dict.fromkeys(link.nodes, 0)
    for node, reply in link.said:
        if reply.metadata.message_type == HELLO:
            continue
        answer = wire.decode(from_record(reply.content, ANSWER))
        assert answer.kind in (wire.TRAINED, wire.READY, wire.PHASE, wire.STATEMENT, wire.REFUSED)
        if answer.kind == wire.REFUSED:
            assert set(answer.fields) == {"code"}
            assert not answer.blobs
            assert NAMED.fullmatch(answer.fields["code"])
        rounds[node] += answer.kind == wire.TRAINED
        phase = answer.fields.get("phase")
        if phase in ("mask", "reveal"):
            given.setdefault((node, str(rounds[node]), str(phase)), set()).add(answer.blobs["body"])
    assert all(len(bodies) <= exchanges for bodies in given.values())


def next_round_is_whole(small: Paper) -> None:
    result = small.round()
    assert result.record.survivors == small.experiment.client_ids, result.record
    assert (result.record.lost, result.record.refused) == ([], [])


# --- the matrix -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("step", STEPS)
def test_whatever_a_superlink_makes_of_a_message(
    paper: Callable[..., Paper], plain: Callable[..., Any], step: str, way: str
) -> None:
    for name in CHANGES if step in ("train", "mask") else FEW:  # bytes are read in the same way in every step
        small, meddler = paper(FedIT()), Meddler(step, CHANGES[name])
        link = connect(small, way, meddler)
        result = small.round()
        assert meddler.done == 1, name
        judge(small, link, result, plain, {"client-2"})
        if name == "repeated":
            assert (result.record.lost, result.record.refused) == ([], [])
        if name == "dropped":
            assert result.record.lost == [("client-2", step)]
        if name == "a refusal with a text" and way == "up":
            assert result.record.refused == [("client-2", "unnamed")]


ORDERS: dict[str, dict[str, bool]] = {
    "late": {"late": True},
    "late, and after the next": {"early": True},
    "swapped": {"swap": True},
}


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("step", STEPS)
def test_in_whatever_order_a_superlink_delivers(
    paper: Callable[..., Paper], plain: Callable[..., Any], step: str, way: str
) -> None:
    """A message comes with the next step's, before or after it; or two nodes get each other's."""
    for name, order in ORDERS.items():
        small, meddler = paper(FedIT()), Meddler(step, **order)
        link = connect(small, way, meddler)
        result = small.round()
        assert meddler.done == 1, name
        touched = {"client-2", "client-3"} if name == "swapped" else {"client-2"}
        judge(small, link, result, plain, touched)
        if meddler.held is None:  # else the last step's message still comes, in the next round
            next_round_is_whole(small)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("step", STEPS)
def test_what_was_said_in_an_earlier_round_is_worth_nothing_later(
    paper: Callable[..., Paper], step: str, way: str
) -> None:
    small, twin = paper(FedIT()), paper(FedIT(), secure_aggregation={"mode": "insecure"})
    meddler = Meddler(step, active=False, kept={"": Message(RecordDict(), 1, "train")})
    link = connect(small, way, meddler)
    kept = listening(link, way)
    honest_round(small, twin)
    meddler.kept, meddler.active = dict(kept), True
    assert set(kept) == set(STEPS)
    result = small.round()
    assert meddler.done == 1
    worthless(small, link, result, twin)
    next_round_is_whole(small)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("step", ["train", "share", "mask", "reveal"])
def test_what_was_said_in_another_run_of_the_same_keys_is_worth_nothing_here(
    paper: Callable[..., Paper], monkeypatch: pytest.MonkeyPatch, step: str, way: str
) -> None:
    """Another deployment of the same experiment with the same cards: all that differs is the run's id."""
    small, twin = paper(FedIT()), paper(FedIT(), secure_aggregation={"mode": "insecure"})
    elsewhere = paper(FedIT())
    for client in small.clients:
        key = client._setup.home.identity_path
        (elsewhere.folder / client.client_id / key.name).write_bytes(key.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(on_paper, "RUN", RUN[::-1])
        elsewhere.live()
        kept = listening(connect(elsewhere, run=RUN[::-1]), way)
        elsewhere.round()
    assert elsewhere.roster == small.roster
    assert set(kept) == set(STEPS)
    meddler = Meddler(step, kept=dict(kept))
    link = connect(small, way, meddler)
    result = small.round()
    assert meddler.done == 1
    worthless(small, link, result, twin)
    next_round_is_whole(small)


def listening(link: SuperLink, way: str) -> dict[str, Message]:
    """What the victim is told, or says, in each step of the next round."""
    kept: dict[str, Message] = {}
    meddling = link.all_down if way == "down" else link.all_up

    def keep(pairs: Any) -> Any:
        for pair in pairs:
            meant, message = pair if way == "up" else (pair, pair)
            if meant.metadata.dst_node_id == VICTIM and step_of(meant) != "hello":
                kept.setdefault(step_of(meant), copy.deepcopy(message))
        return meddling(pairs)

    if way == "down":
        link.all_down = keep
    else:
        link.all_up = keep
    return kept


def honest_round(small: Paper, twin: Paper) -> None:
    """A round of both that nobody meddles with."""
    results = small.round(), twin.round()
    (one,), (other,) = (result.summed.parts for result in results if result.summed is not None)
    assert_array_equal(one.ring_sum, other.ring_sum)


def worthless(small: Paper, link: SuperLink, result: RoundResult, twin: Paper) -> None:
    """The round is exact without the victim, or with it; nothing of what was repeated was taken."""

    def total(survivors: Iterable[str]) -> Any:
        named = set(survivors)
        twin.use(LocalEngine([client for client in twin.clients if client.client_id in named]))
        summed = twin.round().summed
        assert summed is not None
        return summed.parts[0].ring_sum

    judge(small, link, result, total, {"client-2"})


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("step", ["exchange", *PHASES[1:]])
def test_a_second_exchange_is_exact_or_the_round_is_lost(
    paper: Callable[..., Paper], step: str, way: str
) -> None:
    """All of the first sum's clients are needed in it, so whatever happens to one of them costs the round at most."""
    method: Method = FRALoRA(CrossTerm("two-pass"))
    dense = {"communication": {"support": "dense", "density": 1.0, "value_bits": 16}}
    local = paper(method, **dense).round().summed
    assert local is not None
    for name in ("middle altered", "dropped", "repeated"):
        small, meddler = paper(method, **dense), Meddler(step, CHANGES[name], active=False)
        link = connect(small, way, meddler)
        # The first exchange has phases of the same names: begin with what announces the second.
        link.all_down = beginning(link.all_down, meddler)
        result = small.round()
        assert meddler.done == 1, name
        leaves_once(link, exchanges=2)
        if result.summed is None:
            assert result.record.aborted
        else:
            for one, other in zip(result.summed.parts, local.parts, strict=True):
                assert_array_equal(one.ring_sum, other.ring_sum)
        if name == "repeated":
            assert result.summed is not None


def beginning(down: Callable[..., Any], meddler: Meddler) -> Callable[..., Any]:
    """Let a meddler begin with the message that announces the round's second exchange."""

    def watch(messages: Any) -> Any:
        if any(step_of(message) == "exchange" for message in messages):
            meddler.active = True
        return down(messages)

    return watch


# --- who is where -----------------------------------------------------------------------------------------------


def greeting_of(link: SuperLink, meddle: Callable[[Message], Message | None]) -> None:
    """Change what the victim says of who it is."""

    def change(replies: list[tuple[Message, Message]]) -> list[tuple[Message, Message]]:
        changed = []
        for meant, reply in replies:
            aimed = meant.metadata.message_type == HELLO and meant.metadata.dst_node_id == VICTIM
            after = meddle(reply) if aimed else reply
            changed += [] if after is None else [(meant, after)]
        return changed

    link.all_up = change


def greeting(reply: Message, **values: bytes) -> Message:
    """A greeting that says something else."""
    said = {name: from_record(reply.content, name) for name in ("client_id", "signature")}
    other = copy.deepcopy(reply)
    other.content = to_record(**{**said, **values})
    return other


GREETINGS: dict[str, Callable[[Message], Message | None]] = {
    "as the neighbour": lambda reply: greeting(reply, client_id=b"client-3"),
    "as nobody": lambda reply: greeting(reply, client_id=b"client-9"),
    "as no text": lambda reply: greeting(reply, client_id=b"\xff\xfe"),
    "with another signature": lambda reply: greeting(reply, signature=bytes(64)),
    "with half a signature": lambda reply: greeting(reply, signature=b"short"),
    "without record": lambda reply: without_record(reply)[0],
    "not at all": lambda reply: None,
}


@pytest.mark.parametrize("name", GREETINGS)
def test_a_greeting_that_was_meddled_with_costs_its_node_the_round(
    paper: Callable[..., Paper], plain: Callable[..., Any], name: str
) -> None:
    """And no more than that: the node is asked again before the next one."""
    small = paper(FedIT())
    link = connect(small)
    greeting_of(link, GREETINGS[name])
    result = small.round()
    assert result.record.lost == [("client-2", "train")]
    judge(small, link, result, plain, {"client-2"})
    assert not [m for m in link.sent if m.metadata.dst_node_id == VICTIM and m.metadata.message_type != HELLO]
    link.all_up = honest
    next_round_is_whole(small)


def test_a_node_with_another_runs_agreement_is_not_taken_for_this_ones(paper: Callable[..., Paper]) -> None:
    """Its key is on both rosters and admitted here; what it trains and charges for is the other run."""
    small = paper(FedIT())
    link = connect(small)
    link.nodes[VICTIM] = PaperNode(replace(small.clients[1]._setup, run=RUN[::-1]))
    result = small.round()
    assert result.record.lost == [("client-2", "train")]
    assert {m.metadata.message_type for m in link.sent if m.metadata.dst_node_id == VICTIM} == {HELLO}
    assert not small.clients[1]._setup.ledger.charges()
    link.nodes[VICTIM] = PaperNode(
        small.clients[1]._setup
    )  # its file was mended; Flower's node id is the key's
    next_round_is_whole(small)


# --- at the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("name", [*FEW, "cut short", *ORDERS])
def test_a_ledger_that_was_meddled_with_is_none(paper: Callable[..., Paper], name: str, way: str) -> None:
    """What the server has of a client at the end is what that client signed, or nothing."""
    small = paper(FedIT())
    meddler = Meddler("close", CHANGES.get(name), **ORDERS.get(name, {}))
    link = connect(small, way, meddler)
    small.round()
    statements = record.collect(small.engine, small.roster, 1)
    assert meddler.done == 1
    touched = {"client-2", "client-3"} if name == "swapped" and way == "up" else {"client-2"}
    assert set(small.experiment.client_ids) - set(statements) <= touched
    for client in small.clients:
        if client.client_id in statements:
            stated = statements[client.client_id]
            assert stated.ledger == client._setup.ledger.export_jsonl()
            stated.anchor.verify(small.roster[client.client_id])
    leaves_once(link)
