"""Masks are the keystream as words, added or subtracted, whatever the block size and the modulus."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import LocalProtocolError
from protocols.secagg.mask import CHUNK_BYTES, Mask, add_masks

KEYS = [bytes([i]) * 32 for i in range(3)]


def expansion(key: bytes, d: int, width: int) -> list[int]:
    """The mask's words of `width` bytes, read one at a time."""
    counter = modes.CTR((2).to_bytes(16, "big"))
    data = Cipher(algorithms.AES(key), counter).encryptor().update(bytes(width * d))
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, width * d, width)]


@pytest.mark.parametrize(
    ("bits", "width"), [(2, 1), (7, 1), (8, 1), (9, 2), (11, 2), (16, 2), (17, 4), (31, 4), (32, 4)]
)
@pytest.mark.parametrize("extra", [-CHUNK_BYTES // 4 + 1, -1, 0, 1])
def test_against_python_integers(bits: int, width: int, extra: int) -> None:
    d = CHUNK_BYTES // width + extra  # a block is a chunk of keystream
    ring = np.arange(d, dtype=np.uint32) * np.uint32(48_611) % np.uint32(2**bits - 1)
    before = ring.tolist()
    add_masks(ring, [Mask(KEYS[0]), Mask(KEYS[1], subtract=True), Mask(KEYS[2])], bits)
    words = zip(*(expansion(key, d, width) for key in KEYS), strict=True)
    expected = [(value + a - b + c) % 2**bits for value, (a, b, c) in zip(before, words, strict=True)]
    assert ring.tolist() == expected


def test_the_keystream_is_counter_mode_from_block_2_and_that_of_gcm() -> None:
    d = 3 * CHUNK_BYTES // 4 + 5
    ring = np.zeros(d, dtype=np.uint32)
    add_masks(ring, [Mask(KEYS[1])], 32)
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(2, 2 + -(-4 * d // 16)))
    single = Cipher(algorithms.AES(KEYS[1]), modes.ECB()).encryptor()
    assert ring.astype("<u4").tobytes() == single.update(blocks)[: 4 * d]
    assert ring.astype("<u4").tobytes() == AESGCM(KEYS[1]).encrypt(bytes(12), bytes(4 * d), None)[:-16]


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        Mask(key)


@pytest.mark.parametrize("bits", [5, 11, 20, 32])
def test_the_inverse_undoes(bits: int) -> None:
    values = np.arange(50_000, dtype=np.uint32) & np.uint32(2**bits - 1)
    ring = values.copy()
    masks = [Mask(key, subtract=bool(i % 2)) for i, key in enumerate(KEYS)]
    add_masks(ring, masks, bits)
    assert (ring != values).mean() > 0.9
    add_masks(ring, (mask.inverse for mask in masks), bits)
    assert ring.tolist() == values.tolist()


@pytest.mark.parametrize("bits", [2, 8, 11, 16, 31, 32])
def test_a_sum_modulo_2_to_the_32_is_reduced(bits: int) -> None:
    # The server adds masked vectors modulo 2^32 and removes the masks at the end.
    values = [2**32 - 1, 0, 5, 2**31, 123456789]
    ring = np.array(values, dtype=np.uint32)
    add_masks(ring, [], bits)
    assert ring.tolist() == [value % 2**bits for value in values]


@pytest.mark.parametrize("bits", [3, 11, 24])
def test_every_bit_of_a_masked_entry_is_balanced(bits: int) -> None:
    # 200,000 fair bits for each position: beyond 6 standard deviations with P < 2e-9 each; the key is fixed.
    ring = np.full(200_000, 2 ** (bits - 1) - 1, dtype=np.uint32)
    add_masks(ring, [Mask(bytes(range(32)))], bits)
    for position in range(bits):
        ones = int((ring >> np.uint32(position) & np.uint32(1)).sum())
        assert abs(ones - 100_000) < 6 * (200_000 / 4) ** 0.5
