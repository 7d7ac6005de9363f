"""LoRA on convolutions is the convolution that it says it is, and the ways of sending do what they say."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import flocora_mnist as bench  # noqa: E402 - after the check that torch is there
from benchmarks.flocora_net import LoRAConv, build, lora_and_rest, read, write  # noqa: E402 - as above
from benchmarks.flocora_ways import Exact, Flocora, Masked, affine, session_bytes, value_bytes  # noqa: E402 - as above


def test_a_lora_of_a_convolution_is_a_convolution_of_a_convolution() -> None:
    torch.manual_seed(0)
    layer = LoRAConv(3, 5, 2, rank=2)
    torch.nn.init.normal_(layer.lora_b.weight)
    images = torch.randn(2, 3, 9, 9)
    through_a = torch.nn.functional.conv2d(images, layer.lora_a.weight, stride=2, padding=1)
    expected = layer.base(images) + 16 * layer.lora_b(through_a)
    torch.testing.assert_close(layer(images), expected, rtol=1e-4, atol=1e-4)


def test_lora_sends_a_fifth_and_begins_as_the_base() -> None:
    full, lora = build(None, seed=1), build(8, seed=1)
    whole, part = read(full).size, read(lora).size
    assert whole / part > 4.8
    convolutions = [layer for layer in lora.modules() if isinstance(layer, LoRAConv)]
    assert len(convolutions) == 4
    for layer in convolutions:
        torch.testing.assert_close(layer.merged(), layer.base.weight)
    vector = np.arange(part, dtype=np.float32)
    write(lora, vector)
    assert read(lora).tolist() == vector.tolist()
    factors, rest = lora_and_rest(lora)
    assert sum(p.numel() for p in factors) == 8 * (9 * (16 + 32 + 32 + 64) + 2 * (32 + 64))
    assert sum(p.numel() for p in [*factors, *rest]) == part
    assert lora_and_rest(full)[0] == []


def test_affine_quantisation_is_flocoras() -> None:
    # s = (max - min)/(2^b - 1), z = q_min - min/s, q = clamp(round(x/s) + z), x' = s·(q - z), a row at a time.
    rows = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    for bits in (4, 8):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        for row, got in zip(rows.astype(np.float64), affine(rows, bits), strict=True):
            s = (row.max() - row.min()) / (high - low)
            z = low - row.min() / s
            expected = s * (np.clip(np.round(row / s) + z, low, high) - z)
            assert (
                np.abs(got - expected).max() <= s + 1e-6
            )  # z is not rounded there, so levels may shift by one
            assert len(np.unique(got)) <= 2**bits
            assert np.abs(got - row).max() <= s / 2 + 1e-6
    assert affine(np.full((2, 3), 7.0, np.float32), 4).tolist() == [[7.0] * 3] * 2


def test_flocora_averages_rounded_weights_and_leaves_vectors_alone() -> None:
    net = build(2, seed=0)
    rng = np.random.default_rng(0)
    trained = [rng.standard_normal(read(net).size).astype(np.float32) for _ in range(3)]
    exact, rounded = Exact().after(trained[0], trained), Flocora(net, 4).after(trained[0], trained)
    first = 16 * 9
    expected = np.mean([affine(v[:first].reshape(16, 1, 3, 3), 4).ravel() for v in trained], axis=0)
    np.testing.assert_allclose(rounded[:first], expected, atol=1e-6)
    np.testing.assert_array_equal(rounded[first : first + 32], exact[first : first + 32])  # a norm
    np.testing.assert_array_equal(rounded[-10:], exact[-10:])  # the head's biases


def test_at_many_bits_the_masked_way_is_the_exact_mean() -> None:
    net = build(2, seed=0)
    start = read(net)
    rng = np.random.default_rng(0)
    trained = [start + (0.005 * rng.standard_normal(start.size)).astype(np.float32) for _ in range(4)]
    exact = Exact().after(start, trained)
    np.testing.assert_allclose(Masked(net, 16, 4, seed=0).after(start, trained), exact, atol=2e-5)
    error = Masked(net, 4, 4, seed=0).after(start, trained) - exact
    assert 0 < np.sqrt(np.mean(error**2)) < 0.005


def test_with_feedback_what_rounding_left_out_comes_later() -> None:
    net = build(2, seed=0)
    start = read(net)
    rng = np.random.default_rng(0)
    changes = [rng.uniform(-0.008, 0.008, start.size).astype(np.float32) for _ in range(4)]

    def drift(feedback: bool) -> float:
        way, state = Masked(net, 4, 4, seed=0, feedback=feedback), start
        for _ in range(24):
            state = way.after(state, [state + change for change in changes])
        return float(np.sqrt(np.mean((state - start - 24 * np.mean(changes, axis=0)) ** 2)))

    assert drift(True) < 0.5 * drift(False)  # one residual, and not a random walk of two dozen


def test_bytes_are_of_packed_words_and_a_session() -> None:
    net = build(2, seed=0)
    size = read(net).size
    assert value_bytes("lora", net, 32, 10) == 4 * size
    assert value_bytes("masked", net, 4, 10) == value_bytes("feedback", net, 4, 10) == size  # 4 bits + 4
    assert value_bytes("masked", net, 8, 3) == -(-size * 10 // 8)
    rows = 16 + 10 + 4 * 2 + 2 * (32 + 64)  # each with a scale and an offset
    norms = 2 * (16 + 2 * 32 + 2 * 64) + 10
    assert value_bytes("flocora", net, 4, 10) == (size - norms) // 2 + 8 * rows + 4 * norms
    keys = [session_bytes(net, 4, 10) - size, session_bytes(build(8, seed=0), 4, 10) - read(build(8, 0)).size]
    assert 5_000 < keys[0] == pytest.approx(keys[1], abs=16)


def test_a_split_deals_out_every_row_once() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    parts = bench.split(labels, clients=7, skew=0.5, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))


@pytest.mark.long
def test_every_way_runs_once_and_has_its_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for which, n in (("train", 120), ("t10k", 40)):
        labels = rng.integers(0, 10, n).astype(np.uint8)
        pixels = rng.integers(0, 20, (n, 28, 28)).astype(np.uint8)
        for i, label in enumerate(labels):
            pixels[i, 2 * label + 2 : 2 * label + 6] = 250  # a bright band whose height is the label
        for kind, header, data in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            with gzip.open(tmp_path / f"{which}-{kind}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + data.tobytes())
    wanted = [
        bench.Setting(way, bits, 0, clients=3, rounds=2, images=120, test_images=40)
        for way, bits in bench.WAYS
    ]
    bench.run(wanted, tmp_path, tmp_path, most=2)
    assert (tmp_path / "flocora.jsonl").read_text().count("\n") == 2
    bench.run(wanted, tmp_path, tmp_path)
    lines = list(bench.Lines(tmp_path / "flocora.jsonl"))
    assert [(line["setting"]["way"], line["setting"]["bits"]) for line in lines] == list(bench.WAYS)
    assert all(0.0 <= line["accuracy"] <= 1.0 for line in lines)
    text = (tmp_path / "flocora.md").read_text(encoding="utf-8")
    assert "| LoRA | 32 | 60,136 | 4.8 | | |" in text
    assert "| LoRA, masked | 4 | 11,276 | 25.6 |" in text  # 6 bits for three clients
    bench.run(wanted, tmp_path, tmp_path)
    assert list(bench.Lines(tmp_path / "flocora.jsonl")) == lines
    bench.main(["page", "--results", str(tmp_path)])
    assert (tmp_path / "flocora.md").read_text(encoding="utf-8") == text
