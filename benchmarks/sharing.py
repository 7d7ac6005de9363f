"""Shamir sharing of a 32-byte secret among 1000 with threshold 501, against Flower's."""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks import flower
from benchmarks.common import Row, best
from protocols.prg import SecretStream
from protocols.secagg import shamir

N, THRESHOLD = 1000, 501


def rows() -> Iterator[Row]:
    """Splitting, recombining, and recombining further secrets from the same holders."""
    secret, points = os.urandom(32), range(1, N + 1)
    shares = shamir.split(secret, THRESHOLD, points, SecretStream())
    chosen = {point: shares[point] for point in points[-THRESHOLD:]}
    theirs = flower.measured("sharing")

    def combine_first() -> None:
        shamir._lagrange_at_zero.cache_clear()
        shamir.combine(chosen, THRESHOLD, 32)

    split = best(lambda: shamir.split(secret, THRESHOLD, points, SecretStream()))
    again = best(lambda: shamir.combine(chosen, THRESHOLD, 32))
    against = "Flower's SecAgg+, one run"
    where = f"n = {N}, t = {THRESHOLD}"
    yield Row(f"share, {where}", split, against, theirs.get("split"), "≤ 1/100")
    yield Row(f"recombine, {where}", best(combine_first), against, theirs.get("combine"), "≤ 1/100")
    yield Row("recombine from the same holders again", again, against, theirs.get("combine"))
