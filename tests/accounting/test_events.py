"""Events say what was released, in one text each, and unknown ones are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accounting import canonical
from accounting.errors import EventError
from accounting.events import (
    ADJACENCIES,
    AdaptiveClipPoissonGaussian,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    Event,
    FixedSizeGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    PrivateEvent,
    RepeatedTrials,
    ShuffledGaussian,
    Tuning,
    from_json,
    to_json,
)

SHARES: dict[str, Any] = {
    "local_stddev": 20.0,
    "scale": 4096.0,
    "clip_norm": 1.0,
    "dimension": 1024,
    "survivors": 8,
    "max_colluders": 2,
    "modulus_bits": 24,
    "rounding_beta": 0.0,
    "unit": "client",
    "sample_rate": 1.0,
    "steps": 3,
    "adjacency": "zero-out",
}
EXAMPLES: dict[str, Any] = {"unit": "example", "adjacency": "add-remove", "sample_rate": 0.1}

positive = st.floats(1e-6, 1e6)
steps = st.integers(0, 10**9)
adjacency = st.sampled_from(ADJACENCIES)
text = st.text(min_size=1).filter(str.strip)
plain = st.one_of(
    st.builds(PoissonGaussian, positive, st.floats(1e-9, 1.0), steps, positive, adjacency),
    st.builds(Gaussian, positive, steps, positive, adjacency),
    st.builds(FixedSizeGaussian, positive, st.integers(1, 9), st.integers(9, 10**9), steps, positive),
    st.builds(ShuffledGaussian, positive, steps, positive),
    st.builds(
        AdaptiveClipPoissonGaussian, positive, positive, st.floats(1e-9, 1.0), steps, positive, adjacency
    ),
    st.builds(lambda s, n: DistributedDiscreteGaussian(**{**SHARES, "local_stddev": 1 + s, "survivors": n}),
              positive, st.integers(3, 10**6)),
    st.builds(lambda s, q: DistributedSkellam(**{**SHARES, **EXAMPLES, "local_stddev": s, "sample_rate": q}),
              positive, st.floats(1e-9, 1.0)),
)  # fmt: skip
candidates = plain.map(lambda event: replace(event, steps=max(1, event.steps)))
events = st.one_of(
    plain,
    st.builds(Tuning, candidates, st.floats(-0.9, 5.0), st.floats(1e-6, 0.999), steps),
    st.builds(RepeatedTrials, candidates, st.integers(1, 10**6), steps),
    st.builds(NonPrivate, text, text),
)


@given(events)
def test_an_event_survives_its_text(event: Event) -> None:
    assert from_json(canonical.loads(canonical.dumps(to_json(event)))) == event


def test_the_first_events_keep_their_text_for_ever() -> None:
    """Ledgers exist: a change of these lines would break their hashes."""
    assert [
        canonical.dumps(to_json(event))
        for event in (
            PoissonGaussian(1, 0.5, 7, 2),
            Gaussian(1.5, 7, 2, "replace-one"),
            NonPrivate("n_k", "weights"),
        )
    ] == [
        '{"adjacency":"add-remove","clip_norm":2.0,"kind":"PoissonGaussian","noise_multiplier":1.0,'
        '"sample_rate":0.5,"steps":7,"version":1}',
        '{"adjacency":"replace-one","clip_norm":2.0,"kind":"Gaussian","noise_multiplier":1.5,"steps":7,'
        '"version":1}',
        '{"kind":"NonPrivate","reason":"weights","version":1,"what":"n_k"}',
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "Laplace"},
        {"kind": ["PoissonGaussian"]},
        {"version": 2},
        {"version": True},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("inf")},
        {"noise_multiplier": "1.0"},
        {"noise_multiplier": 1},
        {"sample_rate": 1.5},
        {"sample_rate": 0.0},
        {"steps": -1},
        {"steps": 1.0},
        {"steps": True},
        {"clip_norm": float("nan")},
        {"adjacency": "zero-out"},
        {"adjacency": ["add-remove"]},
        {"extra": 1},
    ],
)
def test_a_malformed_or_unknown_event_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(EventError):
        from_json({**to_json(PoissonGaussian(1.0, 0.1, 5, 1.0)), **change})


@pytest.mark.parametrize("kind", [DistributedDiscreteGaussian, DistributedSkellam])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"survivors": 2}, "must be more than max_colluders"),
        ({"survivors": 8.0}, "whole number"),
        ({"max_colluders": -1}, "whole number"),
        ({"dimension": 0}, "whole number"),
        ({"modulus_bits": 0}, "whole number"),
        ({"local_stddev": -1.0}, "above 0"),
        ({"scale": float("inf")}, "finite"),
        ({"rounding_beta": 1.0}, r"\[0, 1\)"),
        ({"rounding_beta": "0"}, "number"),
        ({"rounding_beta": 0}, "JSON type"),
        ({"adjacency": "add-remove"}, "adjacency"),
        ({"sample_rate": 0.5}, "cohorts are public"),
        ({"unit": "row"}, "unit"),
        ({**EXAMPLES, "adjacency": "zero-out"}, "adjacency"),
        ({**EXAMPLES, "rounding_beta": 1e-12}, "too large"),
        ({**EXAMPLES, "sample_rate": 1.01}, "at most 1"),
    ],
)
def test_shares_of_noise_that_promise_nothing_are_refused(
    kind: type[DistributedSkellam] | type[DistributedDiscreteGaussian],
    change: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(EventError, match=message):
        from_json({**to_json(kind(**SHARES)), **change})


def test_a_discrete_gaussian_below_one_is_refused_and_a_skellam_is_not() -> None:
    with pytest.raises(EventError, match="at least 1"):
        DistributedDiscreteGaussian(**{**SHARES, "local_stddev": 0.999})
    assert DistributedSkellam(**{**SHARES, "local_stddev": 0.4}).local_stddev == 0.4


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedSizeGaussian(1.0, 11, 10, 1, 1.0),
        lambda: FixedSizeGaussian(1.0, 1, 10, 1, 1.0, "add-remove"),
        lambda: ShuffledGaussian(1.0, 1, 1.0, "add-remove"),
        lambda: AdaptiveClipPoissonGaussian(1.0, 0.0, 0.1, 1, 1.0),
        lambda: Tuning(Gaussian(1.0, 1, 1.0), -1.0, 0.1),
        lambda: Tuning(Gaussian(1.0, 1, 1.0), 1.0, 1.0),
        lambda: Tuning(Gaussian(1.0, 0, 1.0), 1.0, 0.1),
        lambda: Tuning(Tuning(Gaussian(1.0, 1, 1.0), 1.0, 0.1), 1.0, 0.1),
        lambda: Tuning(NonPrivate("a", "b"), 1.0, 0.1),
        lambda: Tuning(DistributedSkellam(**{**SHARES, **EXAMPLES, "rounding_beta": 1e-16}), 1.0, 0.1),
        lambda: RepeatedTrials(Gaussian(1.0, 1, 1.0), 0),
    ],
)
def test_events_that_contradict_themselves_are_refused(make: Any) -> None:
    with pytest.raises(EventError):
        make()


def test_repeated_runs_do_not_nest_in_a_text_either() -> None:
    value: Any = to_json(Gaussian(1.0, 1, 1.0))
    for _ in range(100_000):
        value = {"kind": "RepeatedTrials", "version": 1, "candidate": value, "trials": 1, "steps": 1}
    with pytest.raises(EventError, match="plain event"):
        from_json(value)


def test_every_event_with_a_price_says_whom_it_protects_and_against_whom() -> None:
    local = PoissonGaussian(1.0, 0.1, 5, 1.0)
    everyone = ("server", "released-model", "colluding-clients")
    assert (local.unit, local.views, local.max_colluders) == ("example", everyone, None)
    shares = DistributedSkellam(**SHARES)
    assert (shares.unit, shares.views, shares.max_colluders, shares.honest) == ("client", everyone, 2, 6)
    assert DistributedSkellam(**{**SHARES, "max_colluders": 0}).views == ("server", "released-model")
    for repeated in (Tuning(shares, 1.0, 0.1), RepeatedTrials(shares, 3)):
        assert (repeated.unit, repeated.adjacency, repeated.views) == ("client", "zero-out", everyone)


def samplers() -> list[tuple[PrivateEvent, str]]:
    return [
        (PoissonGaussian(1.0, 0.1, 1, 1.0), "poisson"),
        (Gaussian(1.0, 1, 1.0), "none"),
        (FixedSizeGaussian(1.0, 1, 10, 1, 1.0), "fixed-size"),
        (ShuffledGaussian(1.0, 1, 1.0), "shuffled"),
        (AdaptiveClipPoissonGaussian(1.0, 1.0, 0.1, 1, 1.0), "poisson"),
        (DistributedSkellam(**SHARES), "none"),
        (DistributedSkellam(**{**SHARES, **EXAMPLES}), "poisson"),
        (Tuning(ShuffledGaussian(1.0, 1, 1.0), 1.0, 0.1), "shuffled"),
    ]


@pytest.mark.parametrize(("event", "sampler"), samplers())
def test_every_event_with_a_price_names_its_sampler(event: PrivateEvent, sampler: str) -> None:
    assert event.sampler == sampler


def test_the_counted_noise_shrinks_with_survivors_and_colluders() -> None:
    event = DistributedSkellam(**SHARES)
    assert event.central_noise_multiplier == pytest.approx(6**0.5 * 20 / 4096)
    assert replace(event, survivors=6).central_noise_multiplier == pytest.approx(2 * 20 / 4096)


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.95, 4.0), st.floats(0.02, 0.98))
@example(5e-324, 0.5)
@example(1e-10, 0.75)
def test_the_mean_number_of_trials_is_that_of_the_distribution(shape: float, gamma: float) -> None:
    """Brute force over the probabilities: weights Γ(k+η)/(Γ(η) k!) (1-γ)^k, truncated at k = 0."""
    total = mean = 0.0
    weight = 1 - gamma
    for k in range(1, 3000):
        total, mean = total + weight, mean + k * weight
        weight *= (1 - gamma) * (k + shape) / (k + 1)
    assert Tuning(Gaussian(1.0, 1, 1.0), shape, gamma).mean_trials == pytest.approx(mean / total, rel=1e-6)


def test_a_missing_field_is_refused() -> None:
    value = to_json(PoissonGaussian(1.0, 0.1, 5, 1.0))
    del value["sample_rate"]
    with pytest.raises(EventError, match="exactly the fields"):
        from_json(value)


def test_whole_numbers_are_stored_as_floats_so_that_equal_events_have_equal_texts() -> None:
    assert canonical.dumps(to_json(Gaussian(2, 1, 1))) == canonical.dumps(to_json(Gaussian(2.0, 1, 1.0)))


def test_a_note_must_say_something() -> None:
    with pytest.raises(EventError, match="must say something"):
        NonPrivate("loss", " ")


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', '{"a":NaN}', "[Infinity]", "{"])
def test_ambiguous_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"repeated|not JSON|Expecting"):
        canonical.loads(text)
