"""The methods of the study: how each is built, and around whose best rate another one's rates are tried."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora_priv.methods.base import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.registry import Options, make

MAIN = ("fedit", "ffa", "fra", "hybrid", "fedsvd")
"""Compared with a grid of rates each and three seeds."""

KIN: Mapping[str, str] = {
    "fra-exact": "fra",
    "fra-two-pass": "fra",
    "flexlora": "fra",
    "fedask": "fedsvd",
    "flora": "fra",
    "fedex": "fedit",
    "rolora": "ffa",
    "fedsa": "fedit",
    "lora-fair": "fedit",
    "fed-sb": "fedsvd",
    "rac-lora": "ffa",
}
"""The others, one seed each: around the best rate of which main method theirs are tried."""

UNEQUAL_RANKS = (1.0, 1.0, 0.5, 0.5, 0.25)
"""FlexLoRA's clients: fractions of the largest rank."""

CHAIN_ROUNDS = 5
"""RAC-LoRA's block."""


def build(name: str, rounds: int) -> Method:
    """Return the method of that name for a run of so many rounds; products by sketches, unless the name says."""
    for mode in ("exact", "two-pass"):
        if name == f"fra-{mode}":
            return make("fra", Options(cross=CrossTerm(mode)))
    return make(name, Options(switch_round=switch_round(rounds), block_rounds=CHAIN_ROUNDS))


def switch_round(rounds: int) -> int:
    """Return the first FFA round of the hybrid: after three tenths of the rounds.

    >>> switch_round(10)
    4
    """
    return max(2, round(0.3 * rounds) + 1)


def ranks(name: str, rank: int, clients: int) -> list[int]:
    """Return each client's rank.

    >>> ranks("flexlora", 8, 5), ranks("ffa", 8, 2)
    ([8, 8, 4, 4, 2], [8, 8])
    """
    if name != "flexlora":
        return [rank] * clients
    return [max(1, int(rank * UNEQUAL_RANKS[k % len(UNEQUAL_RANKS)])) for k in range(clients)]
