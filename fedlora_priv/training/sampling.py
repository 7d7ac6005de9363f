"""Secret Poisson batches: each example is drawn by itself with the same probability.

Privacy amplification holds only while nobody else knows who was drawn (Abadi et al. 2016; Balle et al. 2018),
so the coins come from the client's `SecretStream` and never from a seed of the configuration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.prg import SecretStream


def poisson_draw(stream: SecretStream, examples: int, sample_rate: float) -> NDArray[np.int64]:
    """Return the indices drawn from ``range(examples)``, ascending; possibly none.

    Each index is in with probability `sample_rate`, to within 2^-53, independently of all others.
    """
    return np.flatnonzero(stream.uniform(examples) < sample_rate)
