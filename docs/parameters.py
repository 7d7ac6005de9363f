"""Print the table of parameters.md: ``python docs/parameters.py``."""

from __future__ import annotations

from protocols.errors import LocalProtocolError
from protocols.secagg.limits import longest
from protocols.secagg.messages import SharesOut
from protocols.secagg.parameters import abort_bound, abort_bound_of_losses, choose
from protocols.secagg.session import SessionParameters, Thresholds

CASES = (  # n, colluders, dropout rate, failure probability
    (5, 1, 0.01, 1e-2),
    (5, 1, 0.1, 1e-2),
    (10, 2, 0.05, 1e-3),
    (30, 5, 0.1, 1e-6),
    (100, 10, 0.1, 1e-6),
    (200, 20, 0.1, 1e-6),
    (500, 50, 0.1, 1e-6),
    (1000, 60, 0.1, 1e-6),
    (1000, 60, 0.1, 1e-8),
    (1000, 100, 0.1, 1e-6),
    (1000, 60, 0.3, 1e-6),
    (10000, 100, 0.1, 1e-6),
)
HEADER = (
    "| n | c | losses | P[abort] allowed | k | t | quorum | P[abort] ≤ | P[abort], ℓ = pn ≤ | shares, kB |"
)


def share_bytes(n: int, colluders: int, counts: Thresholds) -> int:
    """Return the length of one client's message with its shares, at most."""
    parameters = SessionParameters(
        session_id=bytes(32),
        round=0,
        exchange=0,
        roster=tuple(map(str, range(n))),
        max_colluders=colluders,
        quorum=counts.quorum,
        threshold=counts.threshold,
        min_survivors=counts.min_survivors,
        degree=counts.degree,
        vector_length=1,
        modulus_bits=32,
        bound=1,
        context=bytes(32),
    )
    parameters.validate()
    return longest(SharesOut, parameters)


def row(n: int, colluders: int, dropout_rate: float, allowed: float) -> str:
    """Return one line of the table."""
    start = f"| {n} | {colluders} | {dropout_rate:.0%} | {allowed:.0e} |"
    try:
        counts = choose(n, colluders, dropout_rate, allowed)
    except LocalProtocolError:
        return f"{start} refused | | | | | |"
    bound = abort_bound(n, colluders, counts, dropout_rate)
    of_losses = abort_bound_of_losses(n, colluders, counts, round(dropout_rate * n))
    kilobytes = share_bytes(n, colluders, counts) / 1000
    return (
        f"{start} {counts.degree} | {counts.threshold} | {counts.quorum} | {bound:.1e} | {of_losses:.1e} |"
        f" {kilobytes:.0f} |"
    )


def table() -> str:
    """Return the table in Markdown."""
    return "\n".join([HEADER, "|" + "---|" * 10, *(row(*case) for case in CASES)])


if __name__ == "__main__":
    print(table())
