"""Canaries: public random rows, each in or out of a client's data by a fair coin that nobody sees."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.examples import TokenisedExamples
from protocols.prg import SecretStream

CANARY_DOMAIN = 3
"""Separates the canaries' draws from the held-out split's and the partition's, of the same public seed."""

SHORTEST, LONGEST = 2, 6
"""Tokens of a canary. Few: the mean over many random tokens is the same for all rows, and so is the gradient."""


@dataclass(frozen=True)
class Canaries:
    """Canary rows and where they ended up.

    Attributes:
        rows: the canaries, public: whoever attacks knows them.
        included: bool (m,), the coins; secret until the attacks have given their scores.
    """

    rows: TokenisedExamples
    included: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def toss(cls, rows: TokenisedExamples, stream: SecretStream) -> Canaries:
        """Return the rows with an independent fair coin each, from a secret stream."""
        return cls(rows, stream.uniform(len(rows)) < 0.5)

    def inside(self) -> TokenisedExamples:
        """Return the rows that are in."""
        return self.rows.subset(np.flatnonzero(self.included))


def random_rows(
    count: int, *, seed: int, vocabulary: int, labels: int, longest: int, pad_id: int
) -> TokenisedExamples:
    """Return `count` rows of random tokens, with random labels if there are any, the same for everybody with the seed.

    Args:
        count: m.
        seed: public.
        vocabulary: tokens are drawn from all of them but padding.
        labels: number of classes; 0 for next-token prediction.
        longest: the experiment's longest input, in tokens.
        pad_id: the padding token.

    Raises:
        ConfigError: fewer than two.
    """
    if count < 2:
        raise ConfigError(f"{count} canaries can show nothing", "insert some hundreds")
    generator = np.random.default_rng([seed, CANARY_DOMAIN])
    tokens = np.delete(np.arange(vocabulary), pad_id)
    shortest, end = min(SHORTEST, longest), min(LONGEST, longest) + 1
    ids = tuple(
        generator.choice(tokens, generator.integers(shortest, end)).astype(np.int64) for _ in range(count)
    )
    return TokenisedExamples(ids, generator.integers(labels, size=count) if labels else None, pad_id)
