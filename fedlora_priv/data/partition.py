"""Which client holds which training examples: disjoint, covering, decided by the public seed alone.

    iid                   a shuffle cut into equal parts; the first clients hold the remainder, one each
    dirichlet             each label's examples cut by proportions drawn from Dirichlet(alpha)
    one-label-per-client  client k holds label k mod L only; a label's remainder goes to its first clients

Source: the Dirichlet split is that of Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", 2019, taken label by label so that no example is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.errors import DataError

PARTITION_DOMAIN = 2
"""Separates the partition's draws from the held-out split's, which have the same public seed."""

Indices = NDArray[np.int64]


def partition(experiment: Experiment, labels: Sequence[int]) -> list[Indices]:
    """Return every client's example indices (int64, ascending), in the order of `client_ids`.

    Raises:
        DataError: a client would hold nothing, or a label would have no client.
    """
    clients = experiment.federation.clients
    generator = np.random.default_rng([experiment.experiment.seed, PARTITION_DOMAIN])
    array = np.asarray(labels, dtype=np.int64)
    kind = experiment.data.partition
    if kind == "iid":
        parts = iid(len(array), clients, generator)
    elif kind == "dirichlet":
        parts = dirichlet(array, clients, experiment.data.dirichlet_alpha, generator)
    else:
        parts = one_label_per_client(array, clients, generator)
    _require_no_empty_client(parts, kind)
    return [np.sort(part) for part in parts]


def partition_id(experiment: Experiment) -> str:
    """Return the public name of the split, for the ledger: another split of the same data has another name.

    It depends on the experiment only, never on the data.
    """
    data = experiment.data
    alpha = f" alpha={data.dirichlet_alpha!r}" if data.partition == "dirichlet" else ""
    held_out = f" held-out={data.evaluation_examples}" if data.public else ""
    return (
        f"{data.partition}{alpha} clients={experiment.federation.clients} "
        f"seed={experiment.experiment.seed}{held_out}"
    )


def iid(examples: int, clients: int, generator: np.random.Generator) -> list[Indices]:
    """Return a random split into parts whose sizes differ by at most one."""
    return np.array_split(generator.permutation(examples), clients)


def dirichlet(labels: Indices, clients: int, alpha: float, generator: np.random.Generator) -> list[Indices]:
    """Return a split whose label proportions are drawn from a symmetric Dirichlet distribution, by label."""
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        proportions = generator.dirichlet(np.full(clients, alpha))
        # Cutting at rounded cumulative proportions gives every example to exactly one client.
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def one_label_per_client(labels: Indices, clients: int, generator: np.random.Generator) -> list[Indices]:
    """Return the pathological split: client k holds examples of label k mod L only."""
    present = np.unique(labels)
    if clients < len(present):
        raise DataError(
            f"{clients} clients cannot hold {len(present)} labels at one label each",
            f"use at least {len(present)} clients or another data.partition",
        )
    parts: list[Indices] = [np.empty(0, dtype=np.int64)] * clients
    for position, label in enumerate(present):
        holders = range(position, clients, len(present))
        members = generator.permutation(np.flatnonzero(labels == label))
        for client, piece in zip(holders, np.array_split(members, len(holders)), strict=True):
            parts[client] = piece
    return parts


def _require_no_empty_client(parts: list[Indices], kind: str) -> None:
    """Refuse a split that leaves a client without examples: it would train on noise alone."""
    empty = [f"client-{index + 1}" for index, part in enumerate(parts) if len(part) == 0]
    if empty:
        remedy = "raise data.dirichlet_alpha, " if kind == "dirichlet" else ""
        raise DataError(
            f"the {kind} partition leaves {', '.join(empty[:3])}{' and others' if len(empty) > 3 else ''} "
            "without examples",
            f"{remedy}use fewer clients, more data or another experiment.seed",
        )
