"""FLoCoRA's setting in small: a convolutional net on MNIST, federated, LoRA on its convolutions. No DP.

    python benchmarks/flocora_mnist.py --data ../shared/data/mnist

A random net stays frozen; each client trains LoRA on the inner convolutions, and the first convolution, the norms and
the head in full (α = 16r). What is compared is bytes that one client uploads in a round against accuracy:

    full      every weight in float32, averaged: what federated averaging sends
    lora      what is trained in float32
    flocora   as published: every client's weights, each output channel at b bits by the client's own range (norms and
              biases in float32). Those scales cannot be summed: not for use under masks
    masked    changes at b bits by public scales from earlier sums, summed modulo 2^m: what masks would carry
              (`fedlora_priv.communication.scales`). A masked sum is this sum, bit for bit

A byte count is of values, and for `flocora` of its scales; keys and signatures of a session come on top and do not grow
with the model (`fedlora_priv.communication.meter`).

Source: Grativol Ribeiro et al., "FLoCoRA" (EUSIPCO 2024).
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fedlora_priv.communication.scales import Channels, Scales
from protocols.packing import packed_size
from protocols.prg import SecretStream
from protocols.sparsify import dense

Vector = NDArray[np.float32]

FIRST_SPREAD = 0.01
"""Before the first sum nothing is known of the changes; scales find their size from here within a few rounds."""


class LoRAConv(nn.Module):
    """A frozen convolution plus α/r times a 1×1 convolution B of an r-channel convolution A; B begins at zero.

    The map is a convolution whose kernel is `merged`: W + (α/r)·Σ_j B[:, j]·A[j].
    """

    def __init__(self, inside: int, outside: int, stride: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.base.weight.requires_grad_(False)
        self.lora_a = nn.Conv2d(inside, rank, 3, stride, padding=1, bias=False)
        self.lora_b = nn.Conv2d(rank, outside, 1, bias=False)
        nn.init.zeros_(self.lora_b.weight)
        self.scaling = 16.0  # α/r, and α = 16r

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolved images."""
        convolved: Tensor = self.base(images) + self.scaling * self.lora_b(self.lora_a(images))
        return convolved

    def merged(self) -> Tensor:
        """Return the one kernel that does the same, shape (outside, inside, 3, 3)."""
        product = torch.einsum("or,rixy->oixy", self.lora_b.weight[:, :, 0, 0], self.lora_a.weight)
        return self.base.weight + self.scaling * product


def build(rank: int | None, seed: int) -> nn.Sequential:
    """Return the net of that seed, with LoRA of `rank` on its inner convolutions or with all of it trained."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.GroupNorm(4, 16), nn.ReLU()]
    for inside, outside, stride in ((16, 32, 2), (32, 64, 2), (64, 64, 1)):
        plain = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        layers += [
            plain if rank is None else LoRAConv(inside, outside, stride, rank),
            nn.GroupNorm(4, outside),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """Return what is trained, in order."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def read(net: nn.Module) -> Vector:
    """Return what is trained as one vector."""
    return np.concatenate([p.detach().numpy().ravel() for p in trainable(net)])


def write(net: nn.Module, vector: Vector) -> None:
    """Set what is trained."""
    at = 0
    for parameter in trainable(net):
        part = torch.from_numpy(vector[at : at + parameter.numel()].copy())
        parameter.data = part.reshape(parameter.shape)
        at += parameter.numel()


def output_channels(net: nn.Module) -> Channels:
    """Return the channels of what is trained: an array's rows, or its columns where those are the longer ones (B)."""
    shapes = {str(i): tuple(p.shape) for i, p in enumerate(trainable(net))}
    axes: dict[str, int | None] = {}
    for name, shape in shapes.items():
        axes[name] = None if len(shape) < 2 else 1 if shape[2:] == (1, 1) else 0
    return Channels.along(shapes, axes)


# ways to send a client's result: from the clients' weights to their mean, and the bytes that one of them sends

Mean = Callable[[Vector, list[Vector]], Vector]


@dataclass
class Way:
    """One way: `mean(start, trained)` is the next global state."""

    name: str
    mean: Mean
    uploaded: int


def exact_mean(start: Vector, trained: list[Vector]) -> Vector:
    """Return the mean of what clients trained."""
    del start
    mean: NDArray[np.float64] = np.add.reduce(trained, axis=0, dtype=np.float64) / len(trained)
    return mean.astype(np.float32)


def flocora(net: nn.Module, bits: int) -> Way:
    """The published way: each client quantises each of its output channels by its own range."""
    shapes = [tuple(p.shape) for p in trainable(net)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def quantised(vector: Vector) -> Vector:
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        return np.concatenate(
            [
                affine(part.reshape(shape), bits).ravel() if len(shape) > 1 else part
                for part, shape in zip(parts, shapes, strict=True)
            ]
        )

    uploaded = sum(
        packed_size(size, bits) + 8 * shape[0] if len(shape) > 1 else 4 * size
        for size, shape in zip(sizes, shapes, strict=True)
    )
    return Way(
        f"flocora, {bits} bits", lambda start, all_: exact_mean(start, [quantised(v) for v in all_]), uploaded
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

    def __init__(self, net: nn.Module, bits: int, clients: int, seed: int) -> None:
        channels = output_channels(net)
        self.scales = Scales(channels, np.full(channels.count, FIRST_SPREAD), bits, clients)
        self.stream = SecretStream(seed.to_bytes(32, "little"))

    def mean(self, start: Vector, trained: list[Vector]) -> Vector:
        """Return the next state."""
        quantiser = self.scales.quantiser()
        total = np.zeros(start.size, dtype=np.uint32)
        for vector in trained:
            total += quantiser.quantise(vector - start, self.stream)
        total &= np.uint32(2**quantiser.modulus_bits - 1)
        mean = quantiser.dequantise_sum(total) / len(trained)
        self.scales = self.scales.after(mean, dense(start.size), len(trained))
        return (start + mean).astype(np.float32)


def masked(net: nn.Module, bits: int, clients: int, seed: int) -> Way:
    """The way that masks can carry."""
    sums = Masked(net, bits, clients, seed)
    uploaded = packed_size(read(net).size, sums.scales.quantiser().modulus_bits)
    return Way(f"masked, {bits} bits", sums.mean, uploaded)


# data and training


@dataclass(frozen=True)
class Images:
    """Images of 28 × 28, standardised, float32 of shape (n, 1, 28, 28), and their labels."""

    pixels: Tensor
    labels: Tensor

    @classmethod
    def load(cls, folder: Path, which: str, most: int) -> Images:
        """Return the first `most` images of "train" or "t10k"."""
        pixels = _idx(folder / f"{which}-images-idx3-ubyte.gz", header=16)[: most * 784]
        labels = _idx(folder / f"{which}-labels-idx1-ubyte.gz", header=8)[:most]
        scaled = (pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - 0.1307) / 0.3081
        return cls(torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64)))


def _idx(path: Path, header: int) -> NDArray[np.uint8]:
    """Return the bytes of an idx file after its header."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header)


def split(labels: NDArray[np.int64], clients: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Return each client's rows: every label's rows are dealt out in Dirichlet(α) shares."""
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * rows.size).astype(int)
        for part, of_client in zip(np.split(rows, cuts), parts, strict=True):
            of_client.append(part)
    return [np.concatenate(part) for part in parts]


def train(net: nn.Module, images: Images, rows: NDArray[np.int64], settings: Settings, seed: int) -> None:
    """Train by SGD for one epoch of these rows, at the rate of what is trained."""
    is_lora = any(isinstance(layer, LoRAConv) for layer in net.modules())
    rate = settings.learning_rate if is_lora else settings.full_learning_rate
    order = np.random.default_rng(seed).permutation(rows)
    optimizer = torch.optim.SGD(trainable(net), lr=rate, momentum=0.9)
    for at in range(0, order.size, settings.batch_size):
        batch = torch.from_numpy(order[at : at + settings.batch_size])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images.pixels[batch]), images.labels[batch])
        torch.autograd.backward(loss)
        optimizer.step()


def accuracy(net: nn.Module, images: Images) -> float:
    """Return the share of images that are labelled rightly."""
    right, n = 0, len(images.labels)
    with torch.no_grad():
        for at in range(0, n, 500):
            guessed = net(images.pixels[at : at + 500]).argmax(1)
            right += int(torch.count_nonzero(guessed == images.labels[at : at + 500]))
    return right / n


@dataclass(frozen=True)
class Settings:
    """Of a federation."""

    clients: int = 20
    a_round: int = 10
    rounds: int = 30
    rank: int = 8
    learning_rate: float = 0.005
    full_learning_rate: float = 0.05
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What one way came to."""

    name: str
    uploaded: int
    times_less: float
    accuracy: float
    seconds: float


def federate(net: nn.Module, way: Way, data: tuple[Images, Images], settings: Settings) -> float:
    """Return the accuracy after all rounds: the mean over the last three, which jump with few clients."""
    images, test = data
    parts = split(images.labels.numpy(), settings.clients, 0.5, settings.seed)
    drawn = np.random.default_rng([settings.seed, 1])
    state, last = read(net), []
    for number in range(settings.rounds):
        trained = []
        for client in drawn.permutation(settings.clients)[: settings.a_round]:
            write(net, state)
            train(net, images, parts[client], settings, seed=1000 * number + int(client))
            trained.append(read(net))
        state = way.mean(state, trained)
        if number >= settings.rounds - 3:
            write(net, state)
            last.append(accuracy(net, test))
    return float(np.mean(last))


def compare(
    data: tuple[Images, Images], settings: Settings, bits: tuple[int, ...], only: tuple[str, ...] = ()
) -> Iterator[Result]:
    """Yield every way's result, or of those that begin with `only`; bytes are compared with the first way's."""
    full = build(None, settings.seed)
    whole = 4 * read(full).size
    lora = build(settings.rank, settings.seed)
    start = read(lora)
    ways = [
        (full, Way("full, float32", exact_mean, whole)),
        (lora, Way("lora, float32", exact_mean, 4 * start.size)),
    ]
    ways += [(lora, flocora(lora, b)) for b in bits]
    ways += [(lora, masked(lora, b, settings.a_round, settings.seed)) for b in bits]
    for net, way in ways:
        if only and not way.name.startswith(only):
            continue
        began = time.process_time()
        if net is lora:
            write(net, start)
        reached = federate(net, way, data, settings)
        yield Result(way.name, way.uploaded, whole / way.uploaded, reached, time.process_time() - began)


def main() -> None:
    """Print a table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four idx files, gzipped")
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--rank", type=int, default=Settings.rank)
    parser.add_argument("--images", type=int, default=4000, help="of the training set, over all clients")
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate, help="of LoRA")
    parser.add_argument("--full-learning-rate", type=float, default=Settings.full_learning_rate)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument(
        "--ways", nargs="*", default=[], help="only those whose name begins with one of these"
    )
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    settings = Settings(
        rounds=chosen.rounds,
        rank=chosen.rank,
        learning_rate=chosen.learning_rate,
        full_learning_rate=chosen.full_learning_rate,
        seed=chosen.seed,
    )
    data = (
        Images.load(chosen.data, "train", chosen.images),
        Images.load(chosen.data, "t10k", chosen.test_images),
    )
    print(settings)
    print(
        "| way | uploaded a client and round | × less | accuracy | CPU s |\n| --- | --- | --- | --- | --- |"
    )
    for result in compare(data, settings, tuple(chosen.bits), tuple(chosen.ways)):
        print(
            f"| {result.name} | {result.uploaded:,} | {result.times_less:.1f} | {result.accuracy:.4f} "
            f"| {result.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
