"""Partitions are disjoint, cover everything and depend on the public seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_priv.config import Experiment
from fedlora_priv.data.partition import dirichlet, iid, one_label_per_client, partition, partition_id
from fedlora_priv.errors import DataError

KINDS = ["iid", "dirichlet", "one-label-per-client"]


def experiment(kind: str, *overrides: str) -> Experiment:
    text = f"[experiment]\nname='t'\n[data]\npublic=true\npartition='{kind}'\n[privacy]\nepsilon=1\n"
    return Experiment.from_toml(text, overrides)


def labels_of(examples: int, labels: int) -> list[int]:
    return np.random.default_rng(7).integers(0, labels, examples).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_disjoint_and_covering(kind: str) -> None:
    labels = labels_of(1003, 4)
    parts = partition(experiment(kind), labels)
    assert len(parts) == 5
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1003))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    labels = labels_of(500, 3)
    first, again = partition(experiment(kind), labels), partition(experiment(kind), labels)
    other = partition(experiment(kind, "experiment.seed=1"), labels)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_sizes_differ_by_at_most_one() -> None:
    assert [len(part) for part in partition(experiment("iid"), labels_of(1003, 2))] == [
        201,
        201,
        201,
        200,
        200,
    ]


def test_one_label_per_client_gives_label_k_mod_l() -> None:
    labels = np.array(labels_of(1000, 2))
    parts = partition(experiment("one-label-per-client"), labels.tolist())
    assert [set(labels[part].tolist()) for part in parts] == [{0}, {1}, {0}, {1}, {0}]
    with pytest.raises(DataError, match="5 clients cannot hold 6 labels"):
        partition(experiment("one-label-per-client"), labels_of(1000, 6))


def test_dirichlet_skew_follows_alpha() -> None:
    """Client 1's share of one label is Beta(a, 3a): mean (5 standard errors) and variance over 400 draws."""
    labels = np.zeros(2000, dtype=np.int64)
    for alpha in (0.5, 5.0):
        generator = np.random.default_rng(11)
        shares = np.array([len(dirichlet(labels, 4, alpha, generator)[0]) / 2000 for _ in range(400)])
        total = 4 * alpha
        variance = (1 / 4) * (3 / 4) / (total + 1)
        assert abs(shares.mean() - 1 / 4) < 5 * np.sqrt(variance / 400)
        assert 0.7 * variance < shares.var() < 1.4 * variance


def test_an_empty_client_is_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"leaves client-.* raise data.dirichlet_alpha"):
        partition(experiment("dirichlet", "data.dirichlet_alpha=0.001"), labels_of(100, 2))
    with pytest.raises(DataError, match="the iid partition leaves client-4, client-5 without examples"):
        partition(experiment("iid"), [0, 1, 0])


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    clients=st.integers(1, 9),
    alpha=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_example_lands_exactly_once(labels: list[int], clients: int, alpha: float, seed: int) -> None:
    array, everything = np.array(labels, dtype=np.int64), list(range(len(labels)))
    assert (
        sorted(np.concatenate(iid(len(labels), clients, np.random.default_rng(seed))).tolist()) == everything
    )
    parts = dirichlet(array, clients, alpha, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == everything
    if clients >= len(set(labels)):
        parts = one_label_per_client(array, clients, np.random.default_rng(seed))
        assert sorted(np.concatenate(parts).tolist()) == everything


def test_the_partition_id_names_what_decides_the_split() -> None:
    reference = partition_id(experiment("dirichlet"))
    assert "dirichlet" in reference
    for override in ("experiment.seed=1", "federation.clients=6", "data.dirichlet_alpha=0.25"):
        assert partition_id(experiment("dirichlet", override)) != reference
    assert partition_id(experiment("dirichlet", "privacy.epsilon=2", "federation.rounds=3")) == reference
    assert partition_id(experiment("iid")) == partition_id(experiment("iid", "data.dirichlet_alpha=0.25"))
