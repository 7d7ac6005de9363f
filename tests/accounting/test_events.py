"""Events say what was released, in one text each, and unknown ones are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import canonical
from accounting.errors import EventError
from accounting.events import ADJACENCIES, Event, Gaussian, NonPrivate, PoissonGaussian, from_json, to_json

positive = st.floats(1e-6, 1e6)
steps = st.integers(0, 10**9)
adjacency = st.sampled_from(ADJACENCIES)
text = st.text(min_size=1).filter(str.strip)
events = st.one_of(
    st.builds(PoissonGaussian, positive, st.floats(1e-9, 1.0), steps, positive, adjacency),
    st.builds(Gaussian, positive, steps, positive, adjacency),
    st.builds(NonPrivate, text, text),
)


@given(events)
def test_an_event_survives_its_text(event: Event) -> None:
    assert from_json(canonical.loads(canonical.dumps(to_json(event)))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "Laplace"},
        {"kind": ["PoissonGaussian"]},
        {"version": 2},
        {"version": True},
        {"noise_multiplier": 0.0},
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
