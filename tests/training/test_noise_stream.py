"""Where noise comes from: AES alone, derived as stated; of the right law; never twice; in no file.

Every statistical test here has a fixed key, so its outcome is fixed. The rates that are stated are what they would
be were the key redrawn for every run.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import special, stats
from torch import nn

from fedlora_priv.training.dpsgd import SecretNoiseOptimizer
from fedlora_priv.training.noise import gaussian_noise
from protocols.errors import LocalProtocolError
from protocols.prg import SecretStream

KEY = bytes(range(32))
N = 1 << 20
RATE = 1e-7  # of a false alarm, each of the statistics below


def aes_uniforms(key: bytes, first_word: int, count: int) -> list[float]:
    """Uniforms `first_word`, ... of a key, by AES on counter blocks and Python's integers: no stream involved."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    uniforms = []
    for word in range(first_word, first_word + count):
        block = aes.update((word // 2).to_bytes(16, "big"))
        half = block[:8] if word % 2 == 0 else block[8:]
        uniforms.append((int.from_bytes(half, "little") >> 11) / 2**53)
    return uniforms


def noise_again(key: bytes, n: int, stddev: float, first_word: int = 0) -> list[float]:
    """The noise of at most one chunk, written once more from its description, in plain Python."""
    uniforms = aes_uniforms(key, first_word, 4 * n)
    half = 2 * n
    radii = [math.sqrt(-2.0 * math.log(1.0 - u)) for u in uniforms[:half]]
    turns = [2.0 * math.pi * u for u in uniforms[half:]]
    normals = [r * math.cos(t) for r, t in zip(radii, turns, strict=True)]
    normals += [r * math.sin(t) for r, t in zip(radii, turns, strict=True)]
    return [stddev * sum(normals[i + k * n] for k in range(4)) / 2.0 for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_noise_is_aes_in_counter_mode_by_box_muller(n: int) -> None:
    np.testing.assert_allclose(
        gaussian_noise(SecretStream(KEY), n, 1.7), noise_again(KEY, n, 1.7), rtol=1e-11, atol=1e-13
    )


def test_later_noise_continues_the_counter() -> None:
    """Across a chunk and across calls: the words follow one another, none is used twice."""
    stream, chunk = SecretStream(KEY), 1 << 15
    whole = gaussian_noise(stream, chunk + 11, 1.0)
    np.testing.assert_allclose(whole[chunk:], noise_again(KEY, 11, 1.0, 4 * chunk), rtol=1e-11, atol=1e-13)
    after = gaussian_noise(stream, 5, 1.0)
    np.testing.assert_allclose(after, noise_again(KEY, 5, 1.0, 4 * (chunk + 11)), rtol=1e-11, atol=1e-13)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return gaussian_noise(SecretStream(KEY), N, 1.0)


def test_the_distribution_function_is_the_normal_one(drawn: np.ndarray) -> None:
    ordered = special.ndtr(np.sort(drawn))
    steps = np.arange(N + 1) / N
    distance = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    # Massart 1990: P[distance > x] <= 2 exp(-2 n x^2).
    assert distance < math.sqrt(math.log(2 / RATE) / (2 * N))


@pytest.mark.parametrize("power", range(1, 9))
def test_moments_are_those_of_a_normal(drawn: np.ndarray, power: int) -> None:
    wanted = float(stats.norm.moment(power))
    deviation = math.sqrt((float(stats.norm.moment(2 * power)) - wanted**2) / N)
    assert abs(float((drawn**power).mean()) - wanted) < -special.ndtri(RATE / 2) * deviation


@pytest.mark.parametrize("beyond", [2.5, 3.0, 3.5, 4.0, 4.5, 5.0])
def test_the_tails_hold_as_much_as_they_should(drawn: np.ndarray, beyond: float) -> None:
    """Clamped or truncated noise has none."""
    for tail in (drawn > beyond, drawn < -beyond):
        expected = stats.binom(N, stats.norm.sf(beyond))
        assert expected.ppf(RATE / 2) <= int(tail.sum()) <= expected.isf(RATE / 2)
    assert (np.abs(drawn) > 4.5).any()


@pytest.mark.parametrize("lag", [1, 2, 3, 1 << 10, 1 << 15, 1 << 17])
def test_coordinates_do_not_depend_on_each_other(drawn: np.ndarray, lag: int) -> None:
    """Nor do their sizes: a Box-Muller pair shares its radius, and four draws are added from far apart."""
    for values in (drawn, drawn**2):
        correlation = float(np.corrcoef(values[:-lag], values[lag:])[0, 1])
        assert abs(correlation) < -special.ndtri(RATE / 2) / math.sqrt(N - lag)


def test_steps_and_clients_have_independent_noise() -> None:
    """Every two of 3 clients x 8 steps: correlations no larger than chance allows, over all 276 pairs."""
    n = 1 << 14
    rows = []
    for client in range(3):
        stream = SecretStream(bytes([client]) * 32)
        rows += [gaussian_noise(stream, n, 2.0) for _ in range(8)]
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < -special.ndtri(RATE / (2 * len(correlations))) / math.sqrt(n)


def test_fresh_streams_share_no_block() -> None:
    """256 streams of 64 blocks: a common block of 128 bits has a chance of 1e-30."""
    blocks = [SecretStream().bytes(16 * 64) for _ in range(256)]
    every = [whole[i : i + 16] for whole in blocks for i in range(0, len(whole), 16)]
    assert len(set(every)) == len(every)


def an_optimizer(stream: SecretStream) -> SecretNoiseOptimizer:
    parameter = nn.Parameter(torch.zeros(8))
    return SecretNoiseOptimizer(
        torch.optim.Adam([parameter], lr=0.1), stream=stream, noise_multiplier=1.0, clip_norm=1.0,
        planned_batch_size=4.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "save", [pickle.dumps, copy.copy, copy.deepcopy, lambda o: torch.save(o, io.BytesIO())]
)
def test_what_holds_a_stream_is_neither_pickled_nor_copied(save: object) -> None:
    stream = SecretStream(KEY)
    for holder in (stream, an_optimizer(stream), {"state": stream}):
        if holder.__class__ is dict and save is copy.copy:
            continue  # a second name for one stream repeats nothing
        with pytest.raises(LocalProtocolError, match="neither copied nor pickled"):
            save(holder)


def test_an_optimizers_checkpoint_knows_neither_key_nor_position() -> None:
    """`state_dict` of two optimizers after the same gradients: their bytes differ by the noise alone."""
    written = []
    for key, skipped in ((KEY, 0), (KEY, 4096), (bytes(32), 0)):
        stream = SecretStream(key)
        stream.bytes(skipped)
        optimizer = an_optimizer(stream)
        optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        state = optimizer.state_dict()
        assert set(state) == {"state", "param_groups"}
        assert {name for part in state["state"].values() for name in part} == {
            "step",
            "exp_avg",
            "exp_avg_sq",
        }
        written.append(file.getvalue())
    for content in written:
        assert KEY not in content
        assert SecretStream(KEY).bytes(16) not in content
    assert len(set(written)) == 3
    assert len({len(content) for content in written}) == 1


def test_repr_of_whatever_holds_a_stream_shows_nothing_of_it() -> None:
    stream = SecretStream(KEY)
    for shown in (repr(stream), repr(an_optimizer(stream)), str(stream)):
        for part in itertools.chain([KEY.hex(), repr(KEY)], (str(list(KEY)),)):
            assert part not in shown
