"""The graph: symmetric, of one degree, seeded; and its weakest cut, against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from protocols.secagg.graph import MaskGraph
from protocols.secagg.transcript import MerkleTree, from_bitmap, path_root, to_bitmap

T1 = bytes(range(32))


@pytest.mark.parametrize(("n", "degree"), [(2, 1), (5, 4), (7, 2), (9, 4), (20, 6), (101, 40)])
def test_neighbours_are_mutual_and_of_one_degree(n: int, degree: int) -> None:
    graph = MaskGraph(n, degree, T1)
    for i in range(n):
        neighbours = graph.neighbours(i)
        assert len(set(neighbours)) == degree
        assert list(neighbours) == sorted(neighbours)
        assert i not in neighbours
        assert all(i in graph.neighbours(j) for j in neighbours)
        assert graph.holders(i) == tuple(sorted((*neighbours, i)))


def test_the_ring_depends_on_t1() -> None:
    first, again, other = (MaskGraph(30, 4, seed) for seed in (T1, T1, bytes(32)))
    assert [first.neighbours(i) for i in range(30)] == [again.neighbours(i) for i in range(30)]
    assert [first.neighbours(i) for i in range(30)] != [other.neighbours(i) for i in range(30)]


def brute_force_cut(graph: MaskGraph, members: set[int]) -> int:
    """Every pair of disjoint windows, by sets."""
    n, width = graph.n, graph.degree // 2
    windows = [{graph._order[(start + i) % n] for i in range(width)} for start in range(n)]
    pairs = [(a, b) for a, b in itertools.combinations(windows, 2) if not a & b]
    return min(len(members & (a | b)) for a, b in pairs)


@pytest.mark.parametrize(
    ("n", "degree"), [(4, 2), (6, 4), (7, 2), (8, 6), (9, 4), (12, 6), (20, 8), (20, 2), (31, 28)]
)
def test_the_weakest_cut_agrees_with_brute_force(n: int, degree: int) -> None:
    graph = MaskGraph(n, degree, T1)
    rng = random.Random(n)
    for _ in range(40):
        members = {i for i in range(n) if rng.random() < 0.6}
        assert graph.weakest_cut(members) == brute_force_cut(graph, members)


def test_a_cut_below_the_windows_separates_the_graph() -> None:
    # Why the check is there: once both windows are gone, the two arcs have no edge in common.
    graph = MaskGraph(16, 4, T1)
    order = graph._order
    removed = {order[0], order[1], order[8], order[9]}
    left, right = set(order[2:8]), set(order[10:])
    assert all(not set(graph.neighbours(i)) & right for i in left)
    assert graph.weakest_cut(set(range(16)) - removed) == 0


def is_connected(graph: MaskGraph, members: set[int]) -> bool:
    """Whether the masks among `members` join them all."""
    reached, todo = set(), [min(members)]
    while todo:
        reached.add(member := todo.pop())
        todo += (members - reached).intersection(graph.neighbours(member))
    return reached == members


@pytest.mark.parametrize(("n", "degree", "colluders"), [(7, 4, 1), (8, 4, 2), (9, 4, 3), (9, 6, 3)])
def test_who_passes_the_check_stays_connected_whoever_colludes(n: int, degree: int, colluders: int) -> None:
    """The proof in docs/parameters.md, for every set of survivors and every set of colluders in it."""
    graph = MaskGraph(n, degree, T1)
    cuts = 0
    for size in range(colluders + 2, n + 1):
        for survivors in map(set, itertools.combinations(range(n), size)):
            whole = all(
                is_connected(graph, survivors.difference(some))
                for some in itertools.combinations(survivors, colluders)
            )
            assert whole or graph.weakest_cut(survivors) <= colluders
            cuts += not whole
    assert cuts  # or nothing was at stake


def test_a_complete_graph_has_no_cut() -> None:
    assert MaskGraph(5, 4, T1).weakest_cut({0, 1, 2}) == 3


@pytest.mark.parametrize("n", [2, 3, 5, 8, 9])
def test_merkle_paths_lead_to_the_root_and_nowhere_else(n: int) -> None:
    t0 = bytes(32)
    adverts = {i: bytes([i]) * 5 for i in range(n) if i != 1}
    tree = MerkleTree(t0, adverts, n)
    for i in range(n):
        advert = adverts.get(i, b"")
        assert path_root(t0, i, advert, tree.path(i)) == tree.root
        assert path_root(t0, i, advert + b"x", tree.path(i)) != tree.root
        assert path_root(t0, (i + 1) % n, advert, tree.path(i)) != tree.root
        assert path_root(T1, i, advert, tree.path(i)) != tree.root
    without = {i: advert for i, advert in adverts.items() if i != 0}
    assert MerkleTree(t0, without, n).root != tree.root


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_bitmaps_round_trip(n: int) -> None:
    rng = random.Random(n)
    members = frozenset(i for i in range(n) if rng.random() < 0.5)
    bitmap = to_bitmap(members, n)
    assert from_bitmap(bitmap, n) == members
    for wrong in (bitmap + b"\0", bitmap[:-1]):
        with pytest.raises(ValueError, match="bitmap"):
            from_bitmap(wrong, n)
