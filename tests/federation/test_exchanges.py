"""Rounds of every shape over real clients and masks: several exchanges, another method by round, states that grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from accounting.audit import audit_files
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.run import run
from fedlora_priv.methods import Layout, Method, State, residual
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.errors import AssumptionError
from fedlora_priv.methods.fedask import FedASK
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsb import FedSB
from fedlora_priv.methods.fedsvd import FedSVD
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.lora_fair import LoRAFair
from fedlora_priv.methods.optimizers import Momentum
from fedlora_priv.methods.raclora import RACLoRA
from fedlora_priv.methods.rolora import RoLoRA
from fedlora_priv.methods.schedule import hybrid

from .paper import DENSE, LAYOUT, Killed, Meddling, Paper, crash, step_of

SMALL = Layout(tuple(replace(m, rank=1) for m in LAYOUT.modules), LAYOUT.heads)
FALLS_BACK = CrossTerm("sketch", fallback="two-pass", tolerance=1e-6)
EXACT_AFTER_ALL = CrossTerm("sketch", fallback="exact", tolerance=1e-6)
NEVER_FALLS_BACK = CrossTerm("sketch", fallback="two-pass", tolerance=0.999)

METHODS: dict[str, tuple[Callable[[], Method], tuple[int, int]]] = {
    "fra, two passes": (lambda: FRALoRA(CrossTerm("two-pass")), (2, 2)),
    "fra, fallback": (lambda: FRALoRA(FALLS_BACK), (2, 2)),
    "fra, exact fallback": (lambda: FRALoRA(EXACT_AFTER_ALL), (2, 2)),
    "fra, fallback not needed": (lambda: FRALoRA(NEVER_FALLS_BACK), (1, 1)),
    "fedask": (FedASK, (2, 2)),
    "lora-fair": (LoRAFair, (2, 2)),
    "rolora": (RoLoRA, (1, 1)),
    "hybrid": (lambda: hybrid(2, CrossTerm("two-pass")), (2, 1)),
    "fedsvd": (FedSVD, (1, 1)),
    "flora": (lambda: FLoRA(cross=CrossTerm("sketch")), (1, 1)),
    "fedex": (lambda: FedEx(CrossTerm("exact")), (1, 1)),
    "rac-lora": (RACLoRA, (1, 1)),
    "fed-sb": (FedSB, (1, 1)),
}


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(method: Method, *, mode: str = "secure", **options: Any) -> Paper:
        return on_paper(method, {"communication": DENSE, "secure_aggregation": {"mode": mode}}, **options)

    return make


def require_alike(state: State, wanted: State) -> None:
    """Adapters and residuals as the maps they are (signs of singular vectors are anybody's), the rest by value."""
    assert state.keys() == wanted.keys()
    for module in LAYOUT.modules:
        got, want = residual.whole(module, state).dense(), residual.whole(module, wanted).dense()
        assert np.abs(got - want).max() <= 1.5e-4 * max(1.0, np.abs(want).max()), module.name
    for name in state:
        if LAYOUT.role(name) in ("head", "R"):
            assert np.abs(state[name] - wanted[name]).max() <= 1.5e-4, name


@pytest.mark.parametrize("name", METHODS)
def test_the_state_after_each_round_is_what_the_method_makes_of_plain_sums(
    paper: Callable[..., Paper], name: str
) -> None:
    make, exchanges = METHODS[name]
    small = paper(make())
    for number in exchanges:
        before = small.state.state
        result = small.round()
        assert result.record.aborted is None
        assert not result.record.lost
        assert not result.record.refused
        assert len(result.record.exchanges) == number
        require_alike(small.state.state, small.plainly(result, before))
        first, *later = result.record.exchanges
        assert first.announced is None
        assert all(entry.announced and entry.transcript for entry in later)
        assert len({entry.session for entry in result.record.exchanges}) == number
    for client in small.clients:
        charges = client._setup.ledger.charges()
        assert [charge.round for charge in charges] == [1, 2]  # one charge a round, whatever its exchanges
        assert [max(r.exchange for r in charge.releases) + 1 for charge in charges] == list(exchanges)
        assert not any(charge.remasked or charge.announced_again for charge in charges)


def test_clients_of_unequal_ranks_are_counted_exactly(paper: Callable[..., Paper]) -> None:
    method = FlexLoRA()
    own = {f"client-{i}": method.at_client(SMALL) for i in (2, 4)}
    small = paper(method, own=own)
    for _ in range(2):
        before, result = small.state.state, small.round()
        assert result.summed is not None
        assert_array_equal(result.summed.sums["layer.0.query.held_by"], [5.0, 3.0])
        require_alike(small.state.state, small.plainly(result, before))


def test_unmasked_exchanges_give_the_same_integers(paper: Callable[..., Paper]) -> None:
    method = FRALoRA(FALLS_BACK)
    secure, plain = paper(method), paper(method, mode="insecure")
    for _ in range(2):
        masked, unmasked = secure.round(), plain.round()
        assert masked.summed is not None
        assert unmasked.summed is not None
        assert len(masked.summed.parts) == len(unmasked.summed.parts) == 2
        for one, other in zip(masked.summed.parts, unmasked.summed.parts, strict=True):
            assert one.ring_sum.any()
            assert_array_equal(one.ring_sum, other.ring_sum)
        assert unmasked.record.exchanges[1].announced == masked.record.exchanges[1].announced
    for name, array in secure.state.state.items():
        assert_array_equal(array, plain.state.state[name])


# --- losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["advertise", "mask"])
@pytest.mark.parametrize("optional", [True, False])
def test_a_client_that_is_lost_in_a_later_exchange_ends_the_round_with_what_there_is(
    paper: Callable[..., Paper], phase: Any, optional: bool
) -> None:
    cross = FALLS_BACK if optional else CrossTerm("two-pass")
    lost = Dropout(round=1, client_id="client-2", phase=phase, exchange=1)
    small = paper(FRALoRA(cross), dropouts=[lost])
    before, result = small.state.state, small.round()
    assert ("client-2", step_of(phase, 1)) in result.record.lost
    begun = [False] if phase == "advertise" else [False, True]
    assert [entry.transcript is None for entry in result.record.exchanges] == begun
    assert len(result.record.survivors) == 5
    if optional:
        assert result.record.aborted is None
        assert result.summed is not None
        assert len(result.summed.parts) == 1
        require_alike(small.state.state, small.plainly(result, before))
    else:
        assert result.record.aborted is not None
        said = "4 were ready" if phase == "advertise" else "mask of exchange 1"
        assert said in result.record.aborted
        assert small.state.state is before
    again = small.round()  # it is back
    assert again.record.aborted is None
    assert len(again.record.exchanges) == 2


@pytest.mark.parametrize("phase", ["confirm", "reveal"])
def test_a_client_that_is_lost_after_it_has_masked_is_in_the_later_sum(
    paper: Callable[..., Paper], phase: Any
) -> None:
    lost = Dropout(round=1, client_id="client-2", phase=phase, exchange=1)
    small = paper(FedASK(), dropouts=[lost])
    before, result = small.state.state, small.round()
    assert result.record.aborted is None
    require_alike(small.state.state, small.plainly(result, before))


def test_a_later_exchange_is_over_the_survivors_of_the_first(paper: Callable[..., Paper]) -> None:
    small = paper(FedASK(), dropouts=[Dropout(round=1, client_id="client-2", phase="mask")])
    before, result = small.state.state, small.round()
    assert result.record.survivors == ("client-1", "client-3", "client-4", "client-5")
    require_alike(small.state.state, small.plainly(result, before))


def test_who_is_summed_and_then_lost_before_the_second_exchange_loses_it(paper: Callable[..., Paper]) -> None:
    small = paper(FedASK(), dropouts=[Dropout(round=1, client_id="client-2", phase="confirm")])
    result = small.round()
    assert result.record.aborted == "exchange 1 needs all 5 clients of the first one, and 4 were ready"
    assert small.state.state is small.begun.state


# --- crashes -------------------------------------------------------------------------------------------

MESSAGES = 5 * (5 + 5)
"""Of a round with two exchanges and five clients: train, five phases, announce, five phases."""


@pytest.mark.parametrize("at", [3, *range(14, MESSAGES, 9)])
def test_a_crash_anywhere_in_a_round_changes_nothing_of_its_result(
    paper: Callable[..., Paper], at: int
) -> None:
    """All processes end after that many messages; what is left is the disks and the server's checkpoint."""
    whole, broken = paper(FRALoRA(CrossTerm("two-pass"))), paper(FRALoRA(CrossTerm("two-pass")))
    whole.round()
    crash(broken, at)
    result = broken.round()
    assert result.record.aborted is None
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])
    assert broken.trainings == 5  # what was stored is not trained again
    for client in broken.clients:
        (charge,) = client._setup.ledger.charges()
        assert charge.announced_again == 0


def test_after_a_crash_other_survivors_may_be_told_something_else(paper: Callable[..., Paper]) -> None:
    """One update, other maps of it: charged once, and the ledger says that there were two announcements."""
    small = paper(FedASK())

    def kill(step: Step, client_id: str, data: bytes) -> bytes:
        if (step.phase, step.exchange, client_id) == ("confirm", 1, "client-5"):
            raise Killed
        return data

    small.use(Meddling(small.clients, kill))
    with pytest.raises(Killed):
        small.round()
    small.live()
    small.use(LocalEngine(small.clients, [Dropout(round=1, client_id="client-2", phase="mask")]))
    before, result = small.state.state, small.round()
    assert result.record.aborted is None
    assert len(result.record.survivors) == 4
    require_alike(small.state.state, small.plainly(result, before))
    (charge,) = small.clients[0]._setup.ledger.charges()
    assert (charge.remasked, charge.announced_again) == (2, 1)
    assert small.trainings == 5


# --- the server's memory -------------------------------------------------------------------------------


def test_a_server_optimiser_goes_on_from_a_checkpoint(paper: Callable[..., Paper], tmp_path: Path) -> None:
    """Heavy ball with β = ½ over three rounds, against the plainest of it; the process ends after the second."""
    small = paper(FedIT(), optimizer=Momentum(1.0, 0.5))
    velocity: dict[str, Any] = dict.fromkeys(LAYOUT.shapes(), 0.0)
    for number in (1, 2, 3):
        before, result = small.state.state, small.round()
        mean = small.plainly(result, before)
        for name, array in small.state.state.items():
            velocity[name] = 0.5 * velocity[name] + (mean[name].astype(float) - before[name])
            assert np.abs(array - (before[name] + velocity[name])).max() <= 4e-5
        if number == 2:
            checkpoint.save(tmp_path / "checkpoints", small.state, History())
            stored = checkpoint.load(tmp_path / "checkpoints")
            assert stored is not None
            small.state = stored[0]


def test_an_optimiser_behind_an_svd_is_refused(paper: Callable[..., Paper]) -> None:
    with pytest.raises(AssumptionError, match="does more than move arrays"):
        paper(FedSVD(), optimizer=Momentum())


def test_every_byte_of_every_exchange_is_counted(paper: Callable[..., Paper]) -> None:
    small = paper(FedASK())
    sent: dict[str, int] = dict.fromkeys(small.experiment.client_ids, 0)

    def count(step: Step, client_id: str, data: bytes) -> bytes:
        sent[client_id] += len(data)
        return data

    small.use(Meddling(small.clients, count))
    small.round()
    assert small.engine.take().downloaded == sent


# --- a whole run ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_that_dies_in_a_second_exchange_ends_as_if_it_had_not(
    experiment_file: Callable[..., Path], silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real model, through `run`, its checkpoints and its report; an audit finds nothing wrong with either."""

    def outcome(name: str) -> Any:
        path = experiment_file(
            experiment={"output": str(tmp_path / name)},
            federation={"method": "fedask", "rounds": 2},
            training={"deterministic_noise": True},
            communication={"support": "dense", "density": 1.0, "value_bits": 12},
        )
        return run(Experiment.load(path), progress=silent)

    whole, real = outcome("whole"), LocalEngine.exchange

    def dying(engine: LocalEngine, messages: Any, step: Step) -> Any:
        if step == Step(2, "confirm", 1):
            raise Killed
        return real(engine, messages, step)

    with monkeypatch.context() as dies:
        dies.setattr(LocalEngine, "exchange", dying)
        with pytest.raises(Killed):
            outcome("broken")
    broken = outcome("broken")
    states = []
    for one in (whole, broken):
        assert one.problem is None
        stored = checkpoint.load(one.folder / "checkpoints")
        assert stored is not None
        states.append(stored[0].state)
        verdicts = audit_files(one.folder / "report.json", one.folder / "ledger.jsonl")
        # But that noise which anybody can repeat protects nobody, and says so.
        assert [verdict.check for verdict in verdicts if verdict.status == "FAIL"] == [13]
    for name, array in states[0].items():
        assert_array_equal(array, states[1][name])
    assert [len(entry["remasked"]) for entry in broken.report["rounds"]] == [0, 5]
