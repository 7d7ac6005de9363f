"""The privacy loss of one Gaussian step on a grid: one version that tells too much, one that tells too little.

A pair (P, Q) of output distributions is cut into cells by its privacy loss ln(dP/dQ), each cell holding the
masses that P and Q give it. On the grid {k·h} stand, with P masses only,

    finer    each cell's two masses split over the cell's two ends so that both are kept. Its likelihood ratio is
             a mean-preserving spread of the cell's: a more informative experiment, so never less delta.
    coarser  four cells merged, a post-processing, then split over the two grid points around the merged loss.
             Where the four cells still tell at least as much as these two atoms, at every threshold, that is a
             less informative experiment; elsewhere the merged loss is rounded down. Never more delta.

Both orders survive composition (Blackwell), and both errors are of second order in h.

This file and `independent.py` are the audit's second accountant: they must share no code with `pricing`, `rdp`
or dp-accounting, and a test holds them to it.

Source: own construction; that bounds on a grid may come from more and less informative experiments is in
Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, "Connect the dots"; the pairs below are those of Zhu, Dong,
Wang 2022, "Optimal accounting of differential privacy via characteristic function", Theorem 11.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Direction = Literal["remove", "add"]
_LARGEST_EXPONENT = 700.0
_GROUP = (
    4  # cells that `coarser` merges: with three, a slope of the density already puts an atom outside them
)


class Step(NamedTuple):
    """One Poisson-sampled Gaussian of sensitivity 1; `replace` moves the example's vector to its opposite.

    P mixes N(0, z²) and, with weight `sample_rate`, N(1, z²). Q is N(0, z²), or for `replace` the same mixture
    with N(-1, z²).
    """

    noise_multiplier: float
    sample_rate: float
    replace: bool = False


class Atoms(NamedTuple):
    """P masses on the losses offset + (first, first + 1, ...)·h, and the P mass at an infinite loss."""

    first: int
    offset: float
    mass: Floats
    infinite: float


def loss(step: Step, outcome: Floats) -> Floats:
    """ln dP/dQ at outcomes of the noised sum; it increases with them."""
    noise, rate, replace = step
    with np.errstate(divide="ignore"):  # sample rate 1 leaves no weight at 0
        rest = np.log1p(-np.float64(rate))
    up: Floats = np.logaddexp(rest, np.log(rate) + (2 * outcome - 1) / (2 * noise**2))
    if replace:
        up -= np.logaddexp(rest, np.log(rate) - (2 * outcome + 1) / (2 * noise**2))
    return up


def outcome_at(step: Step, losses: Floats) -> Floats:
    """The outcomes with these losses, the inverse of `loss`; -inf where every loss is larger."""
    noise, rate, replace = step
    if replace:
        mirrored: Floats = np.sign(losses) * _outcome_at_replace(step, np.abs(losses))
        return mirrored
    small = np.expm1(np.minimum(losses, 1.0)) + rate
    with np.errstate(divide="ignore", invalid="ignore"):
        below_one = np.log(np.maximum(small, 0.0))
    above_one = losses + np.log1p((rate - 1) * np.exp(-np.maximum(losses, 1.0)))
    logarithm = np.where(losses < 1.0, below_one, above_one) - np.log(rate)
    outcomes: Floats = noise**2 * logarithm + 0.5
    return outcomes


def _outcome_at_replace(step: Step, losses: Floats) -> Floats:
    """The outcomes with these losses, 0 or more, under replace-one: a quadratic in e^(outcome / z²)."""
    noise, rate, _ = step
    log_side = np.log(rate) - 1 / (2 * noise**2)
    linear = (rate - 1) * np.expm1(-losses)
    root = np.sqrt(linear**2 + 4 * np.exp(2 * log_side - losses))
    with np.errstate(divide="ignore"):
        result = noise**2 * (losses + np.log(linear + root) - np.log(2) - log_side)
    return np.where(losses == 0, 0.0, np.maximum(result, 0.0))


def outcomes_that_matter(step: Step, direction: Direction, deviations: float) -> tuple[float, float]:
    """An interval of outcomes: `deviations` standard deviations around every bump of the first distribution."""
    margin = step.noise_multiplier * deviations
    if direction == "remove":
        return -margin, margin + 1.0
    return -margin - (1.0 if step.replace else 0.0), margin


def cells(step: Step, direction: Direction, edges: Floats) -> tuple[Floats, Floats, float, float]:
    """P and Q masses between consecutive losses `edges`, and the P masses below and above all of them.

    `direction` "remove" is (P, Q) as `Step` has them, "add" swaps the two.
    """
    if direction == "add":
        p, q, _, _ = cells(step, "remove", -edges[::-1])
        ends = _masses(step, outcome_at(step, np.array([-np.inf, -edges[-1], -edges[0], np.inf])))[1]
        return q[::-1], p[::-1], float(ends[2]), float(ends[0])
    p, q = _masses(step, outcome_at(step, edges))
    ends = _masses(step, outcome_at(step, np.array([-np.inf, edges[0], edges[-1], np.inf])))[0]
    return p, q, float(ends[0]), float(ends[2])


def _masses(step: Step, outcomes: Floats) -> tuple[Floats, Floats]:
    """P and Q masses between consecutive outcomes, to full relative precision in the tails."""
    noise, rate, replace = step
    middle, right = _normal_masses(outcomes / noise), _normal_masses((outcomes - 1) / noise)
    p = (1 - rate) * middle + rate * right
    if not replace:
        return p, middle
    return p, (1 - rate) * middle + rate * _normal_masses((outcomes + 1) / noise)


def _normal_masses(points: Floats) -> Floats:
    """What the standard normal puts between consecutive points: differences on the side that is not near 1."""
    from scipy.special import ndtr  # half a second to import, and only an audit needs it

    left = np.diff(ndtr(points))
    right = -np.diff(ndtr(-points))
    return np.maximum(np.where(points[1:] > 0, right, left), 0.0)


def finer(step: Step, direction: Direction, interval: float, deviations: float) -> Atoms:
    """Atoms that tell at least as much as one step, on the grid of `interval`."""
    first, edges = _edges(step, direction, interval, deviations)
    p, q, below, above = cells(step, direction, edges)
    upper = _share_above(p, q, edges[:-1], interval)
    mass = np.append(p - upper, 0.0)
    mass[1:] += upper
    mass[0] += below  # a loss that is rounded up
    return Atoms(first, 0.0, mass, above)


def coarser(step: Step, direction: Direction, interval: float, deviations: float) -> Atoms:
    """Atoms that tell at most as much as one step, on a grid of `interval`.

    The grid is shifted to pass through the heaviest merged loss: sampling at a low rate leaves nearly all the mass
    at one loss, narrower than a cell, which cannot be split and should not be rounded.
    """
    first, edges = _edges(step, direction, interval, deviations)
    p, q, _, above = cells(step, direction, edges)
    short = np.zeros(-len(p) % _GROUP)
    p, q = (np.append(side, short).reshape(-1, _GROUP) for side in (p, q))
    whole_p, whole_q = p.sum(axis=1), q.sum(axis=1)
    lowest = first + _GROUP * np.arange(len(p))
    with np.errstate(divide="ignore", invalid="ignore"):
        merged = np.log(whole_p / whole_q) / interval
    # Nothing but round-off, or masses too small for floats, puts it outside its own cells.
    inside = np.isfinite(merged) & (merged >= lowest) & (merged <= lowest + _GROUP)
    merged = np.where(inside, merged, lowest)
    heaviest = int(whole_p.argmax())
    shift = merged[heaviest] % 1.0
    point = np.floor(merged - shift).astype(np.int64)
    point[heaviest] = round(merged[heaviest] - shift)
    upper = _share_above(whole_p, whole_q, (point + shift) * interval, interval)
    safe = _tells_less(p, q, (whole_p - upper, upper), (point + shift) * interval, interval)
    upper = np.where(inside & safe, upper, 0.0)
    upper[heaviest] = 0.0
    start = first - 1  # a loss that left its cells may be rounded down past the first edge
    mass = np.zeros(len(p) * _GROUP + 3)
    np.add.at(mass, point - start, whole_p - upper)
    np.add.at(mass, point - start + 1, upper)
    mass[len(edges) - 1] += above  # a loss that is rounded down
    return Atoms(start, shift * interval, mass, 0.0)


def _edges(step: Step, direction: Direction, interval: float, deviations: float) -> tuple[int, Floats]:
    """The grid over all losses that matter: index of the first point, and the points."""
    ends = loss(step, np.array(outcomes_that_matter(step, direction, deviations)))
    if direction == "add":
        ends = -ends[::-1]
    first, last = int(np.floor(ends[0] / interval)), int(np.ceil(ends[1] / interval))
    return first, interval * np.arange(first, max(last, first + 1) + 1, dtype=np.float64)


def _share_above(p: Floats, q: Floats, lower: Floats, interval: float) -> Floats:
    """Of the masses p and q, the P mass to put at `lower` + interval, the rest going to `lower`, keeping both."""
    # A factor held down makes this share too large: on the safe side for `finer`, and `coarser` checks.
    factor = np.exp(np.minimum(lower, _LARGEST_EXPONENT))
    share: Floats = np.clip((p - q * factor) / -np.expm1(-interval), 0.0, p)
    return share


def _tells_less(p: Floats, q: Floats, atoms: tuple[Floats, Floats], lower: Floats, interval: float) -> Flags:
    """Whether the atoms at `lower` and `lower` + interval tell at most what their cells do, (groups, cells).

    The curves to compare are the sums of the positive parts of p - t·q. Outside the cells' ratios p/q they agree
    if the atoms lie within; between two ratios the cells' curve is straight and the atoms' is convex. So the
    places left to look at are the inner cells' ratios.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = p / q
        at = [np.exp(np.minimum(lower + shift, _LARGEST_EXPONENT)) for shift in (0.0, interval)]
        safe: Flags = (ratios[:, 0] <= at[0]) & (at[1] <= ratios[:, -1])
        for inner in ratios[:, 1:-1].T:
            cells_tell = np.maximum(p - inner[:, None] * q, 0.0).sum(axis=1)
            atoms_tell = sum(
                mass * np.maximum(1 - inner / ratio, 0.0) for mass, ratio in zip(atoms, at, strict=True)
            )
            safe &= cells_tell >= atoms_tell
    return safe
