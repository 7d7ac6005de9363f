"""The keystream is AES-256 in counter mode, whatever the sizes of the requests."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.errors import LocalProtocolError
from protocols.prg import CHUNK_BYTES, SecretStream

KEY = bytes(range(32))


def test_the_cipher_agrees_with_sp_800_38a_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plaintext = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    ciphertext = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    assert encryptor.update(plaintext) == ciphertext


def test_the_stream_is_the_encrypted_counter() -> None:
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(20))
    single = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    assert SecretStream(KEY).bytes(320) == single.update(blocks)


def test_requests_of_any_size_continue_the_stream() -> None:
    whole = SecretStream(KEY).bytes(3 * CHUNK_BYTES)
    stream = SecretStream(KEY)
    sizes = (0, 1, 15, 17, CHUNK_BYTES, CHUNK_BYTES + 3)
    parts = b"".join(stream.bytes(size) for size in sizes)
    assert parts == whole[: sum(sizes)]


def test_words_and_uniforms_read_the_same_bytes() -> None:
    raw = SecretStream(KEY).bytes(8 * 1000)
    words = SecretStream(KEY).words(1000)
    assert words.tolist() == [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 8000, 8)]
    uniform = SecretStream(KEY).uniform(1000)
    assert uniform.dtype == np.float64
    assert uniform.tolist() == [(word >> 11) / 2**53 for word in words.tolist()]


def test_uniforms_are_uniform() -> None:
    # Kolmogorov-Smirnov on 100,000 draws of a fixed key; P[D > 0.0062] < 0.001 for a uniform source.
    draws = np.sort(SecretStream(KEY).uniform(100_000))
    assert draws[0] >= 0.0
    assert draws[-1] < 1.0
    grid = np.arange(1, draws.size + 1) / draws.size
    assert np.abs(draws - grid).max() < 0.0062


def test_fresh_streams_differ() -> None:
    assert SecretStream().bytes(32) != SecretStream().bytes(32)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "a" * 32, bytearray(32)])
def test_a_wrong_key_is_refused(key: object) -> None:
    with pytest.raises(LocalProtocolError):
        SecretStream(key)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        SecretStream(KEY).bytes(-1)


def _ask(stream: SecretStream, answers: Connection) -> None:
    """Ask a stream that a fork has carried into this process, and one of its own."""
    try:
        answers.send(stream.bytes(8))
    except LocalProtocolError as error:
        answers.send(str(error))
    answers.send(len(SecretStream(KEY).bytes(8)))


def test_a_forked_child_gets_nothing_of_the_stream() -> None:
    stream, (ours, theirs) = SecretStream(), multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        _ask(stream, theirs)
        os._exit(0)
    os.waitpid(child, 0)
    assert "carried over by fork" in str(ours.recv())
    assert ours.recv() == len(stream.bytes(8)) == 8


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_is_never_duplicated(duplicate: object) -> None:
    with pytest.raises(LocalProtocolError):
        duplicate(SecretStream(KEY))
