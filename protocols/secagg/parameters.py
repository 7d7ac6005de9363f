"""Which counts a session needs: from clients, colluders and losses to degree, threshold and quorum.

What protects a vector is deterministic: the rules of `session` and the checks of `checks` hold for every
placement of `max_colluders` and whatever the server does. Only whether a session of honest parties *finishes*
is a matter of chance, because a ring lattice places clients at random. The bounds of that chance are here, with
the proofs in ``docs/parameters.md``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from protocols.errors import LocalProtocolError
from protocols.secagg.session import Thresholds, recommended

COMPLETE_UP_TO = 100
"""Up to so many clients everybody masks with everybody unless a degree is asked for."""


def choose(
    n: int,
    max_colluders: int,
    dropout_rate: float,
    failure_probability: float,
    complete_up_to: int = COMPLETE_UP_TO,
) -> Thresholds:
    """Return the cheapest safe counts with which honest parties fail with at most `failure_probability`.

    Above `complete_up_to` clients the graph is the ring lattice of the smallest degree that allows it, if there
    is one, with the largest threshold that still does: what the failure probability leaves over goes into
    protection.

    Args:
        dropout_rate: the probability that a client is lost in some phase, independently of the others.

    Raises:
        LocalProtocolError: an argument is out of range, or no counts are safe and reliable enough.

    Example:
        >>> choose(1000, max_colluders=60, dropout_rate=0.1, failure_probability=1e-8)
        Thresholds(quorum=531, threshold=66, min_survivors=531, degree=100)
        >>> choose(5, max_colluders=1, dropout_rate=0.01, failure_probability=0.001)
        Thresholds(quorum=4, threshold=4, min_survivors=4, degree=4)
    """
    if not 0 <= dropout_rate < 1 or not 0 < failure_probability < 1:
        raise LocalProtocolError("dropout_rate must be in [0, 1), failure_probability in (0, 1)")

    def fails(counts: Thresholds) -> bool:
        return abort_bound(n, max_colluders, counts, dropout_rate) > failure_probability

    complete = recommended(n, max_colluders)
    if n > complete_up_to:
        low, high = max_colluders // 2 + 1, (n - 3) // 2  # of degree/2; the bound falls as it grows
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if fails(_lattice(n, max_colluders, 2 * middle)) else (low, middle)
        if low == high and not fails(lattice := _lattice(n, max_colluders, 2 * low)):
            for threshold in range(lattice.degree + 1, lattice.threshold, -1):
                if not fails(replace(lattice, threshold=threshold)):
                    return replace(lattice, threshold=threshold)
            return lattice
    if fails(complete):
        bound = abort_bound(n, max_colluders, complete, dropout_rate)
        raise LocalProtocolError(
            f"with {n} clients, {max_colluders} colluders and {dropout_rate:.1%} losses a session may fail with "
            f"probability {bound:.2g}: add clients, assume fewer colluders or losses, or accept that probability"
        )
    return complete


def abort_bound(n: int, max_colluders: int, counts: Thresholds, dropout_rate: float) -> float:
    """Return an upper bound on the probability that a session of honest parties aborts.

    Each client is lost in some phase with probability `dropout_rate`, independently. For a complete graph with
    ``threshold ≤ min_survivors`` it is the probability itself.
    """
    degree, p = counts.degree, dropout_rate
    total = binomial_tail(n, p, _too_many(n, counts))
    if degree < n - 1:
        of_present = (1 - p) * binomial_tail(degree, p, degree - counts.threshold + 2)
        of_lost = p * binomial_tail(degree, p, degree - counts.threshold + 1)
        of_cut = binomial_tail(degree, p, degree - max_colluders)
        total += n * (of_present + of_lost) + _window_pairs(n, degree) * of_cut
    return min(1.0, total)


def abort_bound_of_losses(n: int, max_colluders: int, counts: Thresholds, losses: int) -> float:
    """Return an upper bound on the probability that a session aborts in which `losses` clients are lost.

    Whoever they are: they may be chosen by the worst adversary who does not know T1, and so not the ring.
    """
    degree = counts.degree
    if losses >= _too_many(n, counts):
        return 1.0
    if degree == n - 1:
        return 0.0
    of_present = hypergeometric_tail(n - 1, losses, degree, degree - counts.threshold + 2)
    of_lost = hypergeometric_tail(n - 1, losses - 1, degree, degree - counts.threshold + 1)
    of_cut = hypergeometric_tail(n, losses, degree, degree - max_colluders)
    holders = (n - losses) * of_present + losses * of_lost
    return min(1.0, holders + _window_pairs(n, degree) * of_cut)


def binomial_tail(trials: int, probability: float, least: int) -> float:
    """Return P[X ≥ least] for X the number of successes in independent trials."""
    if least <= 0:
        return 1.0
    if probability == 0:
        return 0.0
    log_yes, log_no = math.log(probability), math.log1p(-probability)
    return math.fsum(
        math.exp(_log_choose(trials, k) + k * log_yes + (trials - k) * log_no)
        for k in range(least, trials + 1)
    )


def hypergeometric_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Return P[X ≥ least] for X the number of marked ones among `drawn` without replacement."""
    if least <= 0:
        return 1.0
    every = _log_choose(population, drawn)
    fewest = max(least, drawn - (population - marked))
    return math.fsum(
        math.exp(_log_choose(marked, k) + _log_choose(population - marked, drawn - k) - every)
        for k in range(fewest, min(marked, drawn) + 1)
    )


def _too_many(n: int, counts: Thresholds) -> int:
    """Return how many losses of all end every session."""
    least = max(counts.quorum, counts.min_survivors)
    if counts.degree == n - 1:
        least = max(least, counts.threshold)
    return n - least + 1


def _window_pairs(n: int, degree: int) -> int:
    """Return how many pairs of disjoint windows of degree/2 positions a ring has."""
    return n * (n - degree + 1) // 2


def _lattice(n: int, max_colluders: int, degree: int) -> Thresholds:
    """Return the counts of a ring lattice with the smallest safe threshold, which survives most losses."""
    return replace(recommended(n, max_colluders, degree), threshold=max_colluders + 1)


def _log_choose(n: int, k: int) -> float:
    """Return the logarithm of a binomial coefficient."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
