"""Bounds by LoRA component: they settle where one client's values are, at any number of bits, from sums alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fedlora_priv.communication.scales import channel_shapes, headroom, relative_error
from fedlora_priv.config import Experiment
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.bounds import ExchangeScales
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.federation.exchange import ExchangeSum, Summed
from fedlora_priv.federation.run import run
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.vectors import flatten
from fedlora_priv.methods import Layout, LoraModule, for_experiment
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.layout import State
from protocols.prg import SecretStream
from protocols.sparsify import dense

from .paper import LAYOUT as PAPER_LAYOUT
from .paper import Paper

LAYOUT = Layout((LoraModule("m", 900, 700, 4, 1.0),), {"head.bias": (2,), "head.weight": (2, 600)})
SPREADS: Mapping[str, np.ndarray] = {
    "head.bias": np.full(1, 3.0),
    "head.weight": np.array([[2.0], [0.5]]),
    "m.lora_A": np.array([[1.0], [0.1], [10.0], [1e-3]]),
    "m.lora_B": np.array([[0.5, 5.0, 0.05, 50.0]]),
}
"""What one client's values are like, by channel: components that differ 50,000-fold."""
KEY = bytes(range(32))
BITS, CLIENTS = (2, 3, 4, 8, 16), (5, 10)


@pytest.fixture
def make(experiment_file: Callable[..., Path]) -> Callable[..., Experiment]:
    def load(value_bits: int, clients: int, **sections: dict[str, object]) -> Experiment:
        dense_uploads = {"support": "dense", "density": 1.0, "value_bits": value_bits}
        return Experiment.load(
            experiment_file(
                **{
                    "communication": dense_uploads,
                    **sections,
                    "federation": {"clients": clients} | sections.get("federation", {}),
                }
            )
        )

    return load


def drawn(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One client's upload: independent of everybody's."""
    return {n: (SPREADS[n] * rng.normal(size=s)).astype(np.float32) for n, s in LAYOUT.shapes().items()}


def ring_sum(channel: UploadChannel, uploads: Sequence[State], stream: SecretStream) -> np.ndarray:
    """The modular sum of uploads, which is what masks leave."""
    total = np.zeros(len(channel.support), np.uint32)
    for upload in uploads:
        total += channel.encode(flatten(channel.shapes, upload), stream)
    return total & np.uint32((1 << channel.quantiser.modulus_bits) - 1)


# --- bounds settle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", CLIENTS)
@pytest.mark.parametrize("value_bits", BITS)
def test_bounds_settle_where_values_are_and_cost_what_is_stated(
    make: Callable[..., Experiment], value_bits: int, clients: int
) -> None:
    # Fixed draws, so no false alarms. A channel has 600 to 900 values a round; that of two values is left out.
    experiment = make(value_bits, clients, federation={"method": "fedit", "rounds": 40})
    state = {name: np.zeros(shape, np.float32) for name, shape in LAYOUT.shapes().items()}
    server = FederationServer(experiment, LAYOUT, for_experiment(experiment), state, 1.0)
    rng, stream, now = np.random.default_rng(value_bits), SecretStream(KEY), server.begin()
    errors: dict[str, list[np.ndarray]] = {name: [] for name in SPREADS if name != "head.bias"}
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in errors}
    for number in range(20):
        task = server.task(now)
        uploads = [drawn(rng) for _ in range(clients - (number % 3 == 0))]  # now and then one is lost
        total = ring_sum(task.first.values, uploads, stream)
        summed = Summed((ExchangeSum(task.first, total, len(uploads)),))
        for name in errors if number >= 10 else ():
            error = summed.sums[name] - np.sum([u[name].astype(float) for u in uploads], axis=0)
            axis = 0 if name.endswith("lora_B") else 1
            spent = (error**2).mean(axis=axis, keepdims=True) / len(uploads) / SPREADS[name] ** 2
            errors[name].append(spent)
            ratios[name].append(task.first.values.bounds[name] / SPREADS[name])
        now = server.advance(now, task, summed)
    for name in errors:
        assert np.abs(np.log(np.array(ratios[name]) / headroom(value_bits))).max() < 0.45, name
        assert np.mean(errors[name], axis=0).max() < 1.5 * relative_error(value_bits), name


@pytest.mark.long
@pytest.mark.parametrize(("value_bits", "clients"), [(2, 10), (3, 5)])
def test_bounds_settle_in_a_real_federation(
    make: Callable[..., Experiment],
    silent: object,
    monkeypatch: pytest.MonkeyPatch,
    value_bits: int,
    clients: int,
) -> None:
    """Beside the values that clients had before quantising, which nobody else sees."""
    before: list[tuple[np.ndarray, np.ndarray]] = []
    encode = UploadChannel.encode

    def watched(self: UploadChannel, values: np.ndarray, stream: SecretStream) -> np.ndarray:
        before.append((values.astype(float), np.asarray(self.quantiser.bounds)))
        return encode(self, values, stream)

    monkeypatch.setattr(UploadChannel, "encode", watched)
    rounds = 18
    experiment = make(
        value_bits,
        clients,
        federation={"rounds": rounds, "evaluate_every": rounds},
        training={"deterministic_noise": True},
        secure_aggregation={"mode": "insecure"},
    )
    run(experiment, progress=silent)
    assert len(before) == rounds * clients
    ratios = []
    for number in range(14, rounds):
        values, bounds = zip(*before[number * clients : (number + 1) * clients], strict=True)
        ratios.append(np.sqrt(np.mean(bounds[0] ** 2) / np.mean(np.square(values))) / headroom(value_bits))
    assert 0.5 < min(ratios) <= max(ratios) < 2.2, ratios  # channels of 16 values that travel


@pytest.mark.parametrize(("value_bits", "clients"), [(2, 10), (3, 5), (16, 5)])
def test_the_masked_sum_is_the_plain_one(
    make: Callable[..., Experiment], tmp_path: Path, value_bits: int, clients: int
) -> None:
    totals = []
    for mode in ("secure", "insecure"):
        experiment = make(
            value_bits,
            clients,
            secure_aggregation={"mode": mode},
            training={"deterministic_noise": True},
        )
        small = Paper(experiment, FedIT(), tmp_path / mode)
        results = [small.round() for _ in range(2)]
        totals.append([part.ring_sum for r in results if r.summed is not None for part in r.summed.parts])
        small.close()
    masked, plain = totals
    assert len(masked) == len(plain) == 2
    for one, other in zip(masked, plain, strict=True):
        assert one.any()
        assert_array_equal(one, other)


# --- unequal clients ------------------------------------------------------------------------------------


def whole(value_bits: int, clients: int) -> ExchangeScales:
    """The scales of one array of an upload that must travel whole."""
    contract = replace(FedIT().contract(LAYOUT), uploads={"m.lora_B": (900, 4)}, travels_whole=True)
    return ExchangeScales.of(LAYOUT, contract, 0, value_bits, clients)


@pytest.mark.parametrize(
    "sizes",
    [
        [1.0] + [0.0] * 9,  # a component that one client holds
        [4.0] * 2 + [1.0] * 8,  # clients of a quarter of the rank, hence four times the scaling
        [1.0] * 10,
    ],
)
@pytest.mark.parametrize("value_bits", [8, 12])
def test_what_travels_whole_is_not_clipped_however_unequal_clients_are(
    value_bits: int, sizes: list[float]
) -> None:
    shape, scales = (900, 4), whole(value_bits, len(sizes))
    for scaled, most in ((scales, 1e-3), (replace(scales, room=1.0), 1.0)):
        rng, stream = np.random.default_rng(1), SecretStream(KEY)
        spreads = {"m.lora_B": np.full((1, 4), 0.3)}
        for _ in range(8):
            bounds = scaled.bounds(spreads)
            channel = UploadChannel(scaled.shapes, dense(3600), bounds, value_bits, len(sizes))
            uploads = [{"m.lora_B": (s * rng.normal(size=shape)).astype(np.float32)} for s in sizes]
            sums = channel.sums(ring_sum(channel, uploads, stream), len(sizes))
            means = {name: total / len(sizes) for name, total in sums.items()}
            spreads = scaled.after(bounds, means, np.full(3600, len(sizes)))
            clipped = np.mean(np.abs(uploads[0]["m.lora_B"]) > bounds["m.lora_B"])
        assert clipped <= most
    if sizes[1] == 0.0 and value_bits == 8:
        assert clipped > 0.1  # as it would be without room


def test_clients_of_small_ranks_are_not_clipped(
    make: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_ranks = replace(
        PAPER_LAYOUT,
        modules=tuple(replace(m, rank=1, scaling=m.scaling * m.rank) for m in PAPER_LAYOUT.modules),
    )
    counts: list[tuple[int, int]] = []
    encode = UploadChannel.encode

    def watched(self: UploadChannel, values: np.ndarray, stream: SecretStream) -> np.ndarray:
        taken = self.support.take(values)
        counts.append((self.quantiser.clipped(taken), taken.size))
        return encode(self, values, stream)

    monkeypatch.setattr(UploadChannel, "encode", watched)
    method = FlexLoRA()
    experiment = make(8, 5, federation={"rounds": 12}, secure_aggregation={"mode": "insecure"})
    small = Paper(experiment, method, tmp_path, own={"client-2": method.at_client(small_ranks)})
    for _ in range(8):
        assert small.round().record.aborted is None
    small.close()
    late = counts[len(counts) // 2 :]
    assert sum(clipped for clipped, _ in late) <= 1e-3 * sum(size for _, size in late)


# --- what the server remembers --------------------------------------------------------------------------


def test_an_array_that_does_not_travel_keeps_its_spread_through_a_checkpoint(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = make(4, 5, federation={"method": "rolora", "rounds": 4})
    state = {name: np.full(shape, 0.1, np.float32) for name, shape in LAYOUT.shapes().items()}
    server = FederationServer(experiment, LAYOUT, for_experiment(experiment), state, 1.0)
    rng, stream, now = np.random.default_rng(0), SecretStream(KEY), server.begin()
    kept = []
    for _ in range(2):
        task = server.task(now)
        channel = task.first.values
        upload = drawn(rng)
        part = ExchangeSum(task.first, ring_sum(channel, [upload] * 5, stream), 5)
        now = server.advance(now, task, Summed((part,)))
        kept.append(now)
        checkpoint.save(tmp_path, now, checkpoint.History())
        stored = checkpoint.load(tmp_path)
        assert stored is not None
        now = stored[0]
    first = {name for name in kept[0].spreads if name not in LAYOUT.heads}
    second = {name for name in kept[1].spreads if name not in LAYOUT.heads} - first
    assert len(first) == len(second) == 1
    assert_array_equal(kept[0].spreads[min(first)], now.spreads[min(first)])
    again = server.task(now).first.values.bounds
    assert again.keys() >= first
    np.testing.assert_allclose(again[min(first)], headroom(4) * kept[0].spreads[min(first)], rtol=1e-6)


def test_a_thin_band_says_as_much_of_the_spread_as_a_wide_one() -> None:
    # 3600 values of spread 1, half of them from 10 clients and half from 3: means over senders differ in variance.
    scales = whole(16, 10)
    rng, senders = np.random.default_rng(3), np.repeat([10, 3], 1800)
    mean = rng.normal(size=3600) / np.sqrt(senders)
    spreads = {"m.lora_B": np.full((1, 4), 1.5)}
    for _ in range(3):
        spreads = scales.after(scales.bounds(spreads), {"m.lora_B": mean.reshape(900, 4)}, senders)
    assert np.abs(spreads["m.lora_B"] - 1.0).max() < 0.1


def test_bounds_travel_as_four_bytes_a_channel_and_limits_are_exact() -> None:
    method = FlexLoRA()
    contract = method.contract(LAYOUT)
    scales = ExchangeScales.of(LAYOUT, contract, 0, 8, 5)
    by_channel = channel_shapes(LAYOUT, scales.shapes)
    spreads = {
        n: np.full(s, 0.1 + i) for i, (n, s) in enumerate(by_channel.items()) if n not in scales.limits
    }
    bounds = scales.bounds(spreads)
    assert {name: bound.shape for name, bound in bounds.items()} == by_channel
    for name, limit in contract.limits.items():
        assert (bounds[name] == np.float32(limit)).all()
    channel = UploadChannel(scales.shapes, dense(contract.dimension), bounds, 8, 5)
    data = channel.bounds_to_bytes()
    assert len(data) == 4 * sum(bound.size for bound in bounds.values())
    for name, bound in scales.bounds_from_bytes(data).items():
        assert_array_equal(bound, bounds[name], strict=True)


# --- no overflow, no bias -------------------------------------------------------------------------------


@pytest.mark.parametrize("value_bits", range(2, 17))
def test_no_sum_of_any_number_of_clients_overflows_the_ring(value_bits: int) -> None:
    """On paper, for every federation that an experiment file can ask for."""
    levels = 2 ** (value_bits - 1) - 1
    for clients in [*range(1, 300), *(2**j + d for j in range(9, 16) for d in (-1, 0, 1)), 65_535]:
        channel = UploadChannel({"x": (1,)}, dense(1), {"x": np.ones(1, np.float32)}, value_bits, clients)
        assert channel.quantiser.levels == levels
        assert clients * levels < 2 ** (channel.quantiser.modulus_bits - 1)
        assert channel.quantiser.modulus_bits <= 32


@given(
    value_bits=st.integers(2, 16),
    clients=st.integers(1, 40),
    lost=st.integers(0, 39),
    ends=st.lists(st.sampled_from([-1e30, -1.0, 0.0, 1.0, 1e30]), min_size=6, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_sum_through_a_channel_is_the_sum_of_what_each_sent(
    value_bits: int, clients: int, lost: int, ends: list[float], seed: int
) -> None:
    rng, n = np.random.default_rng(seed), max(1, clients - lost)
    shapes = {"m.lora_A": (2, 3), "x": (6,)}
    bounds = {"m.lora_A": rng.uniform(1e-3, 1e3, (2, 1)).astype(np.float32), "x": np.ones(1, np.float32)}
    channel = UploadChannel(shapes, dense(12), bounds, value_bits, clients)
    uploads = [
        {"m.lora_A": (bounds["m.lora_A"] * rng.normal(size=(2, 3))).astype(np.float32), "x": np.float32(ends)}
        for _ in range(n)
    ]
    sent = [channel.encode(flatten(channel.shapes, upload), SecretStream(KEY)) for upload in uploads]
    total = np.sum(sent, axis=0, dtype=np.uint64) % 2**channel.quantiser.modulus_bits
    sums = channel.sums(total.astype(np.uint32), n)
    alone = [channel.sums(ring, 1) for ring in sent]
    for name in shapes:
        np.testing.assert_allclose(
            sums[name], np.sum([one[name] for one in alone], axis=0), rtol=1e-12, atol=1e-9
        )
    assert_array_equal(sums["x"], n * np.clip(ends, -1.0, 1.0))  # everybody at the end of the range at once


@pytest.mark.parametrize("value_bits", [2, 3, 4, 8])
def test_rounding_through_a_channel_is_unbiased(value_bits: int) -> None:
    # 12 means of 20,000 roundings, each a bit of known variance: beyond 6 deviations once in 4e7 at most.
    repeats, clients = 20_000, 5
    bounds = {"m.lora_A": np.array([[2.0], [0.01]], np.float32)}
    rng = np.random.default_rng(0)
    upload = {"m.lora_A": (bounds["m.lora_A"] * rng.uniform(-1, 1, (2, 6))).astype(np.float32)}
    channel = UploadChannel({"m.lora_A": (2, 6)}, dense(12), bounds, value_bits, clients)
    stream, total = SecretStream(KEY), np.zeros((2, 6))
    for _ in range(repeats // clients):
        total += channel.sums(ring_sum(channel, [upload] * clients, stream), clients)["m.lora_A"]
    step = bounds["m.lora_A"].astype(float) / channel.quantiser.levels
    fraction = upload["m.lora_A"] / step - np.floor(upload["m.lora_A"] / step)
    deviation = step * np.sqrt(fraction * (1 - fraction) / repeats)
    assert (np.abs(total / repeats - upload["m.lora_A"]) <= 6 * deviation + 1e-9).all()
