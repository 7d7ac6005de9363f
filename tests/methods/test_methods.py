"""Every method against its own equations, written once more in the plainest numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedlora_priv.methods import METHODS, Layout, LoraModule, Shared, get
from fedlora_priv.methods.fra import factor

LAYOUT = Layout(
    modules=(LoraModule("layer.0.query", 7, 5, 3, 2.0), LoraModule("layer.1.value", 6, 8, 3, 2.0)),
    heads={"classifier.weight": (2, 6), "classifier.bias": (2,)},
)
SHARED = Shared(seed=7, round=3)


def random_state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in LAYOUT.shapes().items()}


def run(name: str, start: dict, clients: list[dict]) -> dict:
    """Upload, sum, combine: all that a server ever does."""
    method = get(name)
    uploads = [method.upload(LAYOUT, start, trained, SHARED) for trained in clients]
    contract = method.contract(LAYOUT)
    for upload in uploads:
        assert {k: v.shape for k, v in upload.items()} == dict(contract.uploads)
    sums = {k: np.sum([u[k] for u in uploads], axis=0, dtype=np.float64) for k in contract.uploads}
    return dict(method.combine(LAYOUT, start, sums, len(clients), SHARED))


@pytest.fixture
def federation() -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(0)
    start = random_state(rng)
    return start, [random_state(rng) for _ in range(4)]


def test_fedit_averages_every_array_over_all_clients(federation: tuple[dict, list[dict]]) -> None:
    start, clients = federation
    combined = run("fedit", start, clients)
    for name in LAYOUT.shapes():
        assert_allclose(combined[name], np.mean([c[name] for c in clients], axis=0), rtol=1e-5, atol=1e-6)


def test_every_client_counts(federation: tuple[dict, list[dict]]) -> None:
    """A known baseline averages client 0 alone by a typo; changing any client must change our result."""
    start, clients = federation
    for method in METHODS:
        before = run(method, start, clients)
        for i in range(len(clients)):
            changed = [*clients[:i], {k: v + 1 for k, v in clients[i].items()}, *clients[i + 1 :]]
            after = run(method, start, changed)
            assert any(not np.allclose(before[k], after[k]) for k in before), (method, i)


def test_ffa_leaves_a_alone_and_is_exact(federation: tuple[dict, list[dict]]) -> None:
    start, clients = federation
    clients = [c | {m.a_name: start[m.a_name] for m in LAYOUT.modules} for c in clients]
    combined = run("ffa", start, clients)
    for m in LAYOUT.modules:
        assert_array_equal(combined[m.a_name], start[m.a_name])
        mean_product = np.mean([c[m.b_name] @ c[m.a_name] for c in clients], axis=0)
        assert_allclose(combined[m.b_name] @ combined[m.a_name], mean_product, rtol=1e-4, atol=1e-5)


def test_fra_is_the_best_rank_r_of_the_mean_product(federation: tuple[dict, list[dict]]) -> None:
    start, clients = federation
    combined = run("fra", start, clients)
    for m in LAYOUT.modules:
        mean = np.mean([m.scaling * c[m.b_name] @ c[m.a_name] for c in clients], axis=0)
        got = m.scaling * combined[m.b_name] @ combined[m.a_name]
        optimum = np.sqrt((np.linalg.svd(mean)[1][m.rank :] ** 2).sum())  # Eckart-Young
        assert np.linalg.norm(mean - got) == pytest.approx(optimum, rel=1e-4)
    assert_allclose(
        combined["classifier.bias"], np.mean([c["classifier.bias"] for c in clients], axis=0), atol=1e-6
    )


def test_fra_beats_fedit_where_drifts_are_correlated() -> None:
    """With B_i = B0 + U·C_i and A_i = A0 + C_iᵀ·V the mean product is far from the product of the means."""
    rng = np.random.default_rng(1)
    m = LoraModule("w", 64, 48, 4, 1.0)
    layout = Layout((m,), {})
    start = {m.a_name: rng.normal(size=(4, 48)), m.b_name: rng.normal(size=(64, 4))}
    start = {k: v.astype(np.float32) for k, v in start.items()}
    u, v = rng.normal(size=(64, 2)), rng.normal(size=(2, 48))
    clients = []
    for _ in range(6):
        c = rng.normal(size=(2, 4))
        clients.append({m.b_name: start[m.b_name] + u @ c, m.a_name: start[m.a_name] + c.T @ v})
    mean = np.mean([c[m.b_name] @ c[m.a_name] for c in clients], axis=0)
    errors = {}
    for name in ("fedit", "fra"):
        method = get(name)
        uploads = [method.upload(layout, start, c, SHARED) for c in clients]
        sums = {k: np.sum([up[k] for up in uploads], axis=0) for k in uploads[0]}
        out = method.combine(layout, start, sums, len(clients), SHARED)
        errors[name] = np.linalg.norm(mean - out[m.b_name] @ out[m.a_name]) / np.linalg.norm(mean)
    assert errors["fra"] < 0.6 * errors["fedit"]


def test_a_vanished_direction_can_still_be_trained() -> None:
    m = LoraModule("w", 6, 5, 3, 2.0)
    rank_one = np.outer(np.arange(6.0), np.ones(5))
    b, a = factor(m, rank_one, SHARED)
    assert_allclose(m.scaling * b @ a, rank_one, atol=1e-5)
    assert (np.linalg.norm(a, axis=1) > 0).all()
    again = factor(m, rank_one, SHARED)
    assert_array_equal(a, again[1])
    zero_b, fresh_a = factor(m, np.zeros((6, 5)), SHARED)
    assert not zero_b.any()
    assert np.linalg.matrix_rank(fresh_a) == 3


def test_get_names_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"did you mean 'ffa'"):
        get("fffa")


def test_dense_bytes_count_every_trainable_in_float32() -> None:
    assert LAYOUT.dense_fp32_bytes == 4 * (3 * 5 + 7 * 3 + 3 * 8 + 6 * 3 + 12 + 2)
