"""What a client uploads looks like noise, whatever its vector: chi-square, correlation, differences, partial sums.

False alarms: a statistic alarms when its p-value is below 1e-9 on either side, and fewer than 700 of them are
computed here; so a run of this file fails by chance less than once in 10^6. Each statistic is also shown uploads that
it must alarm at: an unmasked vector, a repeated mask, a stuck bit, a tenth of the coordinates left bare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from protocols.packing import pack, unpack
from protocols.secagg.codec import decode
from protocols.secagg.messages import MaskedVector
from protocols.secagg.server import SecAggServer

Ring = NDArray[np.uint32]
LENGTH = 60_000
ALARM = 1e-9
INPUTS = {
    "zero": lambda bound: np.zeros(LENGTH, dtype=np.int64),
    "the bound": lambda bound: np.full(LENGTH, bound, dtype=np.int64),
    "signs": lambda bound: np.where(np.arange(LENGTH) % 2, bound, -bound),
}


def two_sided(upper: float) -> float:
    """A p-value that is small when the statistic is too large or too small."""
    return float(2 * min(upper, 1 - upper))


def even(counts: NDArray[np.int64]) -> float:
    """The p-value of counts that should be equal, for at least 80 expected in each."""
    expected = counts.sum() / counts.size
    assert expected > 80
    return two_sided(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


def independent(table: NDArray[np.int64]) -> float:
    """The p-value of a table whose rows should have one distribution."""
    table = table[:, table.any(axis=0)]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    return two_sided(stats.chi2.sf(((table - expected) ** 2 / expected).sum(), degrees))


def of_one(upload: Ring, bits: int) -> dict[str, float]:
    """The p-values of one upload: packed bytes, single bits, values, and neighbouring values."""
    low, high = upload & 15, upload >> max(bits - 4, 0) & 15
    width = min(bits, 4)
    packed = np.frombuffer(pack(upload, bits)[:-1], dtype=np.uint8)
    ones = np.array([int((upload >> bit & 1).sum()) for bit in range(bits)])
    values = {
        "bytes": even(np.bincount(packed, minlength=256)),
        "bits": two_sided(stats.chi2.sf(((2 * ones - LENGTH) ** 2 / LENGTH).sum(), bits)),
        "high": even(np.bincount(high, minlength=2**width)[: 2**width]),
        "low": even(np.bincount(low, minlength=2**width)[: 2**width]),
    }
    for distance in (1, 8, 1024):  # next to it, in the next cipher block or so, and further
        pairs = (low[:-distance] << width) + low[distance:]
        values[f"pairs at {distance}"] = even(np.bincount(pairs, minlength=4**width))
    return values


def of_input(upload: Ring, vector: NDArray[np.int64], bits: int) -> dict[str, float]:
    """The p-values of an upload beside its input: correlation, and high bits given the sign."""
    signed = upload.astype(np.float64) - 2 ** (bits - 1)
    r = float(np.corrcoef(signed, vector.astype(np.float64))[0, 1])
    high = (upload >> max(bits - 4, 0) & 15).astype(np.int64)
    width = 2 ** min(bits, 4)
    table = np.stack([np.bincount(high[side], minlength=width) for side in (vector > 0, vector <= 0)])
    return {
        "correlation": float(2 * stats.norm.sf(abs(r) * np.sqrt(LENGTH))),
        "given the sign": independent(table),
    }


def uploads(make_federation: Any, bits: int, given: str) -> tuple[dict[str, Ring], NDArray[np.int64]]:
    """What three real clients upload, and what each of them masked."""
    bound = (2 ** (bits - 1) - 1) // 3
    federation = make_federation(n=3, max_colluders=0, vector_length=LENGTH, modulus_bits=bits, bound=bound)
    vector = INPUTS[given](bound)
    federation.vectors = {name: (vector % 2**bits).astype(np.uint32) for name in federation.names}
    inbox = federation.drive(until="mask")
    found = {}
    for name in federation.names:
        packed = decode(MaskedVector, federation.answer(name, "mask", inbox[name]), "test").packed
        found[name] = unpack(packed, bits, LENGTH)
    return found, vector


def alarms(p_values: dict[str, float]) -> dict[str, float]:
    """The p-values that are too small to be chance."""
    return {name: value for name, value in p_values.items() if value < ALARM}


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("bits", [3, 8, 13, 16, 24, 32])
def test_an_upload_is_uniform_and_independent_of_the_input(
    make_federation: Any, bits: int, given: str
) -> None:
    found, vector = uploads(make_federation, bits, given)
    for upload in found.values():
        assert not alarms(of_one(upload, bits))
    assert not alarms(of_one((found["client-1"] + found["client-2"]) & np.uint32(2**bits - 1), bits))
    if given == "signs":
        assert not alarms(of_input(found["client-1"], vector, bits))


@pytest.mark.parametrize("bits", [8, 13, 32])
def test_two_inputs_give_indistinguishable_uploads(make_federation: Any, bits: int) -> None:
    first, vector = uploads(make_federation, bits, "the bound")
    second, _ = uploads(make_federation, bits, "zero")
    difference = (first["client-1"] - second["client-1"]) & np.uint32(2**bits - 1)
    assert not alarms(of_one(difference, bits))
    tops = [np.bincount(one["client-1"] >> (bits - 8), minlength=256) for one in (first, second)]
    assert independent(np.stack(tops)) > ALARM
    assert vector[0] > 0


def test_only_the_sum_of_all_is_not_noise(make_federation: Any) -> None:
    # All pair masks cancel there; the self-masks are still in it, until the survivors reveal.
    bits, bound = 16, (2**15 - 1) // 3
    federation = make_federation(n=3, max_colluders=0, vector_length=LENGTH, modulus_bits=bits, bound=bound)
    federation.vectors = {name: np.full(LENGTH, bound, dtype=np.uint32) for name in federation.names}
    federation.drive(until="confirm")
    server: SecAggServer = federation.server
    assert not alarms(of_one(server._sum & np.uint32(2**bits - 1), bits))


def test_every_statistic_alarms_when_it_must() -> None:
    rng, bits = np.random.default_rng(3), 13
    mask = rng.integers(0, 2**bits, LENGTH).astype(np.uint32)
    bound = (2 ** (bits - 1) - 1) // 3
    vector = INPUTS["signs"](bound)
    ring = (vector % 2**bits).astype(np.uint32)
    masked = (ring + mask) & np.uint32(2**bits - 1)
    assert not alarms(of_one(masked, bits) | of_input(masked, vector, bits))
    assert set(alarms(of_one(ring, bits))) == set(of_one(ring, bits))
    assert set(alarms(of_input(ring, vector, bits))) == {"correlation", "given the sign"}
    bare = np.where(rng.random(LENGTH) < 0.1, ring, masked)
    assert {"bytes", "high", "low"} <= set(alarms(of_one(bare, bits)))
    assert set(alarms(of_input(bare, vector, bits))) == {"correlation", "given the sign"}
    assert "bits" in alarms(of_one(masked & ~np.uint32(1 << 6), bits))
    repeated = np.tile(mask[:1024], 59)[:LENGTH]
    assert "pairs at 1024" in alarms(of_one(np.resize(repeated, LENGTH), bits))
    tops = [np.bincount(one >> (bits - 8), minlength=256) for one in (masked, bare)]
    assert independent(np.stack(tops)) < ALARM
