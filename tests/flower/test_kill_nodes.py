"""kill -9 of a node before, during and after each message of a round, at every durable write there is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from flwr.app import Message
from numpy.testing import assert_array_equal

from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods.fedit import FedIT
from tests.federation.paper import Paper

from .killing import DeadlyLink, deadly, require_one_kind_of_share, require_right_budgets
from .lab import STEPS, VICTIM, step_of

WRITES = {"train": 9, "share": 3, "mask": 5, "confirm": 4, "reveal": 3}
"""Durable writes of a message: transactions of ledger and guard that change something, and two for a file."""

BEFORE_THE_CHARGE = 2
"""Of those in training: what the guard knows of the session that the client has accepted."""

IN_THE_SUM = STEPS[STEPS.index("mask") + 1 :]
"""Whoever has answered so far as to be asked for these has a masked vector in the sum."""


def total(result: RoundResult) -> Any:
    assert result.summed is not None, result.record
    (part,) = result.summed.parts
    assert part.ring_sum.any()
    return part.ring_sum


class Oracle:
    """The plain sums of two rounds, the first of them without some clients."""

    def __init__(self, make: Callable[..., Paper]) -> None:
        self._make = make
        self._known: dict[bool, tuple[Any, Any]] = {}

    def sums(self, *, without_victim: bool) -> tuple[Any, Any]:
        """What masks must give, computed without masks."""
        if without_victim not in self._known:
            plain = self._make(FedIT(), secure_aggregation={"mode": "insecure"})
            everybody = plain.clients
            plain.use(
                LocalEngine([c for c in everybody if not (without_victim and c.client_id == "client-2")])
            )
            first = total(plain.round())
            plain.use(LocalEngine(everybody))
            self._known[without_victim] = first, total(plain.round())
        return self._known[without_victim]


def require_exact(
    small: Paper,
    link: DeadlyLink,
    oracle: Oracle,
    *,
    summed: bool,
    troubled: bool = True,
    charged: bool = True,
) -> None:
    """Conduct the round of a crash and the next: both sums are exact, the victim is back, all books are right.

    Args:
        summed: whether the victim is in the first round's sum.
        troubled: whether anybody notices that it was lost.
        charged: whether it was charged for the first round.
    """
    first, second = small.round(), small.round()
    everybody = small.experiment.client_ids
    expected = oracle.sums(without_victim=not summed)
    assert_array_equal(total(first), expected[0])
    assert_array_equal(total(second), expected[1])
    assert set(everybody) - set(first.record.survivors) == (set() if summed else {"client-2"})
    assert {name for name, _ in (*first.record.lost, *first.record.refused)} == (
        {"client-2"} if troubled else set()
    )
    assert second.record.survivors == everybody
    assert not second.record.lost
    assert not second.record.refused
    require_one_kind_of_share(link)
    require_right_budgets(link, rounds=2, missed=not charged)


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_any_write_of_a_message(paper: Callable[..., Paper], step: str) -> None:
    """The SuperNode lives and keeps what it was last given, which is older than what the home knows."""
    oracle = Oracle(paper)
    for point in count():
        small = paper(FedIT())
        link = deadly(small)
        die = [point]

        def doom(message: Message, step: str = step, die: list[int] = die) -> int | None:
            aimed = message.metadata.dst_node_id == VICTIM and step_of(message) == step
            return die.pop() if aimed and die else None

        link.doom = doom
        masked = step in IN_THE_SUM
        if point > WRITES[step]:  # there was no such write, so nothing has happened
            require_exact(small, link, oracle, summed=True, troubled=False)
            assert not link.struck
            break
        charged = step != "train" or point > BEFORE_THE_CHARGE
        require_exact(small, link, oracle, summed=masked, charged=charged)
        assert link.struck


@pytest.mark.parametrize("step", STEPS)
def test_a_node_that_has_answered_and_is_started_again_at_once(
    paper: Callable[..., Paper], step: str
) -> None:
    """The SuperNode's memory is gone, with the keys of the session; it is asked on and has to refuse."""
    small = paper(FedIT())
    link = deadly(small)
    before: list[str] = []

    def doom(message: Message) -> None:
        """Nobody is killed in a message; the node is, between two of them."""
        if message.metadata.dst_node_id == VICTIM:
            if before[-1:] == [step] and before.count("train") == 1 and step_of(message) != "train":
                link.forget(VICTIM)
            before.append(step_of(message))

    link.doom = doom
    masked = step in STEPS[STEPS.index("mask") :]
    require_exact(small, link, Oracle(paper), summed=masked, troubled=step != "reveal")


@pytest.mark.parametrize("step", STEPS)
def test_a_node_that_is_gone_before_a_message_and_comes_back_in_the_next_round(
    paper: Callable[..., Paper], step: str
) -> None:
    small = paper(FedIT())
    link = deadly(small)
    asked: list[str] = []

    def gone(message: Message) -> bool:
        """From that message of the first round on, until the second begins."""
        if message.metadata.dst_node_id != VICTIM:
            return False
        asked.append(step_of(message))
        if asked.count("train") == 1 and step in asked:
            link.forget(VICTIM)
            return True
        return False

    link.gone = gone
    require_exact(small, link, Oracle(paper), summed=step in IN_THE_SUM, charged=step != "train")
