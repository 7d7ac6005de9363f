"""Ways to send what clients trained: from all their weights to the next global ones, and what one client sends.

full      every weight in float32, averaged: what federated averaging sends
lora      what is trained in float32
flocora   as published: every client's weights, each output channel at b bits by the client's own range (norms and
          biases in float32). Those scales cannot be summed: not for use under masks
masked    changes at b bits by public scales from earlier sums, added modulo 2^m: what masks carry
          (`fedlora_priv.communication.scales`). A masked sum is this sum, bit for bit
feedback  the same, and a client adds what rounding left out to its next change. In a federation only updates that are
          private at the client may do so (`protocols.feedback`); MNIST is public
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.communication_bytes import ANCHOR_BYTES, RING, session
from benchmarks.communication_uplink import ring_sum
from benchmarks.flocora_net import Vector, output_channels, read, trainable
from fedlora_priv.communication.meter import Summed, wire_bytes
from fedlora_priv.communication.scales import Scales
from protocols.feedback import ErrorFeedback
from protocols.packing import packed_size
from protocols.prg import SecretStream
from protocols.private import PrivateAtClient
from protocols.quantise import Quantiser
from protocols.sparsify import dense

FIRST_SPREAD = 0.01
"""Before the first sum nothing is known of the changes; scales find their size from here within a few rounds."""

PUBLIC = "public images, in a simulation that releases nothing"


class Way(Protocol):
    """One way to send."""

    def after(self, start: Vector, trained: list[Vector]) -> Vector:
        """Return the next state; `trained` has every client's, always in the same order."""
        ...


class Exact:
    """Weights in float32."""

    def after(self, start: Vector, trained: list[Vector]) -> Vector:
        """Return the mean of what clients trained."""
        del start
        mean: NDArray[np.float64] = np.add.reduce(trained, axis=0, dtype=np.float64) / len(trained)
        return mean.astype(np.float32)


class Flocora:
    """The published way: each client quantises each of its output channels by its own range."""

    def __init__(self, net: nn.Module, bits: int) -> None:
        self._shapes = [tuple(p.shape) for p in trainable(net)]
        self._ends = np.cumsum([p.numel() for p in trainable(net)])[:-1]
        self._bits = bits

    def after(self, start: Vector, trained: list[Vector]) -> Vector:
        """Return the mean of the quantised weights."""
        return Exact().after(start, [self._quantised(vector) for vector in trained])

    def _quantised(self, vector: Vector) -> Vector:
        pairs = zip(np.split(vector, self._ends), self._shapes, strict=True)
        return np.concatenate(
            [affine(p.reshape(shape), self._bits).ravel() if len(shape) > 1 else p for p, shape in pairs]
        )


def affine(array: Vector, bits: int) -> Vector:
    """Return the array after affine quantisation of each first index to that many bits, by its own range."""
    rows = array.reshape(array.shape[0], -1).astype(np.float64)
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    step = np.where(high > low, (high - low) / (2**bits - 1), 1.0)
    rounded: Vector = (low + np.rint((rows - low) / step) * step).astype(np.float32)
    return rounded.reshape(array.shape)


class Masked:
    """Changes at few bits by public scales, summed in the ring; scales follow from the sums."""

    def __init__(self, net: nn.Module, bits: int, clients: int, seed: int, feedback: bool = False) -> None:
        channels = output_channels(net)
        self._scales = Scales(channels, np.full(channels.count, FIRST_SPREAD), bits, clients)
        self._stream = SecretStream(seed.to_bytes(32, "little"))
        self._feedback = [ErrorFeedback(channels.index.size) for _ in range(clients * feedback)]

    def after(self, start: Vector, trained: list[Vector]) -> Vector:
        """Return the next state."""
        quantiser = self._scales.quantiser()
        wanted = [PrivateAtClient(vector - start, PUBLIC) for vector in trained]
        if self._feedback:
            pairs = zip(self._feedback, wanted, strict=True)
            wanted = [feedback.compensate(change) for feedback, change in pairs]
        rings = [quantiser.quantise(change.values, self._stream) for change in wanted]
        for feedback, change, ring in zip(self._feedback, wanted, rings, strict=False):
            feedback.record(change, sent=quantiser.dequantise_sum(ring, clients=1))
        mean = quantiser.dequantise_sum(ring_sum(rings, quantiser), clients=len(rings)) / len(rings)
        self._scales = self._scales.after(mean, dense(start.size), len(rings))
        return (start + mean).astype(np.float32)


def make(name: str, net: nn.Module, bits: int, clients: int, seed: int) -> Way:
    """Return the way of that name."""
    if name == "flocora":
        return Flocora(net, bits)
    if name in ("masked", "feedback"):
        return Masked(net, bits, clients, seed, name == "feedback")
    return Exact()


# bytes of a client and round


def value_bytes(name: str, net: nn.Module, bits: int, clients: int) -> int:
    """Return the bytes of a client's values, and of the scales that it sends along."""
    size = read(net).size
    if name == "flocora":
        return sum(
            packed_size(p.numel(), bits) + 8 * p.shape[0] if p.dim() > 1 else 4 * p.numel()
            for p in trainable(net)
        )
    if name in ("masked", "feedback"):
        return packed_size(size, Quantiser(1.0, bits, clients).modulus_bits)
    return 4 * size


def session_bytes(net: nn.Module, bits: int, clients: int) -> int:
    """Return all that a client uploads to a masked session: keys, shares and framing, too, on a ring of 4 neighbours.

    Those are of a client and its neighbours, whatever the size of the model.
    """
    form = Quantiser(1.0, bits, clients)
    neighbours = RING if clients > RING + 1 else None
    parameters = session(clients, neighbours, read(net).size, form.modulus_bits, form.levels)
    table = wire_bytes([Summed(parameters, "values", attachment_bytes=ANCHOR_BYTES)])
    return round(sum(size for (_, way, _), size in table.items() if way == "up") / clients)
