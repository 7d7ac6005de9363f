"""Gaussian noise from a secret keystream, hardened against floating-point attacks.

The low bits of a single floating-point Gaussian reveal what it was added to (Mironov 2012; Jin et al. 2022).
Holohan and Braghin 2021 (section 5.1) sum several draws instead; with four, as in Opacus' secure mode, an
attacker would have to search about 2^159 combinations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.prg import SecretStream

_CHUNK = 1 << 15  # coordinates at a time: four uniforms each stay within a 1 MiB cache


def standard_normals(stream: SecretStream, n: int) -> NDArray[np.float64]:
    """Return `n` independent standard normals, float64 (n,), by the Box-Muller transform.

    Source: Box and Muller 1958. The radius uses 1 - u, which is never 0, so that
    |normal| <= sqrt(106 ln 2) = 8.57: beyond lies a probability of 1e-17.
    """
    pairs = (n + 1) // 2
    uniforms = stream.uniform(2 * pairs)
    radius = np.sqrt(-2.0 * np.log1p(-uniforms[:pairs]))
    angle = (2.0 * np.pi) * uniforms[pairs:]
    normals = np.empty(2 * pairs)
    np.multiply(radius, np.cos(angle), out=normals[:pairs])
    np.multiply(radius, np.sin(angle), out=normals[pairs:])
    return normals[:n]


def gaussian_noise(stream: SecretStream, n: int, noise_stddev: float) -> NDArray[np.float64]:
    """Return `n` independent normals of deviation `noise_stddev`, half the sum of four draws each."""
    noise = np.empty(n)
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        draws = standard_normals(stream, 4 * size).reshape(4, size)
        noise[start : start + size] = draws.sum(axis=0) * (0.5 * noise_stddev)
    return noise
