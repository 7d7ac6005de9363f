"""Layers that the server scores again during a run: who trains what follows, the same for all, or nothing sums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from accounting import contract as accounted
from accounting.case import Case
from accounting.case import Findings as Answer
from accounting.checks.parts import check_scored
from fedlora_priv.allocation import AllocationError
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.federation import contracts, wire
from fedlora_priv.federation.allocating import allocation
from fedlora_priv.federation.rescoring import Rescoring
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.methods import State

from .paper import LAYOUT, Meddling, Paper, crash
from .test_parts import NARROW, SIX, enough, plainly, unequal

SCORED = {"strategy": "fisher", "scores_of": "public rows", "rescore_every": 2, "tiers": NARROW}
BLOB = "findings/scores"
RANKS = {"lora": {"rank": 3}}


def measured(state: State) -> tuple[float, ...]:
    """What each layer is worth: some numbers that follow from every array of the state."""
    rng = np.random.default_rng(zlib.crc32(b"".join(state[name].tobytes() for name in sorted(state))))
    return tuple(9 * rng.random(2))


@dataclass
class Scored:
    """A federation on paper whose server scores layers, and what it has found before each round."""

    paper: Paper
    found: list[Findings] = field(default_factory=list)

    def look(self) -> None:
        """What the loop does once a round has ended, and before the first."""
        self.paper.state = Rescoring(self.paper.experiment, LAYOUT, measured).before(self.paper.state)

    def round(self) -> RoundResult:
        self.look()
        self.found.append(self.paper.state.findings)
        return self.paper.round()


@pytest.fixture
def scored(tmp_path: Path) -> Iterator[Callable[..., Scored]]:
    made: list[Paper] = []

    def make(dealt: dict[str, Any] = SCORED, **more: Any) -> Scored:
        made.append(unequal(tmp_path, dealt, **RANKS, **more))
        return Scored(made[-1])

    yield make
    for one in made:
        one.close()


# When.


@pytest.mark.parametrize(
    ("more", "changes"),
    [({}, [1, 3]), ({"rescore_every": 1}, [1, 2, 3, 4]), ({"rescore_every": 9}, [1])],
)
def test_layers_are_scored_before_the_first_round_and_again_after_every_so_many(
    scored: Callable[..., Scored], more: dict[str, Any], changes: list[int]
) -> None:
    run = scored(SCORED | more)
    for _ in range(4):
        assert run.round().summed is not None
    before = [Findings(), *run.found]
    assert [n for n in range(1, 5) if before[n] != before[n - 1]] == changes
    rounds = enumerate(run.found, 1)
    assert [run.paper.experiment.allocation.scores_before(n) for n, _ in rounds] == [
        n in changes for n in range(1, 5)
    ]
    run.look()
    assert run.paper.state.findings == run.found[-1], "after the last round nobody would be dealt by them"


def test_scores_of_the_file_hold_until_layers_are_scored_again(scored: Callable[..., Scored]) -> None:
    run = scored(SCORED | {"scores": [1.0, 5.0]})
    for _ in range(4):
        run.round()
    assert run.found[:2] == [Findings(), Findings()]
    assert run.found[2] == run.found[3] != Findings()


def wrong(*scores: float) -> Callable[[State], tuple[float, ...]]:
    return lambda state: scores


@pytest.mark.parametrize("measure", [wrong(float("nan"), 1.0), wrong(1.0, -1.0), wrong(1.0, 2.0, 3.0)])
def test_scores_by_which_nobody_can_deal_leave_those_before(
    scored: Callable[..., Scored], measure: Callable[[State], tuple[float, ...]]
) -> None:
    run = scored()
    run.look()
    rescoring = Rescoring(run.paper.experiment, LAYOUT, measure)
    later = replace(run.paper.state, round=2)
    assert rescoring.before(later) == later
    of_file = scored(SCORED | {"scores": [1.0, 5.0]}).paper
    kept = Rescoring(of_file.experiment, LAYOUT, measure).before(replace(of_file.state, round=2))
    assert kept.findings == Findings((1.0, 5.0))
    with pytest.raises(AllocationError):
        rescoring.before(replace(later, round=0, findings=Findings()))


# The same for everybody.


budgets = st.lists(st.integers(1, 2), min_size=6, max_size=6)
lost = st.dictionaries(st.sampled_from(SIX), st.sampled_from(["share", "mask", "confirm"]), max_size=2)


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["fisher", "fedpilot"]),
    budgets,
    st.integers(1, 3),
    st.sampled_from([None, [3.0, 0.5]]),
    st.lists(lost, min_size=3, max_size=3),
)
def test_every_client_derives_what_the_server_deals_and_sums_are_of_those_who_train(
    tmp_path_factory: pytest.TempPathFactory,
    strategy: str,
    room: list[int],
    every: int,
    given_scores: list[float] | None,
    losses: list[dict[str, str]],
) -> None:
    tiers = [{"clients": [c], "max_layers": 1} for c, r in zip(SIX, room, strict=True) if r == 1]
    dealt = {"strategy": strategy, "scores_of": "rows", "rescore_every": every, "tiers": tiers}
    dealt |= {} if given_scores is None else {"scores": given_scores}
    gone = [Dropout(round=i, client_id=c, phase=p) for i, by in enumerate(losses, 1) for c, p in by.items()]  # type: ignore[arg-type]  # it is one of the phases
    paper = unequal(tmp_path_factory.mktemp("scored"), dealt, "fedit", gone, **RANKS)
    run = Scored(paper)
    try:
        for number in range(1, 4):
            run.look()
            before = paper.state
            task = paper.server.task(before)
            message = wire.decode(wire.encode(task.to_message(paper.begun.state)))
            for client in paper.clients:
                setup = client._setup
                theirs = RoundTask.from_message(
                    message, LAYOUT, setup.method, paper.begun.state, setup.experiment
                )
                assert theirs.findings == before.findings
                assert theirs.first.digest() == task.first.digest()
                assert theirs.state_digest == task.state_digest
            result = paper.round()
            left = tuple(c for c in SIX if losses[number - 1].get(c, "confirm") == "confirm")
            if not enough(paper, number, left):
                assert result.summed is None
                continue
            assert result.record.survivors == left, result.record.aborted
            assert result.record.findings == before.findings
            for name, array in plainly(paper, number, left, before.state).items():
                change = np.linalg.norm(array - before.state[name])
                assert np.linalg.norm(paper.state.state[name] - array) <= 2e-3 * change + 1e-7, name
    except AllocationError:
        reject()  # with so little room there is none
    finally:
        paper.close()


def test_a_reservation_names_the_findings_of_its_round(scored: Callable[..., Scored]) -> None:
    run = scored(SCORED | {"rescore_every": 1})
    run.round()
    run.round()
    paper = run.paper
    stated = contracts.stated(paper.experiment, paper.method, LAYOUT, dict(enumerate(run.found, 1)))
    assert [c["allocation"]["findings"] for c in stated["contracts"]] == [
        {"scores": list(found.scores), "scores_of": "public rows", "rescored_every": 1} for found in run.found
    ]
    for client in paper.clients:
        ledger = client._setup.ledger
        for charge in ledger.charges():
            row = ledger.rows()[charge.reservation].entry
            assert row.versions[accounted.RECORDED_AS] == accounted.round_digest(stated, charge.round)  # type: ignore[union-attr]  # it is a reservation


def test_a_crash_between_two_scorings_changes_nothing(scored: Callable[..., Scored]) -> None:
    whole, broken = scored(), scored()
    for run in (whole, broken):
        run.round()
    broken.look()
    crash(broken.paper, 13)
    for _ in range(2):
        mine, theirs = whole.round(), broken.round()
        assert mine.record.survivors == theirs.record.survivors == SIX
    assert whole.found == broken.found
    assert all(
        np.array_equal(broken.paper.state.state[name], array)
        for name, array in whole.paper.state.state.items()
    )
    assert broken.paper.trainings == 3 * len(SIX), "what was trained is kept, and charged once"


# A server that says different things.


def told(run: Scored, scores: tuple[float, ...], whom: tuple[str, ...]) -> RoundResult:
    """A round in which some clients are told of other scores, in a message that is right by itself."""
    task = run.paper.server.task(run.paper.state)
    other = replace(task, findings=Findings(scores))

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        message = wire.decode(data)
        if step.phase != "train" or client_id not in whom:
            return data
        fields = {**message.fields, "state_sha256": other.state_digest.hex()}
        return wire.encode(
            replace(message, fields=fields, blobs={**message.blobs, BLOB: other.findings.to_blobs()[BLOB]})
        )

    run.paper.use(Meddling(run.paper.clients, meddle))
    return run.paper.round()


@pytest.mark.parametrize("alike", [True, False], ids=["twice the scores", "the other way round"])
@pytest.mark.parametrize("strategy", ["fisher", "fedpilot"])
def test_clients_that_are_told_different_scores_do_not_sum(
    scored: Callable[..., Scored], strategy: str, alike: bool
) -> None:
    run = scored(SCORED | {"strategy": strategy})
    run.look()
    low, high = run.paper.state.findings.scores
    other = (2 * low, 2 * high) if alike else (high, low)
    same = [allocation(run.paper.experiment, LAYOUT, 1, Findings(s)) for s in ((low, high), other)]
    assert same[0] == same[1] or not alike
    result = told(run, other, SIX[3:])
    assert result.summed is None
    assert {client_id for client_id, _ in result.record.refused} == set(SIX[3:])
    charged = [client.client_id for client in run.paper.clients if client._setup.ledger.charges()]
    assert charged == list(SIX[:3]), "whoever was told otherwise has spent nothing"


def test_one_client_that_is_told_otherwise_is_not_in_the_sum(scored: Callable[..., Scored]) -> None:
    run = scored(SCORED | {"tiers": []})
    run.look()
    low, high = run.paper.state.findings.scores
    result = told(run, (2 * low, 2 * high), SIX[:1])
    assert result.record.survivors == SIX[1:]
    assert [client_id for client_id, _ in result.record.refused] == [SIX[0]]


def test_scores_that_change_before_their_time_are_found_by_an_audit(scored: Callable[..., Scored]) -> None:
    """No client remembers the ones before; but each has recorded those of its round."""
    run = scored(SCORED | {"rescore_every": 2})
    run.round()
    chosen = Findings((1.0, 7.0))
    run.paper.state = replace(run.paper.state, findings=chosen)
    assert run.paper.round().record.survivors == SIX
    for second, problems in ((run.found[0], 0), (chosen, 1)):
        stated = contracts.stated(
            run.paper.experiment, run.paper.method, LAYOUT, {1: run.found[0], 2: second}
        )
        answer = Answer()
        check_scored(Case({"method": stated}, {}, None, None), answer)
        assert len(answer.problems) == problems


def test_what_was_trained_by_some_findings_is_not_uploaded_by_others(scored: Callable[..., Scored]) -> None:
    """A round that begins again by other scores is trained and charged again, once; after its release, not at all."""
    run = scored()
    run.look()
    first, other = run.paper.state, replace(run.paper.state, findings=Findings((1.0, 7.0)))
    crash(run.paper, len(SIX))
    run.paper.state = other
    result = run.paper.round()
    assert result.record.survivors == SIX
    assert run.paper.trainings == 2 * len(SIX)
    for client in run.paper.clients:
        ledger = client._setup.ledger
        trained, released = ledger.charges(round=1)
        assert (bool(trained.releases), bool(released.releases)) == (False, True)
        digests = {
            ledger.rows()[charge.reservation].entry.versions[accounted.RECORDED_AS]  # type: ignore[union-attr]  # it is a reservation
            for charge in (trained, released)
        }
        assert len(digests) == 2, "each names the contract that it was made under"
    run.paper.state = first
    again = run.paper.round()
    assert again.summed is None
    assert [client_id for client_id, _ in again.record.refused] == list(SIX)
    assert run.paper.trainings == 2 * len(SIX)


Change = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.mark.parametrize(
    ("round", "change"),
    [
        (1, lambda blobs: blobs | {BLOB: struct.pack("<2d", 1.0, 2.0)}),  # the file's hold until round 2
        (3, lambda blobs: {name: blob for name, blob in blobs.items() if name != BLOB}),
        (3, lambda blobs: blobs | {BLOB: blobs[BLOB][:8]}),
        (3, lambda blobs: blobs | {BLOB: blobs[BLOB] + bytes(8)}),
        (3, lambda blobs: blobs | {BLOB: struct.pack("<2d", 1.0, float("nan"))}),
        (3, lambda blobs: blobs | {BLOB: struct.pack("<2d", 1.0, -1.0)}),
        (3, lambda blobs: blobs | {"findings/ranks": b'{"client-1":1}'}),
        (3, lambda blobs: blobs | {"findings/more": b""}),
        (3, lambda blobs: blobs | {BLOB: struct.pack("<2d", 1.0, 2.0)}),  # others than the digest is of
    ],
)
def test_findings_that_cannot_be_are_refused_before_anything_is_charged(
    scored: Callable[..., Scored], round: int, change: Change
) -> None:
    run = scored(SCORED | {"scores": [1.0, 5.0]})
    for _ in range(round - 1):
        run.round()
    run.look()
    message = run.paper.server.task(run.paper.state).to_message(run.paper.begun.state)
    client = run.paper.clients[0]
    changed = replace(message, blobs=change(dict(message.blobs)))
    answer = wire.decode(client.handle(wire.encode(changed)))
    assert (answer.kind, answer.fields) == (wire.REFUSED, {"code": "FederationError"})
    assert len(client._setup.ledger.charges()) == round - 1
    assert wire.decode(client.handle(wire.encode(message))).kind == wire.TRAINED
