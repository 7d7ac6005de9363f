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

from .errors import PricingError
from .events import (
    AdaptiveClipPoissonGaussian,
    Event,
    Gaussian,
    PoissonGaussian,
    RepeatedTrials,
    ShuffledGaussian,
)
from .loss_grid import Direction, Floats, Step, coarser, finer, loss, outcomes_that_matter
from .loss_sum import MOST_POINTS, compose

TOLERANCE = 1e-3
_Gaussians = PoissonGaussian | Gaussian | ShuffledGaussian | AdaptiveClipPoissonGaussian
_GAUSSIANS = (PoissonGaussian, Gaussian, ShuffledGaussian, AdaptiveClipPoissonGaussian)
_REFINEMENTS = 3
_CUT = 1e-7  # of delta: the P mass of tails that are rounded up, or down
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
        step = step_of(event)
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


def step_of(event: _Gaussians) -> Step:
    """One step of an event, as a sampled Gaussian of sensitivity 1."""
    noise, rate = event.noise_multiplier, 1.0
    if isinstance(event, PoissonGaussian | AdaptiveClipPoissonGaussian):
        rate = event.sample_rate
    if isinstance(event, AdaptiveClipPoissonGaussian):
        # Vector and count are one vector: the example moves it by 1/z and by 1/2 over the count's deviation.
        noise = 1 / math.hypot(1 / noise, 0.5 / event.count_noise_stddev)
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
        finest = max(max(at.reach, 30 * at.spread) / MOST_POINTS, abs(at.centre) / 2**50)
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
        composed = compose(atoms, tilt=at.tilt, interval=self.interval, spread=at.spread)
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
