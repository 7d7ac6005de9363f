"""Splits in which every client holds as many rows, and the labels differ: so that noise and weights are the same.

mixed     each client's labels in proportions of its own, drawn from a Dirichlet distribution
by_label  rows in the order of their labels are cut into equal parts: a client has the fewest labels that it can
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def mixed(labels: Indices, clients: int, alpha: float, generator: np.random.Generator) -> list[Indices]:
    """Return a split whose label proportions are drawn client by client from a symmetric Dirichlet distribution.

    A label of which no row is left goes out of the proportions of those who come later; whom that hits is drawn.
    """
    count = int(labels.max()) + 1
    left = [list(generator.permutation(np.flatnonzero(labels == label))) for label in range(count)]
    sizes = [len(part) for part in np.array_split(labels, clients)]
    parts: dict[int, Indices] = {}
    for client in generator.permutation(clients):
        chances = generator.dirichlet(np.full(count, alpha))
        mine: list[int] = []
        while missing := sizes[client] - len(mine):
            stock = np.array([len(rows) for rows in left])
            usable = np.where(stock > 0, chances + 1e-9, 0.0)  # those it has no chance of come last
            for label, wanted in enumerate(generator.multinomial(missing, usable / usable.sum())):
                taken = min(int(wanted), len(left[label]))
                mine += [left[label].pop() for _ in range(taken)]
        parts[int(client)] = np.sort(np.array(mine, dtype=np.int64))
    return [parts[client] for client in range(clients)]


def by_label(labels: Indices, clients: int, generator: np.random.Generator) -> list[Indices]:
    """Return the split of rows sorted by label; which client gets which part is drawn, and the order within a label."""
    shuffled = generator.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    parts = np.array_split(ordered, clients)
    return [np.sort(parts[place]) for place in generator.permutation(clients)]
