"""Our own RDP: against quadrature, published numbers, and two other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import rdp
from accounting.mechanisms import Mechanism

DELTA = 1e-5
# noise multiplier, sample rate, steps, Opacus 1.6.0, dp-accounting 0.6.0
GOLDEN = [
    (1.0, 0.01, 10_000, 6.712738, 6.712757),
    (0.8, 0.004, 15_000, 4.818376, 4.818440),
    (20.0, 0.01, 1000, 0.110764, 0.051733),
    (1.0, 0.01, 1, 0.955549, 0.955549),
    (10.0, 1.0, 100, 4.728507, 4.728507),
    (0.4, 0.02, 1000, 54.253358, 55.103987),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "opacus", "dp_accounting"), GOLDEN)
def test_golden_values(noise: float, rate: float, steps: int, opacus: float, dp_accounting: float) -> None:
    # Every order bounds epsilon, and the libraries differ in the orders they try: ours covers the better of
    # both. At z = .4 dp-accounting drops its lowest orders, where its series does not converge.
    ours = rdp.epsilon(((Mechanism(noise, rate), steps),), DELTA)
    assert ours == pytest.approx(min(opacus, dp_accounting), abs=1e-3)


@pytest.mark.parametrize(("noise", "rate", "steps"), [case[:3] for case in GOLDEN])
def test_equals_dp_accounting_at_whole_orders(noise: float, rate: float, steps: int) -> None:
    dp = pytest.importorskip("dp_accounting", reason="an oracle; installed with the package")
    from dp_accounting.rdp import rdp_privacy_accountant

    orders = [*range(2, 65), 128, 256, 512]  # at fractional ones its series is a bound, not the value
    accountant = rdp_privacy_accountant.RdpAccountant(orders)
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    theirs = accountant.compose(event, steps).get_epsilon(DELTA)
    assert rdp.epsilon(((Mechanism(noise, rate), steps),), DELTA, orders) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "rate", "steps"), [case[:3] for case in GOLDEN])
def test_equals_opacus_at_its_orders(noise: float, rate: float, steps: int) -> None:
    analysis = pytest.importorskip(
        "opacus.accountants.analysis.rdp", reason="an oracle; comes with the [train] extra"
    )
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    curve = analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    theirs = analysis.get_privacy_spent(orders=orders, rdp=curve, delta=DELTA)[0]
    assert rdp.epsilon(((Mechanism(noise, rate), steps),), DELTA, orders) == pytest.approx(theirs, abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.floats(0.2, 30.0), st.floats(1e-4, 0.999))
def test_the_binomial_and_the_quadrature_agree_at_whole_orders(order: int, noise: float, rate: float) -> None:
    exact = rdp._log_moment_whole(order, noise, rate)
    assert rdp._log_moment_fractional(order, noise, rate) == pytest.approx(exact, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("order", [1.5, 2.0, 3.0, 8.0, 32.0])
def test_halved_noise_bounds_replace_one(noise: float, rate: float, order: float) -> None:
    """Brute force: the divergence between q N(C) + (1-q) N(0) and q N(-C) + (1-q) N(0)."""
    x = np.arange(-2 * order - 50 * noise - 5, 2 * order + 50 * noise + 5, noise / 50)

    def log_density(shift: float) -> np.ndarray:
        log_keep = math.log1p(-rate) if rate < 1 else -math.inf
        log_mixture = np.logaddexp(
            log_keep - x**2 / (2 * noise**2), math.log(rate) - (x - shift) ** 2 / (2 * noise**2)
        )
        return log_mixture - math.log(noise * math.sqrt(2 * math.pi))

    integrand = order * log_density(1.0) + (1 - order) * log_density(-1.0)
    exact = (np.logaddexp.reduce(integrand) + math.log(noise / 50)) / (order - 1)
    bound = rdp.rdp_curve(Mechanism(noise, rate, "replace-one"), (order,))[0]
    assert exact <= bound * (1 + 1e-9)
    if rate == 1.0:
        assert bound == pytest.approx(exact, rel=1e-9)


def test_replace_one_is_not_priced_as_add_remove() -> None:
    """The trap: dp-accounting's RDP ignores that replace-one doubles the sensitivity and says 4.728507."""
    parts = ((Mechanism(10.0, 1.0, "replace-one"), 100),)
    certified = 9.997256
    assert rdp.epsilon(parts, DELTA) > certified
    assert rdp.epsilon(parts, DELTA) == pytest.approx(
        rdp.epsilon(((Mechanism(5.0, 1.0), 100),), DELTA), abs=1e-12
    )


def test_the_trap_is_still_there_upstream() -> None:
    """If this fails, dp-accounting has mended its RDP; ours stays right, the note on it can go."""
    dp = pytest.importorskip("dp_accounting", reason="an oracle; installed with the package")
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    assert accountant.compose(dp.GaussianDpEvent(10.0), 100).get_epsilon(DELTA) == pytest.approx(
        4.7285, abs=1e-3
    )


def test_nothing_costs_nothing() -> None:
    assert rdp.epsilon((), DELTA) == 0.0
