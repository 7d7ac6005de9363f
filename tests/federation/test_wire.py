"""Messages survive the wire whole or are refused whole."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire

blobs = st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=4)


@given(kind=st.text(max_size=8), fields=st.dictionaries(st.text(max_size=5), st.integers()), blobs=blobs)
def test_round_trip(kind: str, fields: dict, blobs: dict) -> None:
    message = wire.Message(kind, fields, blobs)
    assert wire.decode(wire.encode(message)) == message


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(FederationError):
        wire.decode(data)


@given(cut=st.integers(1, 60), tail=st.binary(min_size=1, max_size=5))
def test_truncated_or_extended_is_refused(cut: int, tail: bytes) -> None:
    data = wire.encode(wire.Message("phase", {"phase": "mask"}, {"body": b"x" * 20}))
    for wrong in (data[:-cut], data + tail):
        with pytest.raises(FederationError):
            wire.decode(wrong)


def test_arrays_must_be_the_expected_ones_and_finite() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    shapes = {"a": (2, 3), "b": (2,)}
    packed = wire.pack_arrays(arrays)
    back = wire.unpack_arrays(packed, shapes, "the state")
    assert all((back[k] == arrays[k]).all() for k in arrays)
    with pytest.raises(FederationError, match="other arrays"):
        wire.unpack_arrays({"a": packed["a"]}, shapes, "the state")
    with pytest.raises(FederationError, match="wrong size"):
        wire.unpack_arrays(packed, {"a": (2, 2), "b": (2,)}, "the state")
    with pytest.raises(FederationError, match="not finite"):
        wire.unpack_arrays(packed | {"b": np.array([1, np.nan], "<f4").tobytes()}, shapes, "the state")
