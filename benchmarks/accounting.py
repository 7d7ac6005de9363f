"""What accounting costs: a running bound after every round, calibration, pricing; beside dp-accounting's plain path.

20 clients with data of different sizes and 200 rounds of 50 steps. "Plain" is dp-accounting used as its documentation
does: a `PLDAccountant` that composes all steps so far and is asked for epsilon, and `calibrate_dp_mechanism` on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from accounting import calibration, mechanisms, pricing
from accounting.events import PoissonGaussian
from accounting.pricing import RunningBound
from benchmarks.common import Row, best

CLIENTS, ROUNDS, STEPS, DELTA = 20, 200, 50, 1e-5
# target, sample rate, steps; the last three are heavy-tailed: little noise on very small batches
CALIBRATIONS = ((3.0, 0.01, 10_000), (1.0, 0.001, 300), (2.0, 0.001, 5), (10.0, 0.01, 100))


def rows() -> Iterator[Row]:
    """Yield every line; dp-accounting is imported before anything is timed."""
    pricing.pld_epsilon(((mechanisms.Mechanism(9.0, 0.1), 1),), DELTA)
    yield from running()
    for target, rate, steps in CALIBRATIONS:
        yield calibrating(target, rate, steps)
    yield certifying()


def running() -> Iterator[Row]:
    """Yield the cost of all clients' bounds after the last round: the dearest, for whoever keeps no state."""
    events = [PoissonGaussian(1.2 + 0.05 * k, 0.004 + 0.001 * k, STEPS, 1.0) for k in range(CLIENTS)]
    plain = best(lambda: [_plain_epsilon(event, ROUNDS) for event in events[:2]], 1) * CLIENTS / 2
    for event in events:
        pricing.running_bound([event], DELTA)  # as after planning: a client's curve is known
    anew = best(lambda: [pricing.running_bound([event] * ROUNDS, DELTA) for event in events])
    target = "< 50 ms"
    against = "dp-accounting, PLD of all rounds so far (2 clients measured, × 10)"
    yield Row(
        f"running bound, {CLIENTS} clients, after round {ROUNDS}, from the events",
        anew,
        against,
        plain,
        target,
    )
    kept = [RunningBound(DELTA) for _ in events]
    for bound, event in zip(kept, events, strict=True):
        for _ in range(ROUNDS - 1):
            bound.add(event)

    def one_round() -> None:
        for bound, event in zip(kept, events, strict=True):
            bound.add(event)
            _ = bound.epsilon

    yield Row(
        f"running bound, {CLIENTS} clients, one more round, kept up", best(one_round), against, plain, target
    )
    changing = [[PoissonGaussian(1.0 + (ROUNDS * k + number) / 5000, 0.01, STEPS, 1.0) for number in range(ROUNDS)]
                for k in range(CLIENTS)]  # fmt: skip
    histories = [RunningBound(DELTA) for _ in changing]
    for bound, history in zip(histories, changing, strict=True):
        for event in history:
            bound.add(event)
            pricing.running_bound([event], DELTA)  # the curve of each round's mechanism, made at plan time
    yield Row(
        f"the same, every round with another noise ({ROUNDS} distinct mechanisms a client)",
        best(lambda: [bound.epsilon for bound in histories], 3),
        against,
        plain,
        target,
    )


def calibrating(target: float, rate: float, steps: int) -> Row:
    """Return the cost of a certified calibration; the plain path starts from a bracket, as it must."""
    ours = best(partial(_calibrate, target, rate, steps), 2)
    plain = best(partial(_plain_noise, target, rate, steps), 1)
    what = f"calibration to ε = {target:g}, q = {rate:g}, {steps} steps"
    return Row(
        what, ours, "dp-accounting, calibrate_dp_mechanism at 1e-4, to .001 of noise", plain, "< 2,000 ms"
    )


def certifying() -> Row:
    """Return the cost of one certified price, PLD at 1e-4, on our fast grid and by dp-accounting."""
    from accounting import losses

    parts = ((mechanisms.Mechanism(1.0, 0.01), 10_000),)
    fast = best(lambda: losses.fast_epsilon([*parts], DELTA, 1e-4))

    def certified() -> float:
        _forget()
        return pricing.pld_epsilon(parts, DELTA)

    what = "the same figure by our own loss distributions (to search with)"
    return Row(
        what, fast, "one price by dp-accounting's PLD, z = 1, q = .01, 10,000 steps", best(certified, 3)
    )


def _calibrate(target: float, rate: float, steps: int) -> float:
    """Calibrate with nothing remembered."""
    calibration._calibrate.cache_clear()
    calibration._approach.cache_clear()
    _forget()
    return calibration.calibrate(target, DELTA, rate, steps)


def _forget() -> None:
    """Drop every price that this process remembers."""
    for remembered in (pricing.step_curve, pricing._composed, pricing._single_step):
        remembered.cache_clear()


def _plain_epsilon(event: PoissonGaussian, rounds: int) -> float:
    """Return epsilon after so many rounds, composed in one power."""
    import dp_accounting as dp
    from dp_accounting.pld import pld_privacy_accountant

    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=1e-4)
    step = dp.PoissonSampledDpEvent(event.sample_rate, dp.GaussianDpEvent(event.noise_multiplier))
    accountant.compose(step, rounds * event.steps)
    return float(accountant.get_epsilon(DELTA))


def _plain_noise(target: float, rate: float, steps: int) -> float:
    """Return the noise multiplier that dp-accounting's own search finds."""
    import dp_accounting as dp
    from dp_accounting.pld import pld_privacy_accountant

    return float(
        dp.calibrate_dp_mechanism(
            lambda: pld_privacy_accountant.PLDAccountant(value_discretization_interval=1e-4),
            lambda noise: dp.SelfComposedDpEvent(
                dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), steps
            ),
            target,
            DELTA,
            dp.ExplicitBracketInterval(0.25, 20.0),
            tol=0.001,
        )
    )
