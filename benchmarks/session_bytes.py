"""The tables of docs/communication.md, "Bytes": what sessions take besides values, and times less than dense LoRA.

    python -m benchmarks.session_bytes

Nothing is run: `communication.meter` says it from the parameters, and tests hold that to the wire.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fedlora_priv.communication.meter import Kind, Summed, Table, wire_bytes
from protocols.quantise import Quantiser
from protocols.secagg.session import SessionParameters, recommended
from protocols.secagg.sizes import Direction

ANCHOR_BYTES = 420
SESSIONS = ((5, 4), (10, 9), (10, 4), (30, 29), (30, 4))
CHOICES = ((1, 16), (1, 8), (1, 4), (4, 8), (4, 4), (16, 8), (16, 4), (64, 4))


def session(n: int, neighbours: int, length: int, value_bits: int) -> Table:
    """Return the bytes of one session of n clients of whom nobody is lost, with one colluder."""
    counts, quantiser = recommended(n, 1, neighbours), Quantiser(1.0, value_bits, n)
    parameters = SessionParameters(
        session_id=bytes(32),
        round=1,
        exchange=0,
        roster=tuple(f"client-{i}" for i in range(1, n + 1)),
        max_colluders=1,
        quorum=counts.quorum,
        threshold=counts.threshold,
        min_survivors=counts.min_survivors,
        degree=counts.degree,
        vector_length=length,
        modulus_bits=quantiser.modulus_bits,
        bound=quantiser.levels,
        context=bytes(32),
    )
    return wire_bytes([Summed(parameters, attachment_bytes=ANCHOR_BYTES)])


def mean(table: Table, n: int, way: Direction, *kinds: Kind) -> float:
    """Return the bytes of some kinds in one direction, on average over clients."""
    return sum(size for (_, direction, kind), size in table.items() if direction == way and kind in kinds) / n


def fixed_rows() -> list[str]:
    """Return the lines of the first table."""
    lines = []
    for n, neighbours in SESSIONS:
        table = session(n, neighbours, 1000, 8)
        up = [mean(table, n, "up", kind) for kind in ("keys", "shares", "framing")]
        down = [mean(table, n, "down", kind) for kind in ("keys", "shares", "framing")]
        cells = [*(f"{x:,.0f}" for x in up), f"**{sum(up):,.0f}**", *(f"{x:,.0f}" for x in down)]
        lines.append(f"| {n} | {neighbours} | {' | '.join(cells)} |")
    return lines


def saved_rows(n: int = 10) -> list[str]:
    """Return the lines of the second table: dense float32 over all that is uploaded."""
    lines = []
    for parts, bits in CHOICES:
        cells = []
        for d in (100_000, 1_000_000):
            for neighbours in (n - 1, 4):
                table = session(n, neighbours, math.ceil(d / parts), bits)
                sent = mean(table, n, "up", "keys", "shares", "values", "framing")
                cells.append(f"{4 * d / sent:.1f}")
        alone = 32 * parts / Quantiser(1.0, bits, n).modulus_bits
        lines.append(f"| {Fraction(1, parts)} | {bits} | {' | '.join(cells)} | {alone:.1f} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*fixed_rows(), "", *saved_rows()]))
