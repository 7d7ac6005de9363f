"""The audit's second way through the Rényi theorems: published figures, the first way, and what neither may hide."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accounting import independent_rdp, pricing
from accounting.case import Findings
from accounting.checks.derived import _price
from accounting.errors import PricingError
from accounting.events import (
    DistributedDiscreteGaussian,
    DistributedSkellam,
    FixedSizeGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    RepeatedTrials,
    Tuning,
)

REPOSITORY = Path(__file__).parents[2]
DELTA = 1e-5
SHARES = (DistributedDiscreteGaussian, DistributedSkellam)


def shares(kind: Any, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "local_stddev": 200.0, "scale": 64.0, "clip_norm": 1.0, "dimension": 1024, "survivors": 10,
        "max_colluders": 1, "modulus_bits": 20, "rounding_beta": 0.0, "unit": "example", "sample_rate": 1.0,
        "steps": 20, "adjacency": "add-remove",
    }  # fmt: skip
    return kind(**{**values, **changes})


@pytest.mark.parametrize(
    ("kind", "scale", "survivors", "golden"),
    [
        (DistributedDiscreteGaussian, 4096.0, 100, 3.545507),
        (DistributedSkellam, 4096.0, 100, 3.545507),
        (DistributedDiscreteGaussian, 4096.0, 70, 4.327187),
        (DistributedDiscreteGaussian, 64.0, 100, 8.902265),
        (DistributedSkellam, 64.0, 100, 8.902285),
    ],
)
def test_published_figures(kind: Any, scale: float, survivors: int, golden: float) -> None:
    event = shares(
        kind, local_stddev=scale, scale=scale, dimension=2**16, survivors=survivors, max_colluders=0, steps=50,
        rounding_beta=math.exp(-0.5), unit="client", adjacency="zero-out",
    )  # fmt: skip
    assert independent_rdp.epsilon([event], 1e-6) == pytest.approx(golden, abs=1e-6)


EVENTS = [
    *(shares(kind, **change) for kind in SHARES for change in (
        {}, {"sample_rate": 0.05, "steps": 300}, {"adjacency": "replace-one", "sample_rate": 0.1},
        {"rounding_beta": 1e-15}, {"local_stddev": 1.0, "scale": 1.0, "dimension": 4, "sample_rate": 0.01},
    )),
    FixedSizeGaussian(2.0, 10, 1000, 100, 1.0),
    FixedSizeGaussian(8.0, 50, 100, 10, 1.0),
    FixedSizeGaussian(0.5, 1, 10_000, 1000, 1.0),
    FixedSizeGaussian(1000.0, 1, 10, 1000, 1.0),
    FixedSizeGaussian(4.0, 100, 100, 3, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.kind}-{event.sample_rate:g}")
def test_both_ways_through_a_theorem_agree(event: Any) -> None:
    own = independent_rdp.epsilon([event], DELTA)
    assert own == pytest.approx(pricing.epsilon([event], DELTA), rel=1e-9)


def test_mixed_ledgers_agree_too() -> None:
    gaussian = PoissonGaussian(3.0, 0.1, 20, 1.0)
    sampled = shares(DistributedSkellam, sample_rate=0.1, steps=5)
    for events in ([gaussian, sampled], [RepeatedTrials(sampled, 3), Gaussian(20.0, 2, 1.0), gaussian]):
        own = independent_rdp.epsilon(events, DELTA)
        assert own == pytest.approx(pricing.epsilon(events, DELTA, "rdp"), rel=1e-6)
    replaced = [FixedSizeGaussian(4.0, 5, 100, 20, 1.0), PoissonGaussian(4.0, 0.1, 20, 1.0, "replace-one")]
    assert independent_rdp.epsilon(replaced, DELTA) == pytest.approx(
        pricing.epsilon(replaced, DELTA), rel=1e-9
    )


def test_nothing_costs_nothing() -> None:
    assert (
        independent_rdp.epsilon([], DELTA) == independent_rdp.epsilon([Gaussian(1.0, 0, 1.0)], DELTA) == 0.0
    )


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([NonPrivate("loss", "why")], "no second price"),
        ([Tuning(Gaussian(4.0, 1, 1.0), 1.0, 0.5)], "no second price"),
        ([Gaussian(4.0, 1, 1.0), FixedSizeGaussian(4.0, 1, 10, 1, 1.0)], "do not compose"),
        ([shares(DistributedSkellam, rounding_beta=1e-15, steps=10**11)], "take all of delta"),
    ],
)
def test_what_it_cannot_price_it_refuses(events: list[Any], message: str) -> None:
    with pytest.raises(PricingError, match=message):
        independent_rdp.epsilon(events, DELTA)


# --- in check 2 ---


@pytest.mark.parametrize("factor", [0.999, 1.2])
@pytest.mark.parametrize(
    "event", [EVENTS[0], FixedSizeGaussian(2.0, 10, 1000, 100, 1.0), Gaussian(2.0, 3, 1.0)]
)
def test_an_accountant_that_is_wrong_is_noticed(
    event: Any, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either second method, in either direction."""
    honest, spoilt = Findings(), Findings()
    _price(honest, "client-1", (event,), DELTA)
    assert (honest.problems, honest.doubts, len(honest.facts)) == ([], [], 1)
    true = pricing.epsilon
    monkeypatch.setattr("accounting.checks.derived.epsilon", lambda *given: factor * true(*given))
    _price(spoilt, "client-1", (event,), DELTA)
    assert "one of them is wrong" in spoilt.problems[0]


def test_where_there_is_one_method_only_the_verdict_says_so() -> None:
    found = Findings()
    _price(found, "client-1", (Tuning(Gaussian(40.0, 1, 1.0), 1.0, 0.5),), DELTA)
    assert not found.problems
    assert "there is no second method for Tuning" in found.doubts[0]


def test_it_loads_nothing_of_the_first_way() -> None:
    script = (
        "import sys, accounting.independent_rdp as own; print(*(n for n in sys.modules if 'account' in n))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    first = {"pricing", "rdp", "shares", "amplification", "mechanisms", "losses", "planning"}
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({f"accounting.{name}" for name in first} | {"dp_accounting"})
