"""Flower's SecAgg+ at the same work, timed inside its own environment; `flower` runs this file there.

Only Flower's functions are called, in the order in which its client and its server workflow call them. What they
do besides (messages, logging) is left out, in Flower's favour. Prints one JSON object: the least CPU seconds of
some repetitions, or bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

MILLION = 1 << 20
MODULUS = 1 << 32  # Flower's default, as are the next two
TARGET_RANGE = 1 << 22
CLIPPING_RANGE = 8.0
CLIENTS, THRESHOLD = 10, 6


def least(action: Callable[[], object], repetitions: int) -> float:
    """Return the least CPU seconds of one call, all threads together."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def mask(d: int, repetitions: int) -> float:
    """Ten masks onto a vector, as the client's `_collect_masked_vectors` adds them."""
    start = [np.ones(d, np.int64)]
    keys = [os.urandom(32) for _ in range(10)]

    def run() -> None:
        vector = start
        for key in keys:
            vector = parameters_addition(vector, pseudo_rand_gen(key, MODULUS, [(d,)]))
        parameters_mod(vector, MODULUS)

    return least(run, repetitions)


def quantising(repetitions: int) -> float:
    """Stochastic rounding of a vector."""
    values: Any = np.random.default_rng(0).normal(size=MILLION).astype(np.float32)
    return least(lambda: quantize([values], CLIPPING_RANGE, TARGET_RANGE), repetitions)


def upload() -> int:
    """Bytes of a masked vector on the wire."""
    return len(ndarray_to_bytes(np.zeros(MILLION, np.int64)))


def unmask(dropped: int, repetitions: int) -> float:
    """The server's `unmask_stage` between the clients' shares and the decoded sum, on a complete graph."""
    pairs = [generate_key_pairs() for _ in range(CLIENTS)]
    public = [public_key_to_bytes(key) for _, key in pairs]
    secrets = [private_key_to_bytes(pairs[i][0]) if i < dropped else os.urandom(32) for i in range(CLIENTS)]
    shares = [create_shares(secret, THRESHOLD, CLIENTS)[:THRESHOLD] for secret in secrets]
    start = [np.ones(MILLION, np.int64)]

    def run() -> None:
        vector = start
        for i, held in enumerate(shares):
            secret = combine_shares(held)
            if i >= dropped:
                vector = parameters_subtraction(vector, pseudo_rand_gen(secret, MODULUS, [(MILLION,)]))
                continue
            for other in set(range(CLIENTS)) - {i}:
                key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public[other]))
                operation = parameters_addition if i > other else parameters_subtraction
                vector = operation(vector, pseudo_rand_gen(key, MODULUS, [(MILLION,)]))
        dequantize(parameters_mod(vector, MODULUS), CLIPPING_RANGE, TARGET_RANGE)

    return least(run, repetitions)


def shamir() -> tuple[float, float]:
    """Sharing one 32-byte secret with n = 1000 and t = 501, and recombining it: once, whole."""
    shares: list[bytes] = []
    split = least(lambda: shares.extend(create_shares(bytes(32), 501, 1000)), 1)
    return split, least(lambda: combine_shares(shares[:501]), 1)


def measure(what: str) -> dict[str, float]:
    """Return the figures of one section."""
    if what == "masks":
        return {"masks 2^20": mask(MILLION, 9), "masks 10·2^20": mask(10 * MILLION, 3)}
    if what == "encoding":
        return {"quantise": quantising(5), "upload": upload()}
    if what == "unmasking":
        return {"unmask 0": unmask(0, 5), "unmask 1": unmask(1, 5)}
    split, combine = shamir()
    return {"split": split, "combine": combine}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
