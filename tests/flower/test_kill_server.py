"""kill -9 of the server in each phase, and of everybody at once: the run goes on and ends in the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.loop import Loop
from fedlora_priv.methods.fedit import FedIT
from tests.federation.paper import Paper

from .killing import (
    PATIENT,
    DeadlyLink,
    deadly,
    in_its_own_process,
    require_one_kind_of_share,
    require_right_budgets,
    same_state,
)
from .lab import STEPS, attach, step_of

ROUNDS = 2


class Killed(BaseException):
    """The ServerApp's process ends here: nobody catches it, and nothing of it is left but files."""


class Watched(DeadlyLink):
    """A SuperLink under which the ServerApp dies, while nodes live on."""

    def __init__(self, paper: Paper) -> None:
        super().__init__(paper)
        self.answered: list[str] = []
        self.last: tuple[int, str, int] | None = None

    def handled(self, message: Message, node: int) -> Message | None:
        """End the server before a node is handed the message of the step and number that is its last."""
        phase = step_of(message)
        done = self.answered.count("train") // len(self.nodes)
        if self.last == (max(done, 1), phase, self.answered.count(phase) % len(self.nodes)):
            raise Killed
        self.answered.append(phase)
        return super().handled(message, node)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """End the server when all nodes have answered its last step and it has not looked yet."""
        if self.last is not None and self.last[2] == len(self.nodes):
            number, phase, everybody = self.last
            if self.answered.count(phase) == number * everybody:
                raise Killed
        return super().pull_messages(message_ids)


def loop(paper: Paper, silent: Any) -> Loop:
    """The server's part of a run of two rounds, as a process that has just started has it."""
    return Loop(
        experiment=paper.experiment,
        server=paper.server,
        conductor=paper.conductor,
        engine=paper.engine,
        plans={},
        folder=paper.folder / "server",
        evaluate=None,
        progress=silent,
    )


@pytest.fixture
def federation(paper: Callable[..., Paper]) -> Callable[[], Paper]:
    return lambda: paper(FedIT(), federation={"rounds": ROUNDS})


def undisturbed(paper: Paper, silent: Any) -> dict[str, Any]:
    """The state that a run ends in when nothing happens to it."""
    deadly(paper)
    return dict(loop(paper, silent).run()[0].state)


@pytest.mark.parametrize(
    ("step", "forgets"),
    [*((step, True) for step in STEPS), ("train", False), ("mask", False)],
    ids=[*STEPS, "train, states kept", "mask, states kept"],
)
def test_a_server_killed_in_a_phase_goes_on_from_its_checkpoint(
    federation: Callable[[], Paper], step: str, forgets: bool, silent: Any
) -> None:
    """Two of five nodes have the message, or all have answered; in the first round or in the second.

    Submitted again it is another run of Flower, in which nodes begin without a state; in a series they would keep it.
    """
    expected = undisturbed(federation(), silent)
    number, heard = (1, 2) if step in STEPS[::2] else (2, 5)
    small = federation()
    link = Watched(small)
    attach(small, link, PATIENT)
    link.last = number, step, heard
    with pytest.raises(Killed):
        loop(small, silent).run()
    link.last = None
    if forgets:
        for node in link.nodes:
            link.forget(node)
    link.replies.clear()
    attach(small, link, PATIENT)  # nothing is left of the process but its folder
    stored = checkpoint.load(small.folder / "server" / "checkpoints")
    assert stored is not None
    assert stored[0].round == number - 1
    state, history = loop(small, silent).run()
    same_state(dict(state.state), expected)
    for record in history.records:
        assert record.survivors == small.experiment.client_ids
        assert not record.lost
        assert not record.refused
    require_right_budgets(link, rounds=ROUNDS)
    require_one_kind_of_share(link)


EVERY = 23
"""Every so many durable writes of anybody everything is killed once; no multiple of it falls on the same one of a
message in two rounds."""


@pytest.mark.long
@pytest.mark.parametrize("half", [0, 1])
def test_everybody_killed_at_once_goes_on_from_what_is_on_disk(
    federation: Callable[[], Paper], half: int, silent: Any
) -> None:
    """Server and all nodes are one process here, which is killed between any two durable writes of any of them."""
    expected = undisturbed(federation(), silent)
    killed, point = 0, 1 + half * EVERY
    while True:
        small = federation()
        link = deadly(small)
        run = loop(small, silent)
        finished = in_its_own_process(point, lambda run=run: run.run()[0].round)
        for node in link.nodes:
            link.forget(node)
        attach(small, link, PATIENT)
        state, history = loop(small, silent).run()
        same_state(dict(state.state), expected)
        assert all(record.survivors == small.experiment.client_ids for record in history.records)
        # Whoever was killed between the charge and the stored update is charged again for the same round.
        require_right_budgets(link, rounds=ROUNDS, extra=1)
        if finished == ROUNDS:
            break
        killed += 1
        require_one_kind_of_share(link)
        point += 2 * EVERY
    assert killed >= 5


def test_a_checkpoint_that_was_being_written_is_the_old_or_the_new_one(
    federation: Callable[[], Paper], silent: Any, tmp_path: Path
) -> None:
    """Two flushes a file: before the first there is the old checkpoint, after the second the new one."""
    small = federation()
    deadly(small)
    state, history = loop(small, silent).run()
    for point in range(3):
        folder = tmp_path / f"checkpoints-{point}"
        checkpoint.save(folder, small.server.begin(), checkpoint.History())
        done = in_its_own_process(
            point, lambda folder=folder: checkpoint.save(folder, state, history) or "saved"
        )
        assert done is None
        found = checkpoint.load(folder)
        assert found is not None
        assert found[0].round == (0 if point == 0 else ROUNDS)
