"""FLoCoRA's setting in small: a convolutional net on MNIST, federated, LoRA on its convolutions. No DP.

    python benchmarks/flocora_mnist.py run --data ../shared/data/mnist     what is not there yet
    python benchmarks/flocora_mnist.py page                                the table of what is there

What is compared is bytes that one client uploads in a round (`flocora_ways`) against accuracy. Every finished run is a
line of RESULTS/flocora.jsonl and is not run again: stop the command at any time and start it again.

Source: Grativol Ribeiro et al., "FLoCoRA" (EUSIPCO 2024).
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.flocora_net import lora_and_rest, read, write
from benchmarks.flocora_setting import WAYS, Setting
from benchmarks.flocora_table import text
from benchmarks.flocora_ways import make
from benchmarks.resumable import write_whole
from benchmarks.sst2_study import Lines

SEEDS = (0, 1, 2)


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


def split(labels: NDArray[np.int64], clients: int, skew: float, seed: int) -> list[NDArray[np.int64]]:
    """Return each client's rows: every label's rows are dealt out in Dirichlet shares."""
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(clients, skew)))[:-1] * rows.size).astype(int)
        for part, of_client in zip(np.split(rows, cuts), parts, strict=True):
            of_client.append(part)
    return [np.concatenate(part) for part in parts]


def train(
    net: nn.Module, images: Images, rows: NDArray[np.int64], setting: Setting, number: int, k: int
) -> None:
    """Train one client by SGD with momentum, anew in every round."""
    rng = np.random.default_rng([setting.seed, number, k])
    lora, rest = lora_and_rest(net)
    rest_rate = setting.full_rate if setting.way == "full" else setting.rest_rate
    rates = [(lora, setting.learning_rate), (rest, rest_rate)]
    optimizer = torch.optim.SGD(
        [{"params": part, "lr": rate * setting.slowed(number)} for part, rate in rates if part], momentum=0.9
    )
    for _ in range(setting.epochs):
        order = rng.permutation(rows)
        for at in range(0, order.size, setting.batch):
            batch = torch.from_numpy(order[at : at + setting.batch])
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


def federate(setting: Setting, images: Images, test: Images) -> dict[str, Any]:
    """Return a run's test accuracy after the last round, and the CPU seconds that it took. All clients take part."""
    began = time.process_time()
    net = setting.net()
    way = make(setting.way, net, setting.bits, setting.clients, setting.seed)
    parts = split(images.labels.numpy(), setting.clients, setting.skew, setting.seed)
    state = read(net)
    for number in range(setting.rounds):
        trained = []
        for k, rows in enumerate(parts):
            write(net, state)
            train(net, images, rows, setting, number, k)
            trained.append(read(net))
        state = way.after(state, trained)
    write(net, state)
    return {"accuracy": accuracy(net, test), "seconds": round(time.process_time() - began, 1)}


def key(setting: Setting) -> dict[str, Any]:
    """Return what a run's line is found by."""
    return {"setting": asdict(setting)}


def run(wanted: Sequence[Setting], data: Path, results: Path, most: int | None = None) -> None:
    """Run what is not there yet, in this order, or `most` of it; the page follows every run."""
    lines = Lines(results / "flocora.jsonl")
    todo = [setting for setting in wanted if not lines.have(key(setting))]
    for setting in todo[:most]:
        images = Images.load(data, "train", setting.images)
        outcome = federate(setting, images, Images.load(data, "t10k", setting.test_images))
        lines.add(key(setting), outcome)
        print(setting.way, setting.bits, "bits, seed", setting.seed, outcome, flush=True)
        page(results)


def page(results: Path) -> None:
    """Write the table of all runs there are."""
    write_whole(results, "flocora.md", text(list(Lines(results / "flocora.jsonl"))))


def main(arguments: list[str] | None = None) -> None:
    """Run, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "page"))
    parser.add_argument("--data", type=Path, help="folder with the four idx files, gzipped")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--most", type=int, help="stop after so many runs")
    chosen = parser.parse_args(arguments)
    if chosen.action == "page":
        page(chosen.results)
    elif chosen.data is None:
        parser.error("run needs --data")
    else:
        torch.set_num_threads(1)
        wanted = [Setting(way, bits, seed) for seed in chosen.seeds for way, bits in WAYS]
        run(wanted, chosen.data, chosen.results, chosen.most)


if __name__ == "__main__":
    main()
