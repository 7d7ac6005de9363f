"""Supports by tier: nested for any sizes, and sums exact under every mix of densities, plain and under masks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import SupportError
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import run_session
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended
from protocols.sparsify import Support, seeded_random_k
from protocols.tiers import Tiers, nested_topk
from protocols.voting import VoteRules

KEY = bytes(range(32))


def support(d: int, *indices: int) -> Support:
    return Support(d, np.array(indices))


@st.composite
def mixes(draw: st.DrawFn) -> tuple[Tiers, dict[str, np.ndarray]]:
    """Any dimension, nested sizes, assignment of clients to tiers, and small integer vectors of the clients."""
    d = draw(st.integers(1, 60))
    sizes = sorted(draw(st.sets(st.integers(1, d), min_size=1, max_size=4)))
    scores = np.array(draw(st.lists(st.integers(0, 5), min_size=d, max_size=d)), dtype=np.float64)
    supports = nested_topk(scores, sizes, draw(st.sampled_from([0.0, 0.25, 1.0])), b"seed")
    tiers = [*draw(st.lists(st.integers(0, len(sizes) - 1), max_size=5)), len(sizes) - 1]
    tier_of = {f"client-{i}": tier for i, tier in enumerate(tiers)}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Tiers(supports, tier_of), {name: rng.integers(-9, 10, d) for name in tier_of}


def brute_force(tiers: Tiers, vectors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts, client by client and coordinate by coordinate."""
    total, count = np.zeros(tiers.dimension), np.zeros(tiers.dimension, dtype=int)
    for name, vector in vectors.items():
        for i in tiers.supports[tiers.tier_of[name]].indices.tolist():
            total[i] += vector[i]
            count[i] += 1
    return total, count


@settings(deadline=None, max_examples=200)
@given(mixes())
def test_sums_and_counts_are_exact_under_every_mix_of_densities(
    mix: tuple[Tiers, dict[str, np.ndarray]],
) -> None:
    tiers, vectors = mix
    total, count = brute_force(tiers, vectors)
    by_band = [
        sum(tiers.parts(name, vectors[name])[j] for name in band.clients)
        for j, band in enumerate(tiers.bands)
    ]
    everybody = [band.clients for band in tiers.bands]
    assert tiers.join(by_band).tolist() == total.tolist()
    assert tiers.counts(everybody).tolist() == count.tolist()
    expected = [t / c if c else 0.0 for t, c in zip(total, count, strict=True)]
    assert (
        tiers.mean([np.asarray(part, dtype=np.float64) for part in by_band], everybody).tolist() == expected
    )
    lined_up = sum(tiers.line_up(name, vector) for name, vector in vectors.items())
    assert tiers.join(tiers.cut(lined_up)).tolist() == total.tolist()


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 80), st.data())
def test_nested_supports_have_their_sizes_and_hold_each_other(d: int, data: st.DataObject) -> None:
    sizes = sorted(data.draw(st.sets(st.integers(1, d), min_size=1, max_size=5)))
    fraction = data.draw(st.floats(0, 1))
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=d, max_size=d)), dtype=np.float64)
    supports = nested_topk(scores, sizes, fraction, b"x")
    assert [len(each) for each in supports] == sizes
    for narrow, wide in itertools.pairwise(supports):
        assert set(narrow.indices.tolist()) < set(wide.indices.tolist())
    for each, k in zip(supports, sizes, strict=True):  # the highest scores that are owed to it are all in it
        owed = k - math.ceil(k * fraction)
        chosen = np.isin(np.arange(d), each.indices)
        assert int(np.count_nonzero(chosen)) >= owed
        for score in np.unique(scores):
            above = int(np.count_nonzero(scores > score))
            alike = scores == score
            assert np.count_nonzero(chosen & alike) >= min(max(owed - above, 0), np.count_nonzero(alike))


def test_random_supports_of_one_seed_are_nested_already() -> None:
    supports = [seeded_random_k(200, k, b"round 7") for k in (3, 50, 51, 200)]
    Tiers(tuple(supports), {"ada": 0, "bob": 3})


def test_voted_supports_of_one_vote_are_nested_already() -> None:
    votes = np.random.default_rng(3).multinomial(4 * 30, np.ones(200) / 200).astype(np.uint32)
    votes[votes > 4] = 4
    spare = 4 * 30 - int(votes.sum())
    votes[np.flatnonzero(votes < 4)[:spare]] += np.uint32(1)
    supports = [
        VoteRules(dimension=200, votes=30, size=k, max_clients=4, tie_seed=b"r").support(votes, voters=4)
        for k in (5, 20, 60)
    ]
    Tiers(tuple(supports), {"ada": 0, "bob": 2})


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_coordinates_of_equal_scores_are_chosen_alike(fraction: float) -> None:
    # 1000 supports of 5 of 25 equal scores, explored or not: each is in 200 of them, standard deviation 12.6; beyond
    # 6 of those somewhere with probability below 25·2e-9. Seeds are fixed.
    seen = np.zeros(25)
    for seed in range(1000):
        seen[nested_topk(np.zeros(25), (5, 10), fraction, seed.to_bytes(4, "big"))[0].indices] += 1
    assert np.abs(seen - 200).max() < 6 * 12.7


def test_infinite_scores_are_in_every_support() -> None:
    scores = np.where(np.arange(40) < 4, np.inf, 0.0)
    for each in nested_topk(scores, (8, 16, 32), 0.5, b"x"):
        assert {0, 1, 2, 3} <= set(each.indices.tolist())


@pytest.mark.parametrize(
    ("supports", "tier_of", "says"),
    [
        ((), {"ada": 0}, "at least one"),
        ((support(4, 1),), {}, "at least one"),
        ((support(4, 1), support(4, 0, 2)), {"ada": 1}, "nested"),
        ((support(4, 1, 2), support(4, 1)), {"ada": 1}, "narrowest"),
        ((support(4, 1), support(4, 1)), {"ada": 1}, "narrowest"),
        ((support(4, 1), support(5, 1, 2)), {"ada": 1}, "one dimension"),
        ((support(4, 1),), {"ada": 1}, "no tier"),
        ((support(4, 1),), {"ada": -1}, "no tier"),
        ((support(4, 1), support(4, 1, 2)), {"ada": 0}, "leave it out"),
    ],
)
def test_tiers_that_are_none_are_refused(
    supports: tuple[Support, ...], tier_of: dict[str, int], says: str
) -> None:
    with pytest.raises(SupportError, match=says):
        Tiers(supports, tier_of)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.array([1.0, math.nan]), (1,), 0.0),
        (np.zeros((2, 2)), (1,), 0.0),
        (np.zeros(4), (), 0.0),
        (np.zeros(4), (0,), 0.0),
        (np.zeros(4), (5,), 0.0),
        (np.zeros(4), (2, 2), 0.0),
        (np.zeros(4), (3, 2), 0.0),
        (np.zeros(4), (2,), 1.1),
        (np.zeros(4), (2,), math.nan),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(SupportError):
        nested_topk(*arguments, b"x")


def test_what_does_not_fit_the_tiers_is_refused() -> None:
    tiers = Tiers((support(4, 1), support(4, 1, 3)), {"ada": 0, "bob": 1, "eve": 1})
    for misuse in (
        lambda: tiers.support_of("mallory"),
        lambda: tiers.parts("mallory", np.zeros(4)),
        lambda: tiers.line_up("mallory", np.zeros(4)),
        lambda: tiers.join([np.zeros(1)]),
        lambda: tiers.join([np.zeros(1), np.zeros(2)]),
        lambda: tiers.counts([("ada",)]),
        lambda: tiers.counts([("ada",), ("ada",)]),
        lambda: tiers.cut(np.zeros(3)),
        lambda: tiers.parts("bob", np.zeros(5)),
    ):
        with pytest.raises(SupportError):
            misuse()
    tiers.require_hidden(2)
    with pytest.raises(SupportError, match="tier 1 adds"):
        tiers.require_hidden(3)


def session_sum(
    vectors: dict[str, np.ndarray], bits: int, bound: int, exchange: int, **changes: Any
) -> np.ndarray:
    """The sum of a real session, as signed integers."""
    names = tuple(vectors)
    identities = {name: Identity.generate() for name in names}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    counts = recommended(len(names), max_colluders=0)
    length = next(iter(vectors.values())).size
    parameters = SessionParameters(
        session_id=bytes([exchange]) * 32, round=1, exchange=exchange, roster=names, max_colluders=0,
        quorum=counts.quorum, threshold=counts.threshold, min_survivors=counts.min_survivors, degree=counts.degree,
        vector_length=length, modulus_bits=bits, bound=bound, context=bytes(32), **changes)  # fmt: skip
    policy = ClientPolicy(
        max_colluders=0, min_survivors=2, min_quorum=2, min_contributors=2,
        exact_round=(1, exchange), exact_form=parameters.form)  # fmt: skip
    clients = {
        name: SecAggClient(client_id=name, identity=identities[name], roster=roster, policy=policy,
                           guard=MemoryGuard(), context=bytes(32))
        for name in names
    }  # fmt: skip
    return run_session(clients, SecAggServer(parameters=parameters, roster=roster), vectors).sum


def test_under_masks_bands_and_one_session_of_all_give_the_same_sums() -> None:
    d, quantiser = 90, Quantiser(1.0, 8, 5)
    rng, stream = np.random.default_rng(0), SecretStream(KEY)
    supports = nested_topk(rng.random(d), (9, 30, 60), 0.25, b"round 1")
    tier_of = {"ada": 0, "bob": 1, "cyd": 1, "dan": 2, "eve": 2}
    tiers = Tiers(supports, tier_of)
    rings = {name: quantiser.quantise(rng.uniform(-1, 1, d), stream) for name in tier_of}
    bits, levels = quantiser.modulus_bits, quantiser.levels
    apart = [
        session_sum({name: tiers.parts(name, rings[name])[j] for name in band.clients}, bits, levels, j)
        for j, band in enumerate(tiers.bands)
    ]
    lined_up = {name: tiers.line_up(name, ring) for name, ring in rings.items()}
    together = session_sum(lined_up, bits, levels, 9, groups=tiers.groups(), min_contributors=2)
    for part, same in zip(apart, tiers.cut(together), strict=True):
        assert part.tolist() == same.tolist()
    signed = {
        name: np.where(ring >= 2 ** (bits - 1), ring.astype(int) - 2**bits, ring)
        for name, ring in rings.items()
    }
    total, _ = brute_force(tiers, signed)
    got = tiers.join([quantiser.dequantise_sum(part) * levels for part in apart])
    np.testing.assert_allclose(got, total, atol=1e-9)
