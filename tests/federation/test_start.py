"""What a round starts from: masked and whole states, how they travel, and servers that send other ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.errors import ConfigError, FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.start import SUPPORT, VALUES, masked, moving, packed, require_masked, unpacked
from fedlora_priv.methods import Method
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.optimizers import Adam
from fedlora_priv.methods.rolora import RoLoRA
from protocols.sparsify import Support, dense

from .paper import DENSE, LAYOUT, Killed, Meddling, Paper, initial_state

REFUSED = wire.Message(wire.REFUSED, {"code": "FederationError"})
BEGUN = initial_state()


def moved(seed: int, share: float, names: Any = None) -> dict[str, np.ndarray]:
    """BEGUN with about that share of its coordinates moved, in arrays of these names."""
    rng = np.random.default_rng(seed)
    steps = {n: rng.normal(size=a.shape) * (rng.random(a.shape) < share) for n, a in sorted(BEGUN.items())}
    return {n: (a + steps[n] * (names is None or n in names)).astype(np.float32) for n, a in BEGUN.items()}


def flat(state: Any, names: Any) -> np.ndarray:
    return np.concatenate([state[name].ravel() for name in sorted(names)])


# --- what travels --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 0.2, 0.98, 1.0]))
def test_any_state_arrives_to_the_bit_in_the_shorter_of_two_forms(seed: int, share: float) -> None:
    state = moved(seed, share)
    shapes, blobs = packed(state, BEGUN)
    sizes = {name: tuple(shape) for name, shape in shapes.items()}
    received = unpacked(blobs, sizes, BEGUN)
    assert {n: a.tobytes() for n, a in received.items()} == {n: a.tobytes() for n, a in state.items()}
    differ = {n for n, a in state.items() if (a != BEGUN[n]).any()}
    assert set(shapes) == differ
    if not differ:
        assert blobs == {}
        return
    changed = flat(state, differ) != flat(BEGUN, differ)
    sparse = 4 * int(changed.sum()) + len(Support(changed.size, np.flatnonzero(changed)).to_bytes())
    assert sum(map(len, blobs.values())) == min(sparse, 1 + 4 * changed.size)


def test_an_array_that_was_not_there_and_a_negative_zero_arrive_too() -> None:
    residual = {
        "layer.0.query.base_B": np.zeros((14, 1), np.float32),
        "layer.0.query.base_A": np.ones((1, 12), "f4"),
    }
    signed = {**BEGUN, "classifier.bias": np.array([-0.0, 0.0], np.float32)}
    for state in (
        BEGUN | residual,
        BEGUN | {"layer.0.query.base_B": residual["layer.0.query.base_B"]},
        signed,
    ):
        shapes, blobs = packed(state, BEGUN)
        received = unpacked(blobs, {n: tuple(s) for n, s in shapes.items()}, BEGUN)
        assert {n: a.tobytes() for n, a in received.items()} == {n: a.tobytes() for n, a in state.items()}


# --- the mask ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.25, 0.999, 1.0])
def test_what_has_moved_most_keeps_its_values_and_the_rest_starts_as_it_began(density: float) -> None:
    state, moves = moved(1, 1.0), moving(FedIT(), LAYOUT, 4)
    start = masked(state, BEGUN, moves, density)
    now, before, got = (flat(s, moves) for s in (state, BEGUN, start))
    k = max(1, int(density * now.size))
    kept = sorted(range(now.size), key=lambda i: (-abs(now[i] - before[i]), i))[:k]
    wanted = before.copy()
    wanted[kept] = now[kept]
    assert_array_equal(got, wanted)
    require_masked(start, BEGUN, moves, density)


def test_the_mask_of_a_method_whose_factor_begins_at_zero_is_flascs() -> None:
    """FLASC keeps the largest |θ|; A, which nobody trains, is not part of θ and stays."""
    moves = moving(FFALoRA(), LAYOUT, 4)
    zero = {n: np.zeros_like(a) if n in moves else a for n, a in BEGUN.items()}
    state = {n: a + moved(2, 1.0)[n] if n in moves else a for n, a in zero.items()}
    theta, got = flat(state, moves), flat(masked(state, zero, moves, 0.25), moves)
    largest = np.argsort(-np.abs(theta), kind="stable")[: theta.size // 4]
    assert set(np.flatnonzero(got)) == set(largest)
    assert not any(name.endswith("lora_A") for name in moves)


def test_a_schedule_masks_what_any_of_its_rounds_moves() -> None:
    assert set(moving(RoLoRA(), LAYOUT, 2)) == set(LAYOUT.shapes())
    assert set(moving(RoLoRA(), LAYOUT, 1)) < set(LAYOUT.shapes())


def test_a_start_with_more_than_the_density_allows_is_refused() -> None:
    moves = moving(FFALoRA(), LAYOUT, 4)
    half = masked(moved(3, 1.0, moves), BEGUN, moves, 0.5)
    require_masked(half, BEGUN, moves, 0.5)
    frozen = {**BEGUN, "layer.0.query.lora_A": BEGUN["layer.0.query.lora_A"] + 1}
    for state, density in (
        (half, 0.49),
        ({**half, "layer.0.query.lora_A": frozen["layer.0.query.lora_A"]}, 0.5),
    ):
        with pytest.raises(FederationError, match="sends at most"):
            require_masked(state, BEGUN, moves, density)


# --- in a federation -----------------------------------------------------------------------------------


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(method: Method, communication: dict[str, Any], mode: str = "insecure", **options: Any) -> Paper:
        sections = {"communication": DENSE | communication, "secure_aggregation": {"mode": mode}}
        return on_paper(method, sections, **options)

    return make


def test_clients_start_from_the_mask_and_the_server_keeps_the_rest(paper: Callable[..., Paper]) -> None:
    """Each round against plain float sums of what clients make of the masked start; three rounds, one of them lost."""
    lost = [Dropout(round=2, client_id=f"client-{i}", phase="mask") for i in (1, 2)]
    small = paper(FedIT(), {"download_density": 0.25}, "secure", dropouts=lost)
    begun, moves = small.begun.state, moving(FedIT(), LAYOUT, 4)
    for number in (1, 2, 3):
        before = small.state.state
        start = masked(before, begun, moves, 0.25)
        result = small.round()
        assert (result.summed is None) == (number == 2)
        if number == 2:
            assert small.state.state is before
            continue
        after = small.plainly(result, start)
        for name, array in small.state.state.items():
            assert np.abs(array - before[name] - (after[name] - start[name])).max() <= 3e-5, name
        for client in small.clients:
            assert client._round is not None
            assert client._round._task.state_digest == replace(small.server.task(small.state), round=number,
                                                               state=start).state_digest  # fmt: skip
    differs = flat(small.state.state, moves) != flat(begun, moves)
    assert differs.mean() > 0.9  # the server's own state is whole


def test_a_round_that_a_crash_cut_off_begins_again_from_the_same_masked_start(
    paper: Callable[..., Paper],
) -> None:
    whole, broken = (paper(FedIT(), {"download_density": 0.1}, optimizer=Adam(0.01)) for _ in range(2))
    for _ in range(3):
        whole.round()

    def kill(step: Step, client_id: str, data: bytes) -> bytes:
        if (step.round, step.phase, client_id) == (2, "upload", "client-3"):
            raise Killed
        return data

    broken.round()
    broken.use(Meddling(broken.clients, kill))
    with pytest.raises(Killed):
        broken.round()
    broken.live()
    broken.round()
    broken.round()
    assert broken.trainings == whole.trainings
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])


def downloaded(small: Paper, rounds: int) -> list[int]:
    """Bytes that client-1 was sent in each of so many rounds."""
    sizes = []
    for _ in range(rounds):
        small.round()
        sizes.append(small.engine.take().downloaded["client-1"])
    return sizes


def test_a_sparse_support_and_a_mask_make_the_download_short(paper: Callable[..., Paper]) -> None:
    """Frozen A, a support of a tenth: round 2 sends a tenth of B down, and later rounds what has been chosen so far."""
    d = sum(int(np.prod(s)) for s in moving(FFALoRA(), LAYOUT, 4).values())
    full = downloaded(paper(FFALoRA(), {}), 3)
    sparse = downloaded(paper(FFALoRA(), {"support": "seeded-random-k", "density": 0.1}), 3)
    thin = downloaded(paper(FFALoRA(), {"download_density": 0.1}), 3)
    assert full[1] - full[0] >= 4 * d
    for sizes in (sparse, thin):
        assert 0.4 * d <= sizes[1] - sizes[0] <= 0.4 * d + 200  # values, their support, and the arrays' names
    assert sparse[1] < sparse[2] < full[2]
    assert thin[2] - thin[1] <= 20


# --- hostile servers -----------------------------------------------------------------------------------

Change = Callable[[dict[str, bytes]], dict[str, bytes]]


def state_of(support: Support, values: np.ndarray) -> Change:
    return lambda blobs: {**blobs, SUPPORT: support.to_bytes(), VALUES: values.astype("<f4").tobytes()}


D = sum(int(np.prod(shape)) for shape in moving(FedIT(), LAYOUT, 4).values())
TENTH = Support(D, np.arange(D // 10))
VALUE = np.full(D // 10, 0.5)


@pytest.mark.parametrize(
    "change",
    [
        state_of(TENTH, VALUE[:-1]),
        state_of(TENTH, np.append(VALUE, 1.0)),
        state_of(TENTH, np.where(VALUE > 0, np.nan, 0)),
        state_of(TENTH, np.where(VALUE > 0, np.inf, 0)),
        state_of(Support(2 * D, np.arange(3)), VALUE[:3]),
        state_of(Support(D, np.arange(D // 10 + 1)), np.append(VALUE, 0.5)),  # a density that is another
        state_of(dense(D), np.ones(D)),
        lambda b: {**state_of(TENTH, VALUE)(b), SUPPORT: b"\x01" + b"\xff" * ((D + 7) // 8)},
        lambda b: {**state_of(TENTH, VALUE)(b), SUPPORT: b""},
        lambda b: {**state_of(TENTH, VALUE)(b), VALUES: bytes(3)},
        lambda b: {**state_of(TENTH, VALUE)(b), "state/layer.0.query.lora_A": bytes(96)},
        lambda b: {name: blob for name, blob in state_of(TENTH, VALUE)(b).items() if name != SUPPORT},
        lambda b: {name: blob for name, blob in state_of(TENTH, VALUE)(b).items() if name != VALUES},
    ],
)
def test_a_start_that_is_none_is_refused_before_anything_is_charged(
    paper: Callable[..., Paper], change: Change
) -> None:
    """The digest that comes with it is right, so it is the start itself that is refused."""
    small = paper(FedIT(), {"download_density": 0.1})
    message = small.server.task(small.state).to_message(small.begun.state)
    shapes = {name: list(shape) for name, shape in moving(FedIT(), LAYOUT, 4).items()}
    garbled = replace(message, fields={**message.fields, "shapes": shapes}, blobs=change(dict(message.blobs)))
    sizes = {name: tuple(shape) for name, shape in shapes.items()}
    started = {name: blob for name, blob in garbled.blobs.items() if name in (SUPPORT, VALUES)}
    try:
        start = unpacked(started, sizes, small.begun.state)
    except FederationError:
        start = small.begun.state
    digest = replace(small.server.task(small.state), state=start).state_digest.hex()
    garbled = replace(garbled, fields={**garbled.fields, "state_sha256": digest})
    client = small.clients[0]
    assert wire.decode(client.handle(wire.encode(garbled))) == REFUSED
    assert len(client._setup.ledger.rows()) == 1
    good = replace(
        small.server.task(small.state), state=masked(moved(5, 1.0), BEGUN, dict(LAYOUT.shapes()), 0.1)
    )
    assert wire.decode(client.handle(wire.encode(good.to_message(BEGUN)))).kind == wire.TRAINED


def test_a_server_of_another_density_is_refused(paper: Callable[..., Paper]) -> None:
    wide, narrow = paper(FedIT(), {"download_density": 0.5}), paper(FedIT(), {"download_density": 0.25})
    for number, kind in ((1, wire.TRAINED), (2, wire.REFUSED)):
        message = wide.server.task(wide.state).to_message(BEGUN)
        assert wire.decode(narrow.clients[0].handle(wire.encode(message))).kind == kind, number
        wide.round()


@pytest.mark.parametrize("method", ["fra", "fedsvd", "hybrid", "flora", "rac-lora"])
def test_a_masked_start_needs_a_method_that_keeps_its_coordinates(
    experiment_file: Callable[..., Path], method: str
) -> None:
    whole = {"support": "dense", "density": 1.0, "value_bits": 16, "download_density": 0.5}
    with pytest.raises(ConfigError, match="masked download does not go with"):
        Experiment.load(experiment_file(federation={"method": method}, communication=whole))


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, float("nan")])
def test_a_download_density_that_is_none_is_refused(
    experiment_file: Callable[..., Path], density: float
) -> None:
    with pytest.raises(ConfigError, match="download_density"):
        Experiment.load(experiment_file(communication={"download_density": density}))
