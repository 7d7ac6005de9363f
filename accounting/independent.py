"""A second, independent price: certified lower and upper bounds on epsilon, for `audit` alone.

Nothing here comes from `pricing`, `rdp` or dp-accounting, so a defect there shows as a reported epsilon outside
these bounds. For Gaussian mechanisms, on the whole data or on Poisson samples, under both adjacencies.

    events -> steps, by mechanism        full-batch steps together are one Gaussian (exact)
           -> atoms on a grid            `loss_grid`: one version above the truth, one below
           -> tilted by e^(theta·loss)   so that the composed mass gathers where epsilon will be
           -> Fourier transform, powers, inverse
           -> delta(epsilon), with what wrapped around and what was rounded off, bounded, put on the safe side

Without the tilt, round-off near 1e-16 of the whole mass would drown a small delta; with it, errors are relative
to the Chernoff bound at epsilon, a few dozen times delta.

Source: Koskela, Jälkö, Honkela 2020, "Computing tight differential privacy guarantees using FFT", for composition
on a grid with wrap-around bounded by moments; the tilt is the exponential change of measure of large deviations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .errors import PricingError
from .events import (
    AdaptiveClipPoissonGaussian,
    Event,
    Gaussian,
    PoissonGaussian,
    RepeatedTrials,
    ShuffledGaussian,
)
from .loss_grid import Atoms, Direction, Floats, Step, coarser, finer, loss, outcomes_that_matter

TOLERANCE = 1e-3
_Gaussians = PoissonGaussian | Gaussian | ShuffledGaussian | AdaptiveClipPoissonGaussian
_GAUSSIANS = (PoissonGaussian, Gaussian, ShuffledGaussian, AdaptiveClipPoissonGaussian)
_MOST_POINTS = 1 << 20  # of a transform, or of one step's atoms
_REFINEMENTS = 3
_CUT = 1e-7  # of delta: the P mass of tails that are rounded up, or down
_FAR_BELOW = 40.0  # e^40 times a tilted weight is no probability any more
_WRAPPED = 1e-13  # of the tilted mass may fall outside the window
Complexes = NDArray[np.complex128]
_Steps = tuple[tuple[Step, int], ...]


@dataclass(frozen=True, slots=True)
class Bracket:
    """Certified bounds: low <= epsilon <= high."""

    low: float
    high: float


def can_price(event: Event) -> bool:
    """Whether `bracket` knows this kind of event."""
    return isinstance(event.candidate if isinstance(event, RepeatedTrials) else event, _GAUSSIANS)


def bracket(events: Iterable[Event], delta: float, *, tolerance: float = TOLERANCE) -> Bracket:
    """Bounds on epsilon at `delta` of all the events together, under the adjacency that they state.

    They are refined until they are within `tolerance`, relative, of each other (or of 0), or the grid is as fine as
    it may be: then they are wider, and still bounds.

    Raises:
        PricingError: an event that is no Gaussian, mixed adjacencies, or delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise PricingError(f"delta must lie strictly between 0 and 1, got {delta!r}")
    steps = _steps(events)
    return _bracket(steps, delta, tolerance) if steps else Bracket(0.0, 0.0)


def _steps(events: Iterable[Event]) -> _Steps:
    """How often each mechanism ran; all full-batch steps are one, whose precision 1/z² is the sum of theirs."""
    counts: Counter[Step] = Counter()
    precisions, adjacencies = [], set()
    for event in events:
        times = 1
        if isinstance(event, RepeatedTrials):
            times, event = event.steps * event.trials, event.candidate
        if not isinstance(event, _GAUSSIANS):
            raise PricingError(f"{type(event).__name__} has no price here: only Gaussian mechanisms do")
        if not times * event.steps:
            continue
        adjacencies.add(event.adjacency)
        step = _step(event)
        if step.sample_rate < 1:
            counts[step] += times * event.steps
        else:
            shift = 2.0 if step.replace else 1.0
            precisions.append(times * event.steps * (shift / step.noise_multiplier) ** 2)
    if len(adjacencies) > 1:
        raise PricingError("events under different adjacencies do not compose: price each by itself")
    if precisions:
        counts[Step(math.fsum(precisions) ** -0.5, 1.0)] += 1
    return tuple(sorted(counts.items()))


def _step(event: _Gaussians) -> Step:
    """One step of an event, as a sampled Gaussian of sensitivity 1."""
    noise, rate = event.noise_multiplier, 1.0
    if isinstance(event, PoissonGaussian | AdaptiveClipPoissonGaussian):
        rate = event.sample_rate
    if isinstance(event, AdaptiveClipPoissonGaussian):
        # Vector and count are one vector: the example moves it by 1/z and by 1/2 over the count's deviation.
        noise = (noise**-2 + (2 * event.count_noise_stddev) ** -2) ** -0.5
    return Step(noise, rate, event.adjacency == "replace-one")


@lru_cache(maxsize=256)
def _bracket(steps: _Steps, delta: float, tolerance: float) -> Bracket:
    """The intersection of the brackets on ever finer grids, until it is narrow."""
    if all(step.sample_rate == 1 for step, _ in steps):
        exact = gaussian_epsilon(steps[0][0].noise_multiplier, delta)
        return Bracket(exact, exact)
    directions: tuple[Direction, ...] = ("remove", "add")
    if all(step.replace or step.sample_rate == 1 for step, _ in steps):
        directions = ("remove",)  # the two are mirror images
    saddles = [_Saddle.of(steps, direction, delta) for direction in directions]
    rough = max(saddle.chernoff for saddle in saddles)
    found = Bracket(0.0, math.inf)
    for refinement in range(1 + _REFINEMENTS):
        sides = [_Composition.of(saddle, rough * tolerance / 4**refinement) for saddle in saddles]
        lows, highs = [side.lower_epsilon() for side in sides], [side.upper_epsilon() for side in sides]
        found = Bracket(max(found.low, *lows), min(found.high, max(highs)))
        if found.high <= tolerance or found.high - found.low <= tolerance * found.high:
            break
        # A direction that is certified to cost less than the other one decides nothing.
        sides = [side for side, high in zip(sides, highs, strict=True) if high > found.low]
        if any(side.finest for side in sides):
            break
        saddles = [side.at for side in sides]
    return found


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian release of sensitivity 1, from its exact delta.

    Source: Balle, Wang 2018, "Improving the Gaussian mechanism for differential privacy", Theorem 5.
    """
    from scipy.special import log_ndtr

    def excess(epsilon: float) -> float:
        shift, spread = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        first = float(log_ndtr(shift - spread))
        second = float(log_ndtr(-shift - spread)) + epsilon
        return first + math.log1p(-math.exp(min(second - first, -1e-300))) - math.log(delta)

    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    while high - low > 1e-12 * high and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high if low or excess(0.0) > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Saddle:
    """One direction of all the steps, the tilt at which its Chernoff bound is best, and the scales there.

    Found by quadrature. Only efficiency rests on it: the bounds hold for any tilt.
    """

    steps: _Steps
    direction: Direction
    delta: float
    deviations: float  # of one step's outcomes, which are kept on the grid
    tilt: float
    chernoff: float  # epsilon
    centre: float  # the mean of the tilted loss
    spread: float  # its standard deviation
    reach: float  # the widest range of one step's losses

    @classmethod
    def of(cls, steps: _Steps, direction: Direction, delta: float) -> _Saddle:
        """The saddle point of a direction."""
        from scipy.special import ndtri

        deviations = float(-ndtri(_CUT * delta / sum(times for _, times in steps)))
        moments = _Moments.of(steps, direction, deviations)
        tilt = moments.saddle(delta)
        centre, spread = moments.tilted(tilt)
        reach = moments.range_of_one_step()
        return cls(
            steps, direction, delta, deviations, tilt, moments.chernoff(tilt, delta), centre, spread, reach
        )


@dataclass(frozen=True, slots=True)
class _Composition:
    """One direction of all the steps on a grid."""

    at: _Saddle
    interval: float
    finest: bool

    @classmethod
    def of(cls, at: _Saddle, goal: float) -> _Composition:
        """A grid on which epsilon's two bounds should be about `goal` apart.

        Cells of width h add up to h² / 6 to a step's variance or take 4h² / 3 from it, and epsilon moves by half
        of that times tilt and steps.
        """
        count = sum(times for _, times in at.steps)
        wanted = min(math.sqrt(1.5 * goal / (at.tilt * count)), at.spread / 40)
        wanted = max(wanted, goal / (8 * count))  # rounding every step by a whole cell would still do
        finest = max(max(at.reach, 30 * at.spread) / _MOST_POINTS, abs(at.centre) / 2**50)
        return cls(at, max(wanted, finest), wanted <= finest)

    def upper_epsilon(self) -> float:
        """A certified upper bound on epsilon in this direction."""
        return self._epsilon(upper=True)

    def lower_epsilon(self) -> float:
        """A certified lower bound on epsilon in this direction."""
        return self._epsilon(upper=False)

    def _epsilon(self, *, upper: bool) -> float:
        """Where delta, with every error on the safe side, comes down to the target."""
        at, build = self.at, finer if upper else coarser
        atoms = [(build(step, at.direction, self.interval, at.deviations), times) for step, times in at.steps]
        composed = _compose(atoms, at, self.interval)
        return float(composed.upper(at.delta) if upper else composed.lower(at.delta))


@dataclass(frozen=True, slots=True)
class _Moments:
    """The privacy loss of each step by quadrature: losses, log weights, and how often."""

    nodes: tuple[tuple[Floats, Floats, int], ...]

    @classmethod
    def of(cls, steps: _Steps, direction: Direction, deviations: float) -> _Moments:
        """A thousand outcomes of each step, equally far apart, with what P puts around each."""
        nodes = []
        for step, times in steps:
            start, end = outcomes_that_matter(step, direction, deviations)
            outcomes = np.linspace(start, end, 1001)
            losses, z, rate = loss(step, outcomes), step.noise_multiplier, step.sample_rate
            log_weights = -((outcomes / z) ** 2) / 2
            if direction == "remove":
                with np.errstate(divide="ignore"):
                    rest = np.log1p(-np.float64(rate))
                log_weights = log_weights + np.logaddexp(rest, np.log(rate) + (2 * outcomes - 1) / (2 * z**2))
            log_weights = log_weights - np.logaddexp.reduce(log_weights)
            nodes.append((losses if direction == "remove" else -losses, log_weights, times))
        return cls(tuple(nodes))

    def log_moment(self, tilt: float) -> float:
        """ln E[e^(tilt · loss)] of the composition, under P."""
        return float(sum(times * np.logaddexp.reduce(tilt * at + weight) for at, weight, times in self.nodes))

    def chernoff(self, tilt: float, delta: float) -> float:
        """The epsilon at which the Chernoff bound with this tilt is delta."""
        return (self.log_moment(tilt) - math.log(delta)) / tilt

    def saddle(self, delta: float) -> float:
        """The tilt whose Chernoff bound gives the smallest epsilon."""
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(
            lambda log_tilt: math.log(max(self.chernoff(math.exp(log_tilt), delta), 1e-300)),
            bounds=(math.log(1e-9), math.log(1e9)),
            method="bounded",
            options={"xatol": 1e-3},
        )
        return float(math.exp(found.x))

    def tilted(self, tilt: float) -> tuple[float, float]:
        """Mean and standard deviation of the composed loss under the tilted distribution."""
        mean = variance = 0.0
        for at, weight, times in self.nodes:
            share = np.exp(tilt * at + weight - np.logaddexp.reduce(tilt * at + weight))
            one = float(share @ at)
            mean += times * one
            variance += times * float(share @ (at - one) ** 2)
        return mean, max(math.sqrt(variance), 1e-12 * (1 + abs(mean)))

    def range_of_one_step(self) -> float:
        """The widest range of losses on the grid."""
        return max(float(at.max() - at.min()) for at, _, _ in self.nodes)


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
class _Composed:
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


def _compose(atoms: Iterable[tuple[Atoms, int]], at: _Saddle, interval: float) -> _Composed:
    """All steps' atoms composed in Fourier space, on a window wide enough to leave little outside."""
    atoms = list(atoms)
    tilted = [(_Tilted.of(one, at.tilt, interval), times) for one, times in atoms]
    half, outside = _window(tilted, at.spread / interval)
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
    return _Composed(
        losses=sum(times * one.offset for one, times in tilted)
        + interval * (centre + np.arange(-(size // 2), size - size // 2, dtype=np.float64)),
        weights=weights,
        tilt=at.tilt,
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
        if outside <= _WRAPPED or 2 * half > _MOST_POINTS:
            return math.ceil(half), outside
        half *= 1.25
    return math.ceil(reach), 0.0
