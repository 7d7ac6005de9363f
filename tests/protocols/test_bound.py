"""A client masks only residues of integers within the bound: against signed integers, at every edge."""

from __future__ import annotations

import numpy as np
import pytest

from protocols.secagg.checks import _BLOCK, _is_bounded


@pytest.mark.parametrize("modulus_bits", [4, 8, 11, 31, 32])
def test_against_signed_integers(modulus_bits: int) -> None:
    modulus = 2**modulus_bits
    for bound in {1, 2, modulus // 5, modulus // 2 - 1}:
        edges = {0, 1, bound - 1, bound, bound + 1, modulus // 2, modulus - bound - 1, modulus - bound}
        for value in {*edges, modulus - 1, modulus, modulus + bound, 2**32 - 1, 2**32 - bound}:
            if not 0 <= value < 2**32:
                continue
            signed = value - modulus if value >= modulus // 2 else value
            expected = value < modulus and -bound <= signed <= bound
            assert _is_bounded(np.array([0, value], dtype=np.uint32), modulus_bits, bound) == expected


@pytest.mark.parametrize("at", [0, _BLOCK - 1, _BLOCK, 2 * _BLOCK])
def test_one_bad_entry_anywhere_is_found(at: int) -> None:
    vector = np.full(2 * _BLOCK + 1, 2**11 - 7, dtype=np.uint32)
    assert _is_bounded(vector, 11, 7)
    vector[at] -= 1
    assert not _is_bounded(vector, 11, 7)
