"""Prices: golden values, composition, and that PLD never exceeds RDP."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting import mechanisms, pricing, rdp
from accounting.errors import PricingError
from accounting.events import Adjacency, Gaussian, NonPrivate, PoissonGaussian
from accounting.independent import bracket
from accounting.mechanisms import Mechanism

DELTA = 1e-5
quick = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
# Where one step's loss is well above PLD's grid, and a price takes a fraction of a second.
noises = st.floats(3.0, 8.0)
rates = st.floats(0.01, 0.1)
counts = st.integers(1, 400)


def dp_sgd(noise: float, rate: float, steps: int, adjacency: Adjacency = "add-remove") -> PoissonGaussian:
    return PoissonGaussian(noise, rate, steps, 1.0, adjacency)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "certified"),
    [
        (1.0, 0.01, 10_000, 6.187745),
        (0.8, 0.004, 15_000, 4.379534),
        (20.0, 0.01, 1000, 0.045551),
        (1.0, 0.01, 1, 0.199450),
        pytest.param(0.4, 0.02, 1000, 48.761186, marks=pytest.mark.long),
    ],
)
def test_golden_pld(noise: float, rate: float, steps: int, certified: float) -> None:
    assert pricing.epsilon([dp_sgd(noise, rate, steps)], DELTA) == pytest.approx(certified, abs=1e-4)


def test_golden_full_batch_is_within_the_exact_value_from_above() -> None:
    assert 4.377178 <= pricing.epsilon([Gaussian(10.0, 100, 1.0)], DELTA) <= 4.377180


@pytest.mark.parametrize(
    ("event", "certified"),
    [
        (Gaussian(10.0, 100, 1.0, "replace-one"), 9.997256),
        pytest.param(dp_sgd(1.0, 0.01, 10_000, "replace-one"), 10.880807, marks=pytest.mark.long),
    ],
)
def test_golden_replace_one(event: Gaussian | PoissonGaussian, certified: float) -> None:
    assert pricing.epsilon([event], DELTA) == pytest.approx(certified, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (2.0, 0.05, 300)])
def test_pld_lies_within_the_brackets_of_prv(noise: float, rate: float, steps: int) -> None:
    prv = pytest.importorskip("prv_accountant", reason="an oracle outside the [dev] extra")
    mechanism = prv.PoissonSubsampledGaussianMechanism(noise_multiplier=noise, sampling_probability=rate)
    accountant = prv.PRVAccountant(
        prvs=[mechanism], max_self_compositions=[steps], eps_error=0.01, delta_error=1e-9
    )
    low, _, high = accountant.compute_epsilon(delta=DELTA, num_self_compositions=[steps])
    assert low <= pricing.epsilon([dp_sgd(noise, rate, steps)], DELTA) <= high


@pytest.mark.long
@pytest.mark.parametrize(
    ("noise", "rate", "steps", "low", "high"),
    [(1.0, 0.01, 10_000, 6.186385, 6.189040), (0.8, 0.004, 15_000, 4.378217, 4.380733)],
)
def test_pld_lies_within_the_recorded_brackets_of_prv(
    noise: float, rate: float, steps: int, low: float, high: float
) -> None:
    """prv-accountant 0.2.0 at an error of .001, which takes it minutes."""
    assert low <= pricing.epsilon([dp_sgd(noise, rate, steps)], DELTA) <= high


def test_a_central_limit_price_would_be_too_low() -> None:
    """Opacus' GDP accountant says .036766 for one step at z=1, q=.01; the truth is above five times that."""
    assert pricing.epsilon([dp_sgd(1.0, 0.01, 1)], DELTA) > 5 * 0.036766


@quick
@given(noises, rates, counts, counts)
def test_more_steps_cost_no_less(noise: float, rate: float, few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert pricing.epsilon([dp_sgd(noise, rate, few)], DELTA) <= (
        pricing.epsilon([dp_sgd(noise, rate, more)], DELTA) + 1e-9
    )


@quick
@given(noises, st.lists(rates, min_size=2, max_size=2), st.integers(20, 400))
def test_a_higher_sample_rate_costs_no_less(noise: float, pair: list[float], steps: int) -> None:
    low, high = (pricing.epsilon([dp_sgd(noise, rate, steps)], DELTA) for rate in sorted(pair))
    assert low <= high + 1e-4  # the grids of the two rates round up by different amounts


@quick
@given(st.lists(noises, min_size=2, max_size=2), rates, st.integers(20, 400))
def test_more_noise_costs_no_more(pair: list[float], rate: float, steps: int) -> None:
    little, much = (pricing.epsilon([dp_sgd(noise, rate, steps)], DELTA) for noise in sorted(pair))
    assert much <= little + 1e-4


@quick
@given(noises, rates, st.integers(20, 400), st.sampled_from([1e-5, 1e-7]))
def test_pld_is_at_most_rdp(noise: float, rate: float, steps: int, delta: float) -> None:
    events = [dp_sgd(noise, rate, steps)]
    assert pricing.epsilon(events, delta) <= pricing.epsilon(events, delta, accountant="rdp") + 1e-6


@quick
@given(
    st.permutations([dp_sgd(4.0, 0.05, 3), dp_sgd(6.0, 0.1, 7), dp_sgd(4.0, 0.05, 5), Gaussian(9.0, 2, 1.0)])
)
def test_order_does_not_matter(events: list[PoissonGaussian | Gaussian]) -> None:
    total = [dp_sgd(4.0, 0.05, 8), dp_sgd(6.0, 0.1, 7), Gaussian(9.0, 2, 1.0)]
    assert pricing.epsilon(events, DELTA) == pricing.epsilon(total, DELTA)
    assert pricing.epsilon(events, DELTA, "rdp") == pricing.epsilon(total, DELTA, "rdp")


@quick
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_grouping_does_not_matter(groups: list[int]) -> None:
    split = [dp_sgd(4.0, 0.05, steps) for steps in groups]
    assert pricing.epsilon(split, DELTA) == pricing.epsilon([dp_sgd(4.0, 0.05, sum(groups))], DELTA)


def test_mixed_mechanisms_agree_with_dp_accounting_one_by_one() -> None:
    dp = pytest.importorskip("dp_accounting", reason="an oracle; installed with the package")
    from dp_accounting.pld import pld_privacy_accountant

    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=1e-4)
    for noise, rate, steps in ((4.0, 0.05, 5), (6.0, 0.1, 3), (4.0, 0.05, 2)):
        for _ in range(steps):
            accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)))
    ours = pricing.epsilon([dp_sgd(4.0, 0.05, 5), dp_sgd(6.0, 0.1, 3), dp_sgd(4.0, 0.05, 2)], DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-4)


def test_full_sampling_and_the_plain_gaussian_are_one_mechanism() -> None:
    assert mechanisms.compose([dp_sgd(5.0, 1.0, 2), Gaussian(5.0, 3, 1.0)]) == ((Mechanism(5.0, 1.0), 5),)


def test_delta_and_epsilon_are_inverse() -> None:
    events = [dp_sgd(2.0, 0.05, 100)]
    assert pricing.delta_of(events, pricing.epsilon(events, DELTA)) == pytest.approx(DELTA, rel=1e-3)
    assert pricing.delta_of([], 1.0) == 0.0


def test_a_running_bound_needs_no_pld_and_uses_what_is_certified() -> None:
    event = dp_sgd(2.5, 0.04, 10)
    before = pricing.running_bound([event] * 5, DELTA)
    assert before == rdp.epsilon(mechanisms.compose([event] * 5), DELTA)
    certified = pricing.epsilon([event] * 6, DELTA)
    assert pricing.running_bound([event] * 5, DELTA) == min(before, certified) < before


def test_an_enormous_epsilon_is_priced_without_enormous_memory() -> None:
    events = [Gaussian(0.1, 200, 1.0)]
    assert 1e4 < pricing.epsilon(events, DELTA) <= 1.01 * pricing.epsilon(events, DELTA, "rdp")


def test_what_has_no_price_is_refused() -> None:
    with pytest.raises(PricingError, match="outside the guarantee"):
        pricing.epsilon([NonPrivate("loss", "debugging")], DELTA)
    with pytest.raises(PricingError, match="different adjacencies"):
        pricing.epsilon([dp_sgd(1.0, 0.1, 1), dp_sgd(1.0, 0.1, 1, "replace-one")], DELTA)
    with pytest.raises(PricingError, match="no price is known"):
        mechanisms.compose([object()])


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 1e-12])
def test_a_delta_that_pld_cannot_certify_is_refused(delta: float) -> None:
    with pytest.raises(PricingError, match="delta"):
        pricing.epsilon([dp_sgd(1.0, 0.1, 1)], delta)


@pytest.mark.parametrize("delta", [5e-9, 1e-8])
def test_round_off_of_many_steps_is_charged_to_delta(delta: float) -> None:
    """Transforms in plain floats put delta 1e-11 too low here: 6.956506 where epsilon at 5e-9 is 6.956972 or more."""
    event = dp_sgd(0.37843018, 1.3928631377808516e-05, 70273)
    assert pricing.epsilon([event], delta) >= bracket([event], delta).low
    assert pricing.delta_of([event], 6.956972) >= 4.9999e-9


def test_where_round_off_would_take_delta_rdp_prices() -> None:
    event = dp_sgd(5.0, 1e-4, 4_000_000)
    assert pricing.epsilon([event], 1e-9) == pricing.epsilon([event], 1e-9, "rdp")
