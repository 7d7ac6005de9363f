"""A secret keystream, as bytes, 64-bit words or uniform floats: AES-256 in counter mode (SP 800-38A, 6.5).

The counter starts at zero and there is no nonce. That is safe because a key belongs to exactly one stream:
the counter block, of 128 bits, never repeats under it.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError
from protocols.redaction import Redacted

KEY_BYTES = 32
CHUNK_BYTES = 128 * 1024  # keystream, input zeros and the caller's block together stay in a 1 MiB L2 cache
_ZEROS = bytes(CHUNK_BYTES)


class SecretStream(Redacted):
    """An endless stream of pseudorandom bytes under a 256-bit key; a fresh random key unless one is given.

    Requests consume the stream in order: ``bytes(3)`` then ``bytes(5)`` equal ``bytes(8)`` of the same key.
    The stream can be neither copied nor pickled, because two copies would repeat each other's output. After
    ``os.fork`` it serves the parent only, for the same reason: make a new stream in the child.

    Raises:
        LocalProtocolError: the key is not 32 bytes, a negative count is asked for, or a forked process asks.

    Example:
        >>> SecretStream(bytes(32)).bytes(4).hex()
        'dc95c078'
    """

    __slots__ = ("_encryptor", "_process")

    def __init__(self, key: bytes | None = None) -> None:
        key = os.urandom(KEY_BYTES) if key is None else key
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a stream key is {KEY_BYTES} bytes; derive one with HKDF or os.urandom")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def fill(self, out: memoryview) -> None:
        """Overwrite the writable byte buffer `out` with the next ``len(out)`` bytes of the stream."""
        if os.getpid() != self._process:
            raise LocalProtocolError("a secret stream was carried over by fork; make a new one in the child")
        for start in range(0, len(out), CHUNK_BYTES):
            part = out[start : start + CHUNK_BYTES]
            self._encryptor.update_into(memoryview(_ZEROS)[: len(part)], part)

    def bytes(self, n: int) -> bytes:
        """Return the next `n` bytes."""
        return self._take(n).tobytes()

    def words(self, n: int) -> NDArray[np.uint64]:
        """Return `n` independent uniform 64-bit words, shape (n,)."""
        return self._take(8 * n).view("<u8").astype(np.uint64, copy=False)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Return `n` independent uniform multiples of 2^-53 in [0, 1), shape (n,)."""
        words = self.words(n)
        words >>= np.uint64(11)
        return words.astype(np.float64) * np.float64(2.0**-53)

    def _take(self, n: int) -> NDArray[np.uint8]:
        """Return the next `n` bytes as a fresh array."""
        if n < 0:
            raise LocalProtocolError("a stream cannot give a negative number of bytes")
        out = np.empty(n, dtype=np.uint8)
        self.fill(out.data)
        return out
