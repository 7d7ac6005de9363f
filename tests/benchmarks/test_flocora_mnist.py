"""LoRA on convolutions is the convolution that it says it is, and the ways of sending do what they say."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import flocora_mnist as bench  # noqa: E402 - after the check that torch is there


def test_a_lora_of_a_convolution_is_one_kernel() -> None:
    torch.manual_seed(0)
    layer = bench.LoRAConv(3, 5, 2, rank=2)
    torch.nn.init.normal_(layer.lora_b.weight)
    images = torch.randn(2, 3, 9, 9)
    merged = torch.nn.functional.conv2d(images, layer.merged(), stride=2, padding=1)
    torch.testing.assert_close(layer(images), merged, rtol=1e-4, atol=1e-4)


def test_lora_sends_a_fifth_and_begins_as_the_base() -> None:
    full, lora = bench.build(None, seed=1), bench.build(8, seed=1)
    whole, part = bench.read(full).size, bench.read(lora).size
    assert whole / part > 4.8
    convolutions = [layer for layer in lora if isinstance(layer, bench.LoRAConv)]
    assert len(convolutions) == 3
    for layer in convolutions:
        torch.testing.assert_close(layer.merged(), layer.base.weight)
    vector = np.arange(part, dtype=np.float32)
    bench.write(lora, vector)
    assert bench.read(lora).tolist() == vector.tolist()


def test_affine_quantisation_is_flocoras() -> None:
    # s = (max - min)/(2^b - 1), z = q_min - min/s, q = clamp(round(x/s) + z), x' = s·(q - z), a row at a time.
    rows = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    for bits in (4, 8):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        for row, got in zip(rows.astype(np.float64), bench.affine(rows, bits), strict=True):
            s = (row.max() - row.min()) / (high - low)
            z = low - row.min() / s
            expected = s * (np.clip(np.round(row / s) + z, low, high) - z)
            assert (
                np.abs(got - expected).max() <= s + 1e-6
            )  # z is not rounded there, so levels may shift by one
            assert len(np.unique(got)) <= 2**bits
            assert np.abs(got - row).max() <= s / 2 + 1e-6
    assert bench.affine(np.full((2, 3), 7.0, np.float32), 4).tolist() == [[7.0] * 3] * 2


def test_at_many_bits_the_masked_way_is_the_exact_mean() -> None:
    net = bench.build(2, seed=0)
    start = bench.read(net)
    rng = np.random.default_rng(0)
    trained = [start + (0.005 * rng.standard_normal(start.size)).astype(np.float32) for _ in range(4)]
    exact = bench.exact_mean(start, trained)
    fine, coarse = (bench.masked(net, bits, 4, seed=0) for bits in (16, 4))
    np.testing.assert_allclose(fine.mean(start, trained), exact, atol=2e-5)
    assert fine.uploaded == -(-start.size * 18 // 8)
    assert coarse.uploaded == -(-start.size * 6 // 8)
    error = coarse.mean(start, trained) - exact
    assert 0 < np.sqrt(np.mean(error**2)) < 0.005


def test_a_split_deals_out_every_row_once() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    parts = bench.split(labels, clients=7, alpha=0.5, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))


@pytest.mark.long
def test_every_way_runs_and_sends_what_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for which, n in (("train", 120), ("t10k", 40)):
        labels = rng.integers(0, 10, n).astype(np.uint8)
        pixels = rng.integers(0, 20, (n, 28, 28)).astype(np.uint8)
        for i, label in enumerate(labels):
            pixels[i, 2 * label + 2 : 2 * label + 6] = 250  # a bright band whose height is the label
        for kind, header, data in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            with gzip.open(tmp_path / f"{which}-{kind}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + data.tobytes())
    data = (bench.Images.load(tmp_path, "train", 120), bench.Images.load(tmp_path, "t10k", 40))
    settings = bench.Settings(clients=3, a_round=3, rounds=2, rank=4, learning_rate=0.03, batch_size=16)
    results = list(bench.compare(data, settings, (6,)))
    assert [r.name for r in results] == [
        "full, float32",
        "lora, float32",
        "flocora, 6 bits",
        "masked, 6 bits",
    ]
    less = [r.times_less for r in results]
    assert less[0] == 1.0 < less[1] < min(less[2:])
    assert less[3] == pytest.approx(less[1] * 32 / 8, rel=0.01)  # 6 bits, and 2 for a sum over three clients
    assert all(0.0 <= r.accuracy <= 1.0 and r.uploaded > 0 for r in results)
