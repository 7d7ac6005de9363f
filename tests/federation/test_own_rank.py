"""Ranks that clients prune by themselves: what is announced, who believes what, and what a crash may change of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from accounting.planning import Plan
from fedlora_priv.adapters import layout as layout_of
from fedlora_priv.allocation import AllocationError, RankPruning
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.empirical import one_run
from fedlora_priv.engines.base import Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.errors import ConfigError, RunFolderError
from fedlora_priv.federation import allocating, own_rank, wire
from fedlora_priv.federation.allocating import of_rank, require_allocations
from fedlora_priv.federation.client import LocalResult
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.federation.learner import load_learner
from fedlora_priv.federation.own_rank import FADED, Announcements
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods import Role, State, for_experiment
from fedlora_priv.modeling import with_rank
from protocols.prg import SecretStream

from .moves import meddled
from .paper import LAYOUT, RUN, Killed, Meddling, Paper, crash
from .test_suspension import Restarting

CLIENTS = 6
RULE = RankPruning(keep=0.7, least=1)
"""3 → 2 → 1."""
SECTIONS: dict[str, dict[str, Any]] = {
    "federation": {"clients": CLIENTS, "rounds": 4, "method": "hetlora"},
    "lora": {"rank": 3},
    "training": {"deterministic_noise": True},
    "communication": {"support": "dense", "density": 1.0, "value_bits": 16},
    "allocation": {
        "strategy": "ranks",
        "ranks": [2, 3],
        "tiers": [{"clients": ["client-6"], "max_rank": 2}],
        "pruning": {"keep": 0.7},
    },
}
FULL = {**dict.fromkeys([f"client-{i}" for i in range(1, CLIENTS)], 3), "client-6": 2}
FADING = {(2, "client-1"), (2, "client-3"), (2, "client-6"), (3, "client-1")}
"""Whose tail fades, in which round."""


class Fading(Paper):
    """A federation on paper in which the tails of some clients fade and others grow; notes at which rank who trains."""

    fading = FADING
    trained_ranks: dict[tuple[int, str], int]

    def train(
        self,
        client_id: str,
        start: State,
        plan: Plan,
        trains: frozenset[Role],
        stream: SecretStream,
        *rest: Any,
    ) -> LocalResult:
        result, number = super().train(client_id, start, plan, trains, stream, *rest), self.state.round + 1
        self.__dict__.setdefault("trained_ranks", {})[number, client_id] = start[
            LAYOUT.modules[1].a_name
        ].shape[0]
        factor = np.float32(0.5 if (number, client_id) in self.fading else 2.0)
        moved = {
            name: array
            if LAYOUT.role(name) != "B"
            else factor * start[name] + (factor > 1) * (array - start[name])
            for name, array in result.state.items()
        }
        return replace(result, state=moved)

    def ranks(self, number: int) -> dict[str, int]:
        return {c: self.trained_ranks[number, c] for c in self.experiment.client_ids}


def an_experiment(experiment_file: Callable[..., Path], **sections: dict[str, Any]) -> Experiment:
    whole = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {*SECTIONS, *sections}}
    return Experiment.load(experiment_file(**whole))


@pytest.fixture
def fading(experiment_file: Callable[..., Path], tmp_path: Path) -> Any:
    made: list[Fading] = []

    def make(dropouts: Any = (), **sections: dict[str, Any]) -> Fading:
        experiment = an_experiment(experiment_file, **sections)
        made.append(
            Fading(experiment, for_experiment(experiment), tmp_path / f"paper-{len(made)}", dropouts=dropouts)
        )
        return made[-1]

    yield make
    for paper in made:
        paper.close()


# --- the rule ----------------------------------------------------------------------------------------


@given(
    ranks=st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=12),
    keep=st.floats(0.05, 0.95),
    least=st.integers(1, 9),
    needed=st.integers(1, 12),
    data=st.data(),
)
def test_ranks_fall_by_the_rule_and_never_below_what_components_need(
    ranks: list[int], keep: float, least: int, needed: int, data: st.DataObject
) -> None:
    rule = RankPruning(keep=keep, least=least)
    now = {f"client-{i}": rank for i, rank in enumerate(ranks)}
    faded = data.draw(st.sets(st.sampled_from(list(now))))
    left = rule.after(now, faded, needed)
    assert list(left) == list(now)
    largest = max(ranks)
    for client_id, rank in now.items():
        assert left[client_id] in ({rank, rule.kept(rank)} if client_id in faded else {rank})
        assert rule.kept(rank) <= rank
    for component in range(largest):
        before, after = (sum(rank > component for rank in of.values()) for of in (now, left))
        assert after >= min(before, needed)
    # Nobody is held up without need.
    for client_id in (c for c in faded if left[c] == now[c] > rule.kept(now[c])):
        assert sum(rank >= now[client_id] for rank in left.values()) <= needed


def test_the_layout_of_a_rank_is_that_of_a_model_of_that_rank(experiment_file: Callable[..., Path]) -> None:
    for lora in ({"rank": 3, "alpha": 5.0}, {"rank": 3, "alpha": 5.0, "use_rslora": True}):
        experiment = an_experiment(experiment_file, lora=lora)
        model = load_learner(experiment, ["0", "1"], lambda line: None).model
        for rank in (1, 2, 3):
            assert of_rank(experiment, layout_of(model), rank) == layout_of(with_rank(model, rank))


# --- rounds ------------------------------------------------------------------------------------------


def test_a_rank_falls_where_the_tail_has_faded_and_enough_others_have_it(fading: Any) -> None:
    small = fading()
    results = [small.round() for _ in range(4)]
    assert [result.record.faded for result in results] == [
        (),
        ("client-1", "client-3", "client-6"),
        ("client-1",),
        (),
    ]
    assert small.ranks(2) == FULL
    # Five had component 3 and three need to; client-6 was not held up.
    assert small.ranks(3) == FULL | {"client-1": 2, "client-3": 2, "client-6": 1}
    assert small.ranks(4) == FULL | {"client-1": 1, "client-3": 2, "client-6": 1}
    assert [result.record.findings.ranks for result in results] == [
        (),
        (),
        (("client-1", 2), ("client-3", 2), ("client-6", 1)),
        (("client-1", 1), ("client-3", 2), ("client-6", 1)),
    ]
    assert all(len(result.record.survivors) == CLIENTS for result in results)


def test_whoever_would_leave_a_component_too_few_is_held_up_in_the_order_of_names(fading: Any) -> None:
    small = fading()
    small.fading = {(2, f"client-{i}") for i in (2, 3, 4, 5)} | {(3, "client-4")}
    results = [small.round() for _ in range(4)]
    assert small.ranks(3) == FULL | {"client-2": 2, "client-3": 2}
    assert results[2].record.faded == ("client-4",)  # it may announce again, and is held up again
    assert small.ranks(4) == small.ranks(3)


@pytest.mark.parametrize("phase", ["advertise", "mask", "reveal"])
def test_a_lost_client_keeps_its_rank_unless_it_was_heard(fading: Any, phase: Any) -> None:
    small = fading(dropouts=[Dropout(round=2, client_id="client-1", phase=phase)])
    results = [small.round() for _ in range(3)]
    heard = phase != "advertise"
    assert ("client-1" in results[1].record.faded) is heard
    assert small.ranks(3)["client-1"] == (2 if heard else 3)
    # Either way it takes part again: its own announcement may have been lost on the way.
    assert "client-1" in results[2].record.survivors


def test_what_is_announced_in_a_lost_round_counts(fading: Any) -> None:
    lost = [Dropout(round=2, client_id=f"client-{i}", phase="mask") for i in (2, 4, 5)]
    small = fading(dropouts=lost)
    small.round()
    before = small.state.state
    assert small.round().record.aborted is not None
    assert all(np.array_equal(before[name], array) for name, array in small.state.state.items())
    assert small.round().summed is not None
    assert small.ranks(3) == FULL | {"client-1": 2, "client-3": 2, "client-6": 1}


def test_a_process_for_every_message_finds_the_rank_of_the_round(fading: Any) -> None:
    alive, restarting = fading(), fading()
    restarting.use(Restarting(restarting))
    for _ in range(4):
        one, other = alive.round(), restarting.round()
        assert one.record.faded == other.record.faded
        assert one.summed is not None
        assert other.summed is not None
        assert_array_equal(one.summed.parts[0].ring_sum, other.summed.parts[0].ring_sum)
    assert restarting.ranks(4)["client-1"] == 1


# --- crashes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [3, CLIENTS, CLIENTS + 2])
def test_processes_that_end_in_a_round_announce_the_same_again(fading: Any, after: int) -> None:
    """The server begins the round anew from its checkpoint; clients mask what they had trained, and say the same."""
    whole, broken = fading(), fading()
    for small in (whole, broken):
        small.round()
    expected = whole.round()
    crash(broken, after)
    charged = [len(client._setup.ledger.charges(round=2)) for client in broken.clients]
    assert charged == [1 if i < after else 0 for i in range(CLIENTS)]
    found = broken.round()
    assert found.record.faded == expected.record.faded
    assert found.summed is not None
    assert expected.summed is not None
    assert_array_equal(found.summed.parts[0].ring_sum, expected.summed.parts[0].ring_sum)
    assert [len(client._setup.ledger.charges(round=2)) for client in broken.clients] == [1] * CLIENTS
    assert broken.round().summed is not None
    assert broken.ranks(3) == FULL | {"client-1": 2, "client-3": 2, "client-6": 1}


def test_a_client_that_ends_before_it_has_noted_its_announcement_has_said_nothing(
    fading: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = fading()
    small.round()

    def ends(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.parent.name == "client-3":
            raise Killed
        write_atomically(path, data, mode)

    monkeypatch.setattr(own_rank, "write_atomically", ends)
    with pytest.raises(Killed):
        small.round()
    monkeypatch.undo()
    trainings = small.trainings
    small.live()
    result = small.round()
    assert result.record.faded == ("client-1", "client-3", "client-6")
    # Those that came after it in the roster; its own update was stored.
    assert small.trainings == trainings + 3
    assert small.round().summed is not None


# --- servers that lie ---------------------------------------------------------------------------------


def with_ranks(small: Fading, **ranks: int) -> RoundResult:
    """The next round, of which the server says that these are the ranks that were pruned."""
    told = tuple(sorted((f"client-{name.removeprefix('c')}", rank) for name, rank in ranks.items()))
    small.state = replace(small.state, findings=Findings(ranks=told))
    return small.round()


def charged(small: Fading, number: int) -> list[int]:
    return [len(client._setup.ledger.charges(round=number)) for client in small.clients]


TRUE = {"c1": 2, "c3": 2, "c6": 1}


@pytest.mark.parametrize(
    ("ranks", "who"),
    [
        # It has announced nothing, and client-3 might be held up.
        ({"c1": 2, "c2": 2, "c6": 1}, {"client-2"}),
        ({**TRUE, "c1": 1}, {"client-1"}),  # twice at once
        ({"c1": 2, "c3": 2}, set()),  # client-6's announcement might have been lost
        ({"c2": 2, "c4": 2}, {"client-2", "client-4"}),
    ],
)
def test_a_client_refuses_a_rank_of_its_own_that_it_has_not_announced(
    fading: Any, ranks: dict[str, int], who: set[str]
) -> None:
    small = fading()
    for _ in range(2):
        small.round()
    result = with_ranks(small, **ranks)
    assert result.record.refused == [(client_id, "FederationError") for client_id in sorted(who)]
    assert charged(small, 3) == [int(client_id not in who) for client_id in small.experiment.client_ids]


@pytest.mark.parametrize(
    "ranks",
    [
        {"c1": 2, "c3": 2},  # client-6 again at 2
        {"c1": 3, "c3": 2, "c6": 1},  # a rank that nobody has pruned to
        {"c1": 2, "c3": 2, "c6": 4},  # more than the file gives it
        {},
    ],
)
def test_everybody_refuses_ranks_that_rise_or_that_no_rule_gives(fading: Any, ranks: dict[str, int]) -> None:
    small = fading()
    for _ in range(3):
        small.round()
    result = with_ranks(small, **ranks)
    assert {client_id for client_id, _ in result.record.refused} == set(small.experiment.client_ids)
    assert result.summed is None
    assert charged(small, 4) == [0] * CLIENTS


def test_everybody_refuses_ranks_that_leave_a_component_too_few(fading: Any) -> None:
    small = fading()
    small.fading = {(2, f"client-{i}") for i in range(1, CLIENTS)}
    for _ in range(2):
        small.round()
    thin = Findings(ranks=tuple((f"client-{i}", 2) for i in (1, 2, 3))).to_blobs()
    result = meddled(small, "train", 0, lambda message: replace(message, blobs={**message.blobs, **thin}))
    assert result.record.refused == [
        (client_id, "FederationError") for client_id in small.experiment.client_ids
    ]
    assert charged(small, 3) == [0] * CLIENTS


def test_nothing_is_remembered_of_ranks_of_clients_that_there_are_none_of(fading: Any) -> None:
    """A server could fill a client's memory with them, one message after the other."""
    small = fading()
    small.round()
    strangers = Findings(ranks=tuple((f"stranger-{i:04}", 1) for i in range(1000)))
    message = small.server.task(small.state).to_message(small.begun.state)
    changed = wire.encode(replace(message, blobs={**message.blobs, **strangers.to_blobs()}))
    remembered = allocating._allocated.cache_info().currsize
    assert wire.decode(small.clients[0].handle(changed)).kind == wire.REFUSED
    assert allocating._allocated.cache_info().currsize == remembered


def test_a_round_does_not_come_again_with_other_ranks(fading: Any) -> None:
    small = fading()
    for _ in range(2):
        small.round()
    before = small.state
    crash(small, CLIENTS)  # all have trained, and announced
    small.state = replace(before, findings=Findings(ranks=(("client-1", 2),)))
    assert small.round().summed is None
    small.state = before
    result = small.round()
    assert result.record.survivors == small.experiment.client_ids
    assert charged(small, 3) == [1] * CLIENTS


def test_clients_that_are_told_different_ranks_do_not_sum(fading: Any) -> None:
    """Each hears what could be true for it; then the contributors that they expect, and their masks, differ."""
    small = fading()
    for _ in range(2):
        small.round()
    honest = small.server.task(small.state)
    other = small.server.task(
        replace(small.state, findings=Findings(ranks=(("client-1", 2), ("client-3", 2))))
    )

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        if step.phase != "train" or client_id != "client-2":
            return data
        _, proposal = wire.decode(data).without_blob(wire.PROPOSAL)
        assert proposal is not None
        told = other.to_message(small.begun.state)
        return wire.encode(told.with_blob(wire.PROPOSAL, proposal))

    small.use(Meddling(small.clients, meddle))
    result = small.round()
    assert honest.state_digest != other.state_digest
    assert [client_id for client_id, _ in result.record.refused] == ["client-2"]
    assert "client-2" not in result.record.survivors


# --- clients that answer nonsense -----------------------------------------------------------------------


def answering(small: Fading, client_id: str, change: Callable[[wire.Message], wire.Message]) -> None:
    """Have a client's answer that it has trained be another one."""

    class Edited(LocalEngine):
        def exchange(self, messages: Any, step: Step) -> Any:
            answers = dict(super().exchange(messages, step))
            if step.phase == "train":
                answers[client_id] = wire.encode(change(wire.decode(answers[client_id])))
            return answers

    small.use(Edited(small.clients))


@pytest.mark.parametrize("bit", [None, 2, -1, True, "1", 1.0])
def test_whoever_announces_nothing_or_nonsense_is_lost(fading: Any, bit: Any) -> None:
    small = fading()
    fields = {} if bit is None else {FADED: bit}
    answering(small, "client-4", lambda answer: replace(answer, fields=fields))
    result = small.round()
    assert result.record.lost == [("client-4", "train")]
    assert "client-4" not in result.record.survivors
    assert result.summed is not None


def test_what_is_announced_beside_a_garbled_advertisement_was_not_heard(fading: Any) -> None:
    """Else the report would list an announcement of a client that was not there, and its audit fail."""
    small = fading()
    small.round()

    def garbled(answer: wire.Message) -> wire.Message:
        assert answer.fields == {FADED: 1}
        return replace(answer, blobs={**answer.blobs, wire.ADVERTISEMENT: b"nonsense"})

    answering(small, "client-3", garbled)
    record = small.round().record
    assert record.lost == [("client-3", "train")]
    assert record.faded == ("client-1", "client-6")
    small.use(LocalEngine(small.clients))
    assert "client-3" in small.round().record.survivors
    assert small.ranks(3) == FULL | {"client-1": 2, "client-6": 1}


def test_a_damaged_note_is_said_and_not_guessed(
    fading: Any, experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = an_experiment(experiment_file)
    notes = Announcements(tmp_path, RUN.hex(), "client-1", experiment, LAYOUT, RULE)
    notes.require(1, Findings())
    for text in (
        b"",
        b"{}",
        b"[]",
        b'{"round": "1", "ranks": [], "faded": true}',
        b'{"round": 1, "ranks": [["a"]], "faded": 0}',
    ):
        (tmp_path / f"announced-{RUN.hex()}.json").write_bytes(text)
        with pytest.raises(RunFolderError, match="damaged"):
            notes.require(2, Findings())


# --- the experiment file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"federation": {"method": "fedit"}}, "not for ranks that clients prune"),
        ({"federation": {"method": "flexlora"}}, "not for ranks that clients prune"),
        (
            {"allocation": {"strategy": "fedra", "ranks": [], "tiers": []}},
            "allocation.pruning has no effect with allocation.strategy = 'fedra'",
        ),
        (
            {"allocation": {"strategy": "all", "ranks": [], "tiers": []}},
            "allocation.pruning has no effect with allocation.strategy = 'all'",
        ),
        ({"allocation": {"pruning": {"least": 3}}}, "no rank on offer is above it"),
        ({"allocation": {"pruning": {"keep": 1.0}}}, "allocation.pruning.keep should be less than 1"),
        ({"allocation": {"pruning": {"penalty": -0.1}}}, "allocation.pruning.penalty"),
        ({"allocation": {"pruning": {"gamma": 0.5}}}, "unknown key 'gamma'"),
    ],
)
def test_pruning_is_refused_where_it_does_nothing(
    experiment_file: Callable[..., Path], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        an_experiment(experiment_file, **sections)


def test_an_attack_with_canaries_is_refused_where_models_shrink(
    experiment_file: Callable[..., Path], silent: Any
) -> None:
    with pytest.raises(ConfigError, match="prune their ranks have other models later on"):
        one_run.audit(an_experiment(experiment_file), progress=silent)


def test_more_allocations_than_a_report_states_are_refused_beforehand(
    experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocating, "MOST_ALLOCATIONS", 11)
    for rounds, most in ((30, 12), (12, 12), (11, None)):  # five clients may give up 3 → 2 → 1, and one 2 → 1
        experiment = an_experiment(experiment_file, federation={"rounds": rounds})
        if most is None:
            require_allocations(experiment, LAYOUT)
            continue
        with pytest.raises(AllocationError, match=f"^{most} rounds have allocations of their own"):
            require_allocations(experiment, LAYOUT)
