"""Rényi prices once more, for `audit` alone: sums of long decimals, straight from the theorems.

For the events that have no privacy loss on a line (fixed-size batches, shares of integer noise) a second method can
only be the same theorems computed another way. `rdp` works in logarithms of floats, with quadrature for alternating
sums; here nothing is rewritten: terms are added as they stand in the papers, in as many digits as that takes. It
shares no code with `pricing`, `rdp`, `shares`, `amplification` or `mechanisms`. Every whole order from 2 to 256 is
tried, which includes all that `rdp` may choose from, so `rdp` must never come out lower.

Source: Kairouz, Liu, Steinke 2021, Theorem 1 and Proposition 14; Agarwal, Kairouz, Liu 2021, Theorem 3.5; Zhu, Wang
2019, Theorem 5; Wang, Balle, Kasiviswanathan 2019, Theorem 27; Mironov, Talwar, Zhang 2019, section 3.3; Canonne,
Kamath, Steinke 2020, Proposition 12.
"""

from __future__ import annotations

import decimal
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from .errors import PricingError
from .events import DistributedDiscreteGaussian, DistributedNoise, Event, FixedSizeGaussian, RepeatedTrials
from .independent import can_price as is_gaussian
from .independent import step_of

LARGEST_ORDER = 256
_DIGITS = 60
_TERMS = 100_000

Curve = list[Decimal]  # by order; what stands at 0 and 1 means nothing


def can_price(event: Event) -> bool:
    """Whether `epsilon` knows this kind of event."""
    inner = event.candidate if isinstance(event, RepeatedTrials) else event
    return isinstance(inner, FixedSizeGaussian | DistributedNoise) or is_gaussian(inner)


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Epsilon at `delta` of all the events together, by RDP at whole orders; 0.0 for none.

    Raises:
        PricingError: an event of another kind, mixed units or adjacencies, or no delta is left.
        ArithmeticError: a term is beyond any decimal.
    """
    counts: Counter[Any] = Counter()
    for event in events:
        times = 1
        if isinstance(event, RepeatedTrials):
            times, event = event.steps * event.trials, event.candidate
        if not can_price(event):
            raise PricingError(f"{type(event).__name__} has no second price")
        single: Any = event
        counts[replace(single, steps=1)] += times * single.steps
    counts = +counts
    if len({(event.unit, event.adjacency) for event in counts}) > 1:
        raise PricingError("events under different units or adjacencies do not compose")
    if not counts:
        return 0.0
    left = delta - sum(
        times * event.rounding_beta * (2 if event.adjacency == "replace-one" else 1)
        for event, times in counts.items()
        if isinstance(event, DistributedNoise) and event.unit == "example"
    )
    if left <= 0:
        raise PricingError("rounding bounds that may fail take all of delta")
    with decimal.localcontext(prec=_DIGITS):
        curves = [(_curve(event), times) for event, times in counts.items()]
        return max(
            0.0,
            min(
                _converted(float(sum(times * curve[order] for curve, times in curves)), order, left)
                for order in range(2, LARGEST_ORDER + 1)
            ),
        )


def _converted(renyi: float, order: int, delta: float) -> float:
    """Epsilon at delta of what is Rényi private at one order."""
    return renyi + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _curve(event: Event) -> Curve:
    """RDP of one step at every whole order."""
    if isinstance(event, FixedSizeGaussian):
        return _fixed_size(event)
    if isinstance(event, DistributedNoise):
        base = _shares(event)
        amplified = event.adjacency == "add-remove" and event.sample_rate < 1
        return _any_on_a_poisson_sample(base, event.sample_rate) if amplified else base
    step = step_of(event)  # type: ignore[arg-type]  # a Gaussian: `can_price` has refused all others
    noise = Decimal(step.noise_multiplier) / (2 if step.replace else 1)
    per_pair = (1 / (2 * noise**2)).exp()  # e^(1/2z²), and E[e^(kL)] = (e^(1/2z²))^(k² - k)
    if step.sample_rate == 1:
        return [order / (2 * noise**2) for order in range(LARGEST_ORDER + 1)]
    return _binomial_sums(step.sample_rate, lambda k: per_pair ** (k * k - k))


def _binomial_sums(rate: float, moment: Callable[[int], Decimal]) -> Curve:
    """ln sum_k C(n,k) (1-q)^(n-k) q^k moment(k), over n - 1, at every order n."""
    take, moments = Decimal(rate), [moment(k) for k in range(LARGEST_ORDER + 1)]
    powers = [take**k * moments[k] for k in range(LARGEST_ORDER + 1)]
    kept = [(1 - take) ** k for k in range(LARGEST_ORDER + 1)]
    curve = [Decimal(0), Decimal(0)]
    for order in range(2, LARGEST_ORDER + 1):
        total = sum(
            (math.comb(order, k) * kept[order - k] * powers[k] for k in range(order + 1)), start=Decimal(0)
        )
        curve.append(max(total.ln() / (order - 1), Decimal(0)))
    return curve


def _any_on_a_poisson_sample(base: Curve, rate: float) -> Curve:
    """Zhu and Wang's theorem: as the binomial sum, with the moments of the unsampled curve, three times from k=3 on."""

    def moment(k: int) -> Decimal:
        return Decimal(1) if k < 2 else (1 if k == 2 else 3) * ((k - 1) * base[k]).exp()

    return [min(sampled, plain) for sampled, plain in zip(_binomial_sums(rate, moment), base, strict=True)]


def _shares(event: DistributedNoise) -> Curve:
    """A sum under shares of integer noise, without sampling."""
    root, norm = Decimal(event.dimension).sqrt(), _rounded_norm(event)
    l2 = norm * Decimal(event.scale)
    l1 = l2 * min(root, l2)
    if event.adjacency == "replace-one":
        l1, l2 = 2 * l1, 2 * l2
    orders = [Decimal(order) for order in range(LARGEST_ORDER + 1)]
    honest, local = event.survivors - event.max_colluders, Decimal(event.local_stddev)
    if not isinstance(event, DistributedDiscreteGaussian):
        variance = honest * local**2
        return [
            a * l2**2 / (2 * variance)
            + min(((2 * a - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
            for a in orders
        ]
    gap, dimension = _gap(float(local), honest), event.dimension
    l1, l2 = (moved / (Decimal(honest).sqrt() * local) for moved in (l1, l2))
    return [
        min(
            a / 2 * l2**2 + gap * dimension,
            a / 2 * (l2**2 + 2 * l1 * gap + gap**2 * dimension),
            a / 2 * (l2 + root * gap) ** 2,
        )
        for a in orders
    ]


def _rounded_norm(event: DistributedNoise) -> Decimal:
    """The norm, in real units, that rounding leaves at most: always, or but for a probability beta."""
    clip, grid, dimension = Decimal(event.clip_norm), 1 / Decimal(event.scale), event.dimension
    root = Decimal(dimension).sqrt()
    if not event.rounding_beta:
        return clip + grid * root
    excess = (-2 * Decimal(event.rounding_beta).ln()).sqrt() * grid * (clip + grid * root / 2)
    return min((clip**2 + grid**2 * dimension / 4 + excess).sqrt(), clip + grid * root)


def _gap(local_stddev: float, honest: int) -> Decimal:
    """tau, the sum's distance from a discrete Gaussian; terms fall with k, so the last one bounds all that follow."""
    terms = [
        math.exp(-2 * (math.pi * local_stddev) ** 2 * k / (k + 1)) for k in range(1, min(honest, _TERMS + 1))
    ]
    rest = (honest - 1 - len(terms)) * terms[-1] if terms else 0.0
    return Decimal(10 * (math.fsum(terms) + rest))


def _fixed_size(event: FixedSizeGaussian) -> Curve:
    """A Gaussian on a sample without replacement; two samples differ by one vector and its opposite at most."""
    noise, take = Decimal(event.noise_multiplier) / 2, Decimal(event.batch_size) / Decimal(event.dataset_size)
    if take == 1:
        return [order / (2 * noise**2) for order in range(LARGEST_ORDER + 1)]
    moments, central = _gaussian_moments(noise)
    weights = [Decimal(0), Decimal(0)]
    for j in range(2, LARGEST_ORDER + 1):
        pair = (central[j // 2] * central[(j + 1) // 2]).sqrt()
        weights.append(take**j * min(4 * pair, 2 * moments[j]))
    curve = [Decimal(0), Decimal(0)]
    for order in range(2, LARGEST_ORDER + 1):
        total = 1 + sum((math.comb(order, j) * weights[j] for j in range(2, order + 1)), start=Decimal(0))
        curve.append(total.ln() / (order - 1))
    return curve


def _gaussian_moments(noise: Decimal) -> tuple[Curve, Curve]:
    """E[e^(kL)] by k, and E[(e^L - 1)^(2k)] by k, L a Gaussian's privacy loss, under its second data set."""
    # (e^L - 1)^256 is about noise^-256, the remainder of an alternating sum of terms above 1.
    lost = int(LARGEST_ORDER * max(0.0, math.log10(float(noise)) + 0.5))
    with decimal.localcontext(prec=_DIGITS + lost):
        per_pair = (1 / (2 * noise**2)).exp()
        moments = [per_pair ** (k * k - k) for k in range(LARGEST_ORDER + 1)]
        central = [
            sum(((-1) ** k * math.comb(even, k) * moments[k] for k in range(even + 1)), start=Decimal(0))
            for even in range(0, LARGEST_ORDER + 1, 2)
        ]
    return [+value for value in moments], [+value for value in central]  # rounded to the usual digits
