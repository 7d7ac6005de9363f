"""Many steps' atoms composed: delta as a function of epsilon, with every error bounded and on the safe side.

The second half of the audit's own accountant, see `independent.py`, and as free of `pricing`, `rdp` and
dp-accounting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .loss_grid import Atoms, Floats

Complexes = NDArray[np.complex128]
MOST_POINTS = 1 << 20  # of a transform, or of one step's atoms
_FAR_BELOW = 40.0  # e^40 times a tilted weight is no probability any more
_WRAPPED = 1e-13  # of the tilted mass may fall outside the window


@dataclass(frozen=True, slots=True)
class _Tilted:
    """One step's atoms under the tilt: grid positions around a `shift`, log weights that sum to 1.

    `log_sum` is what they summed to, and `offset` the loss at position `shift` = 0.
    """

    shift: int
    offset: float
    positions: Floats
    log_weights: Floats
    log_sum: float

    @classmethod
    def of(cls, atoms: Atoms, tilt: float, interval: float) -> _Tilted:
        """Tilt; `shift` is near the mean, so that the transform's phases, and their round-off, stay small."""
        held = np.flatnonzero(atoms.mass)
        positions = atoms.first + held.astype(np.float64)
        logs = np.log(atoms.mass[held]) + tilt * (atoms.offset + interval * positions)
        log_sum = float(np.logaddexp.reduce(logs))
        shift = round(float(np.exp(logs - log_sum) @ positions))
        return cls(shift, atoms.offset, positions - shift, logs - log_sum, log_sum)

    def log_moment(self, rate: float) -> float:
        """ln E[e^(rate · position)] under the tilt."""
        return float(np.logaddexp.reduce(self.log_weights + rate * self.positions))

    def spectrum(self, size: int) -> Complexes:
        """The Fourier transform of the weights, folded onto `size` points."""
        folded = np.bincount(self.positions.astype(np.int64) % size, np.exp(self.log_weights), minlength=size)
        return np.fft.rfft(folded)

    def reach(self) -> float:
        """How far from the shift there is any mass."""
        return float(max(self.positions[-1], -self.positions[0]))


@dataclass(frozen=True, slots=True)
class Composed:
    """The composed, tilted mass on a window of the grid, and what is not known about it.

    delta(epsilon) = sum of weight·e^(log_scale - tilt·loss)·(1 - e^(epsilon - loss)) over losses above epsilon,
    up to `error`·e^(log_scale - tilt·epsilon), plus the mass at an infinite loss.
    """

    losses: Floats
    weights: Floats
    tilt: float
    log_scale: float
    error: float
    infinite: float

    def upper(self, delta: float) -> float:
        """The smallest epsilon that is certified to be enough for delta."""
        return self._cross(delta - self.infinite, +1)

    def lower(self, delta: float) -> float:
        """The largest epsilon that is certified not to be enough for delta; 0 if there is none."""
        return self._cross(delta, -1)

    def _cross(self, delta: float, sign: int) -> float:
        """Where the sum plus `sign` times its error comes down to delta, exact between two grid points."""
        if delta <= 0:
            return math.inf
        exponents = self.log_scale - self.tilt * self.losses
        # Far below epsilon the tilt leaves nothing but round-off; what is cut off there is not looked at.
        kept = exponents <= _FAR_BELOW
        losses, exponents, weights = self.losses[kept], exponents[kept], self.weights[kept]
        if len(losses) < 2:  # the grid is too coarse to say anything
            return math.inf if sign > 0 else 0.0
        mass = (np.maximum(weights, 0.0) if sign > 0 else weights) * np.exp(exponents)
        above = np.cumsum(mass[::-1])[::-1]
        discounted = _discounted_from_the_end(mass, float(losses[1] - losses[0]))
        slack = sign * self.error * np.exp(exponents)
        over = np.flatnonzero(above - discounted + slack > delta)
        if len(over) == 0:
            return max(0.0, float(losses[0])) if sign > 0 else 0.0
        at = int(over[-1])
        if at + 1 >= len(losses):
            return math.inf if sign > 0 else max(0.0, float(losses[-1]))
        low, high = float(losses[at]), float(losses[at + 1])
        rest = float(above[at + 1] + slack[at if sign > 0 else at + 1]) - delta
        share = rest / max(float(discounted[at + 1]), 1e-300)
        crossing = high + math.log(share) if share > 0 else -math.inf
        if sign > 0 and share <= 0:
            return max(0.0, high)
        return max(0.0, min(max(crossing, low), high))


def _discounted_from_the_end(values: Floats, interval: float) -> Floats:
    """For each place, the sum of the values from there on, each times e^-(distance · interval), by doubling."""
    sums, reach = values.copy(), 1
    while reach < len(sums) and reach * interval < 745:
        sums[:-reach] += math.exp(-reach * interval) * sums[reach:]
        reach *= 2
    return sums


def compose(atoms: Iterable[tuple[Atoms, int]], *, tilt: float, interval: float, spread: float) -> Composed:
    """All steps' atoms composed in Fourier space, on a window wide enough to leave little outside."""
    atoms = list(atoms)
    tilted = [(_Tilted.of(one, tilt, interval), times) for one, times in atoms]
    half, outside = _window(tilted, spread / interval)
    size = 1 << (2 * half).bit_length()
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    for one, times in tilted:
        spectrum *= one.spectrum(size) ** times
    weights = np.roll(np.fft.irfft(spectrum, size), size // 2)
    centre = sum(times * one.shift for one, times in tilted)
    count = sum(times for _, times in tilted)
    # The transforms' relative error is a few ulps times log2(size) (Higham 2002, Theorem 24.2), powers multiply
    # it by the number of steps; summed over the window it weighs what the spectrum weighs.
    round_off = 1e-15 * (count + 1) * math.log2(size) * 2 * float(np.abs(spectrum).sum())
    return Composed(
        losses=sum(times * one.offset for one, times in tilted)
        + interval * (centre + np.arange(-(size // 2), size - size // 2, dtype=np.float64)),
        weights=weights,
        tilt=tilt,
        log_scale=sum(times * one.log_sum for one, times in tilted),
        error=outside + round_off,
        infinite=sum(times * one.infinite for one, times in atoms),
    )


def _window(tilted: list[tuple[_Tilted, int]], spread: float) -> tuple[int, float]:
    """Half the width of a window around the mean, in grid points, and a bound on the tilted mass outside it.

    By Chernoff at the best of a few rates, on both sides: Pr[S > w] <= E[e^(r·S)]·e^(-r·w).
    """
    reach = sum(times * one.reach() for one, times in tilted) + 1
    moments = [
        (rate, sum(times * one.log_moment(sign * rate) for one, times in tilted), sign)
        for rate in (share / spread for share in (1.0, 2.0, 4.0, 8.0))
        for sign in (1, -1)
    ]
    half = 8 * spread
    while half < reach:
        exponents = [
            min(moment - rate * half for rate, moment, sign in moments if sign == side) for side in (1, -1)
        ]
        outside = sum(math.exp(min(0.0, exponent)) for exponent in exponents)
        if outside <= _WRAPPED or 2 * half > MOST_POINTS:
            return math.ceil(half), outside
        half *= 1.25
    return math.ceil(reach), 0.0
