"""The engine and the ClientApp with real Flower messages: the local engine's sums, and a SuperLink that meddles."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from numpy.testing import assert_array_equal

from fedlora_priv.engines.flower.client_app import ANSWER, make_app
from fedlora_priv.engines.flower.engine import FlowerEngine, Timing
from fedlora_priv.engines.flower.records import HELLO, MESSAGE, from_record, to_record
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import ClientSetup, FederationClient
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods.fedit import FedIT
from tests.federation.paper import RUN, Paper

from .lab import FLOWER_RUN, STEPS, VICTIM, Link, PaperNode, connect, failed, step_of


def total(result: RoundResult) -> Any:
    assert result.summed is not None, result.record
    (part,) = result.summed.parts
    assert part.ring_sum.any()
    return part.ring_sum


def test_a_federation_over_flower_has_the_sums_of_the_local_engine(paper: Callable[..., Paper]) -> None:
    local, remote = paper(FedIT()), paper(FedIT())
    link = connect(remote)
    for _ in range(3):
        one, other = local.round(), remote.round()
        assert_array_equal(total(one), total(other))
        assert other.record.survivors == local.experiment.client_ids
    greeted = [m for m in link.sent if m.metadata.message_type == HELLO]
    assert len(greeted) == 5  # once each, not once a round


def test_every_message_of_a_step_has_the_time_that_its_answers_are_waited_for(
    paper: Callable[..., Paper],
) -> None:
    small = paper(FedIT())
    link = connect(small, timing=Timing(train_s=7.0, phase_s=3.0, join_s=1.0, poll_s=0.01))
    small.round()
    lives = {step_of(message): message.metadata.ttl for message in link.sent}
    assert lives == {**dict.fromkeys(STEPS, 3.0), "hello": 3.0, "train": 7.0}


# --- a SuperLink that meddles ------------------------------------------------------------------------


def flipped(message: Message) -> Message:
    """A message of which one bit is another."""
    name = ANSWER if message.metadata.reply_to_message_id else "message"
    data = bytearray(from_record(message.content, name))
    data[len(data) * 2 // 3] ^= 4
    other = copy.deepcopy(message)
    other.content = to_record(**{name: bytes(data)})
    return other


ATTACKS: dict[str, Callable[[Message], list[Message]]] = {
    "altered": lambda message: [flipped(message)],
    "dropped": lambda message: [],
    "repeated": lambda message: [message, message],
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("phase", STEPS)
def test_what_a_superlink_does_to_messages_to_one_node_costs_that_client_at_most(
    paper: Callable[..., Paper], phase: str, attack: str
) -> None:
    """Whatever comes of the round is exact: the plain sum of those that the record calls survivors."""

    def meddle(message: Message) -> list[Message]:
        aimed = message.metadata.dst_node_id == VICTIM and step_of(message) == phase
        return ATTACKS[attack](message) if aimed else [message]

    small, plain = paper(FedIT()), paper(FedIT(), secure_aggregation={"mode": "insecure"})
    connect(small, down=meddle)
    result = small.round()
    missing = set(plain.experiment.client_ids) - set(result.record.survivors)
    assert missing <= {"client-2"}
    if attack != "altered":  # one box among five that does not open costs nobody anything
        assert missing == ({"client-2"} if attack == "dropped" and phase in STEPS[:3] else set())
    assert_array_equal(total(result), sum_of(plain, missing))
    troubled = {client_id for client_id, _ in [*result.record.lost, *result.record.refused]}
    assert troubled <= {"client-2"}
    assert bool(troubled) == (attack == "dropped") or attack == "altered"


def sum_of(plain: Paper, missing: set[str]) -> Any:
    """The sum of the unmasked uploads of all but those."""
    from fedlora_priv.engines.local import LocalEngine

    plain.use(LocalEngine([client for client in plain.clients if client.client_id not in missing]))
    return total(plain.round())


@pytest.mark.parametrize("phase", ["share", "mask", "confirm", "reveal"])
def test_messages_swapped_between_two_nodes_are_refused_by_both(
    paper: Callable[..., Paper], phase: str
) -> None:
    small = paper(FedIT(), secure_aggregation={"quorum": 4})
    held: dict[int, Message] = {}

    def hold(message: Message) -> list[Message]:
        """Deliver to each of two nodes what the one before was sent in this phase."""
        node = message.metadata.dst_node_id
        if step_of(message) != phase or node not in (101, VICTIM):
            return [message]
        held[node] = message
        return [held[101]] if node == VICTIM else [message]

    connect(small, down=hold)
    result = small.round()
    if phase in ("share", "mask"):  # each gets what is meant for it alone
        assert ("client-2", phase) in result.record.lost or "client-2" in dict(result.record.refused)
    else:  # everybody is told the same, so there is nothing to swap
        assert not result.record.refused
    assert total(result) is not None


@pytest.mark.parametrize("phase", STEPS)
def test_an_altered_answer_is_its_senders_loss(paper: Callable[..., Paper], phase: str) -> None:
    small, plain = paper(FedIT()), paper(FedIT(), secure_aggregation={"mode": "insecure"})
    asked: dict[str, str] = {}

    def note(message: Message) -> list[Message]:
        asked[message.metadata.message_id] = step_of(message)
        return [message]

    def spoil(reply: Message) -> list[Message]:
        aimed = reply.metadata.src_node_id == VICTIM or asked[reply.metadata.reply_to_message_id] != phase
        return [flipped(reply)] if aimed and asked[reply.metadata.reply_to_message_id] == phase else [reply]

    connect(small, down=note, up=spoil)
    result = small.round()
    missing = set(small.experiment.client_ids) - set(result.record.survivors)
    assert ("client-2", phase) in result.record.lost
    assert_array_equal(total(result), sum_of(plain, missing))


def test_a_node_that_answers_with_flowers_error_is_lost(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT())
    dead = False

    def up(reply: Message) -> list[Message]:
        return [failed(reply)] if dead and reply.metadata.src_node_id == VICTIM else [reply]

    connect(small, up=up)
    small.round()
    dead = True
    result = small.round()
    assert result.record.lost == [("client-2", "train")]
    dead = False
    assert small.round().record.survivors == small.experiment.client_ids


def test_an_answer_in_anothers_name_is_not_taken(paper: Callable[..., Paper]) -> None:
    """Node 103 answers in place of node 102, on which the server still waits."""
    small = paper(FedIT())

    def up(reply: Message) -> list[Message]:
        if reply.metadata.src_node_id == VICTIM and reply.metadata.message_type == MESSAGE:
            reply.metadata.__dict__["_src_node_id"] = 103
        return [reply]

    connect(small, up=up)
    assert small.round().record.lost == [("client-2", "train")]


# --- who is there --------------------------------------------------------------------------------------


def test_a_node_that_is_not_on_the_roster_gets_nothing(
    paper: Callable[..., Paper], caplog: pytest.LogCaptureFixture
) -> None:
    small, strangers = paper(FedIT()), paper(FedIT())
    link = connect(small)
    stranger = PaperNode(strangers.clients[1]._setup)  # has the name of client-2, and another key
    link.nodes[200] = stranger
    link.contexts[200] = Context(
        run_id=FLOWER_RUN, node_id=200, node_config={}, state=RecordDict(), run_config={}
    )
    with caplog.at_level(logging.WARNING):
        assert small.round().record.survivors == small.experiment.client_ids
    assert "node 200, which calls itself client-2, has not signed for this run" in caplog.text
    assert {m.metadata.message_type for m in link.sent if m.metadata.dst_node_id == 200} == {HELLO}


def test_a_greeting_cannot_be_repeated_by_another_node(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT())

    class Parrot(PaperNode):
        def greeting(self, context: Context) -> tuple[str, bytes]:
            return PaperNode.greeting(self, link.contexts[VICTIM])

    link = connect(small)
    del link.nodes[VICTIM]  # so the parrot is the only one with that name
    link.nodes[300] = Parrot(small.clients[1]._setup)
    link.contexts[300] = Context(
        run_id=FLOWER_RUN, node_id=300, node_config={}, state=RecordDict(), run_config={}
    )
    result = small.round()
    assert result.record.lost == [("client-2", "train")]
    assert not [m for m in link.sent if m.metadata.dst_node_id == 300 and m.metadata.message_type == MESSAGE]


def test_a_restarted_node_is_back_in_the_next_round(paper: Callable[..., Paper]) -> None:
    """Without node authentication a SuperNode that is started again has another id, and no state."""
    small = paper(FedIT())
    gone = False
    link = connect(small, down=lambda m: [] if gone and m.metadata.dst_node_id == VICTIM else [m])
    small.round()
    gone = True
    assert small.round().record.lost == [("client-2", "train")]
    link.nodes[400] = link.nodes[VICTIM]
    link.contexts[400] = Context(
        run_id=FLOWER_RUN, node_id=400, node_config={}, state=RecordDict(), run_config={}
    )
    assert small.round().record.survivors == small.experiment.client_ids


class Busy(PaperNode):
    """A node that is there, and still does what a server asked for that was killed since."""

    def __init__(self, setup: ClientSetup, times: int) -> None:
        super().__init__(setup)
        self.times = times

    def silent(self) -> bool:
        self.times -= 1
        return self.times >= 0


@pytest.mark.parametrize(("times", "missing"), [(3, ()), (10**9, ("client-2",))])
def test_a_node_that_is_busy_is_waited_for_as_long_as_a_training_may_take(
    paper: Callable[..., Paper], times: int, missing: tuple[str, ...]
) -> None:
    small = paper(FedIT())
    busy = Busy(small.clients[1]._setup, times)

    def down(message: Message) -> list[Message]:
        return [] if message.metadata.dst_node_id == VICTIM and busy.silent() else [message]

    link = connect(small, down=down)
    timing = Timing(train_s=60.0 if not missing else 0.5, phase_s=0.1, join_s=0.1, poll_s=0.01)
    engine = FlowerEngine(link, small.roster, RUN, timing)  # type: ignore[arg-type] # a Link is no Grid
    assert engine.join() == engine.absent == missing


def test_nobody_is_waited_for_who_is_not_there(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT())
    link = connect(small)
    del link.nodes[VICTIM]
    timing = Timing(train_s=3600.0, phase_s=60.0, join_s=0.1, poll_s=0.01)
    engine = FlowerEngine(link, small.roster, RUN, timing)  # type: ignore[arg-type] # a Link is no Grid
    assert engine.join() == ("client-2",)


# --- what a node says ------------------------------------------------------------------------------------


class Broken(PaperNode):
    """A node that fails with a text that says what its data are like."""

    def open(self, context: Context, data: bytes) -> FederationClient:
        raise RuntimeError("row 17: Mrs Miller has a fever")


def test_no_text_of_an_error_leaves_a_node(
    paper: Callable[..., Paper], caplog: pytest.LogCaptureFixture
) -> None:
    small = paper(FedIT())
    link = connect(small)
    link.nodes[VICTIM] = Broken(small.clients[1]._setup)
    with caplog.at_level(logging.ERROR):
        result = small.round()
    assert result.record.refused == [("client-2", "RuntimeError")]
    assert "fever" in caplog.text  # in the node's own log
    app, context = make_app(link.nodes[VICTIM]), link.contexts[VICTIM]
    asked = Message(to_record(message=b"anything"), VICTIM, MESSAGE)
    reply = app(asked, context)
    assert not reply.has_error()
    assert b"fever" not in from_record(reply.content, ANSWER)


def test_what_was_refused_for_a_passing_reason_is_not_refused_for_ever(paper: Callable[..., Paper]) -> None:
    """The same bytes are refused again, with the same reason; but a server that begins the round again sends others."""
    small = paper(FedIT())
    link = connect(small)
    node, before = link.nodes[VICTIM], small.state
    enough, node.setup = node.setup, replace(node.setup, lifetime_epsilon=0.01)
    assert small.round().record.refused == [("client-2", "BudgetExceeded")]
    asked = next(m for m in link.sent if m.metadata.dst_node_id == VICTIM and step_of(m) == "train")
    node.setup = enough  # somebody has raised this party's own limit
    reply = make_app(node)(copy.deepcopy(asked), link.contexts[VICTIM])
    assert wire.decode(from_record(reply.content, ANSWER)).fields == {"code": "BudgetExceeded"}
    small.state, trained = (
        before,
        small.trainings,
    )  # a server that was killed, and goes on from its checkpoint
    again = small.round()
    assert again.record.survivors == small.experiment.client_ids
    assert small.trainings == trained + 1  # client-2's; the others mask again what they have


def test_another_applications_message_is_refused(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT())
    link = connect(small)
    reply = make_app(link.nodes[101])(Message(RecordDict(), 101, MESSAGE), link.contexts[101])
    answer = wire.decode(from_record(reply.content, ANSWER))
    assert (answer.kind, answer.fields) == (wire.REFUSED, {"code": "FederationError"})


def test_the_state_of_another_experiments_node_is_refused(paper: Callable[..., Paper]) -> None:
    """A SuperNode that serves two federations, and gives one the other's state."""
    small, other = paper(FedIT()), paper(FedIT())
    theirs: list[RecordDict] = []

    def keep(message: Message) -> list[Message]:
        if step_of(message) == "confirm" and message.metadata.dst_node_id == VICTIM:
            theirs.append(copy.deepcopy(elsewhere.contexts[VICTIM].state))
        return [message]

    def mistake(message: Message) -> list[Message]:
        if theirs and step_of(message) == "confirm" and message.metadata.dst_node_id == VICTIM:
            link.contexts[VICTIM].state = theirs.pop()
        return [message]

    elsewhere, link = connect(other, down=keep), connect(small, down=mistake)
    total(other.round())
    result = small.round()
    assert result.record.refused == [("client-2", "StaleRound")]
    assert "client-2" in result.record.survivors  # what it had masked by then is in the sum
    assert small.round().record.survivors == small.experiment.client_ids


def test_the_link_of_these_tests_is_what_the_engine_expects() -> None:
    from flwr.serverapp import Grid

    used = {"run", "get_node_ids", "push_messages", "pull_messages"}
    assert used <= set(dir(Grid)) & set(dir(Link))
