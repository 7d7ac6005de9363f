"""One value, one encoding; anything else is refused before it costs memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.secagg.codec import VERSION, Fixed, Unsigned, UpTo, decode, encode


@dataclass(frozen=True)
class Inner:
    """A nested record."""

    number: Annotated[int, Unsigned(2)]
    digest: Annotated[bytes, Fixed(3)]


@dataclass(frozen=True)
class Sample:
    """One field of every sort."""

    KIND: ClassVar[int] = 77
    name: Annotated[str, UpTo(8)]
    blob: Annotated[bytes, UpTo(5)]
    items: tuple[Inner, ...]


SAMPLE = Sample("ä", b"xy", (Inner(258, b"abc"), Inner(0, b"def")))
BYTES = bytes.fromhex("014d 02000000 c3a4 02000000 7879 02000000 0201 616263 0000 646566".replace(" ", ""))


def test_the_bytes_by_hand() -> None:
    assert encode(SAMPLE) == BYTES
    assert decode(Sample, BYTES, "peer") == SAMPLE
    assert BYTES[0] == VERSION


@settings(deadline=None, derandomize=True)
@given(
    st.builds(
        Sample,
        st.text(max_size=2),
        st.binary(max_size=5),
        st.lists(st.builds(Inner, st.integers(0, 65535), st.binary(min_size=3, max_size=3))).map(tuple),
    )
)
def test_round_trip(sample: Sample) -> None:
    assert decode(Sample, encode(sample), "peer") == sample


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.binary(max_size=60).map(lambda tail: BYTES[:2] + tail) | st.binary(max_size=10))
def test_whatever_is_accepted_is_canonical(data: bytes) -> None:
    try:
        sample = decode(Sample, data, "peer")
    except RemoteProtocolError:
        return
    assert encode(sample) == data


def test_every_truncation_and_extension_is_refused() -> None:
    for size in range(len(BYTES)):
        with pytest.raises(RemoteProtocolError):
            decode(Sample, BYTES[:size], "peer")
    with pytest.raises(RemoteProtocolError, match="1 bytes are left over"):
        decode(Sample, BYTES + b"\0", "peer")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x02" + BYTES[1:], "version 1"),
        (b"\x01\x4e" + BYTES[2:], "not a Sample"),
        (BYTES[:6] + b"\xff\xff" + BYTES[8:], "UTF-8"),
        (BYTES[:2] + b"\x09\x00\x00\x00" + bytes(60), "limit"),
        (BYTES[:8] + b"\x06\x00\x00\x00" + bytes(60), "limit"),
    ],
)
def test_bad_bytes_are_named(data: bytes, match: str) -> None:
    with pytest.raises(RemoteProtocolError, match=match):
        decode(Sample, data, "peer")


def test_nothing_is_allocated_from_a_claimed_size() -> None:
    huge = BYTES[:14] + (2**32 - 1).to_bytes(4, "little") + bytes(100)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(Sample, huge, "peer")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "sample",
    [
        Sample("123456789", b"", ()),
        Sample("", b"123456", ()),
        Sample("", b"", (Inner(65536, b"abc"),)),
        Sample("", b"", (Inner(-1, b"abc"),)),
        Sample("", b"", (Inner(0, b"ab"),)),
    ],
)
def test_what_does_not_fit_is_the_callers_fault(sample: Sample) -> None:
    with pytest.raises(LocalProtocolError):
        encode(sample)


@dataclass(frozen=True)
class Mapped:
    """A mapping."""

    KIND: ClassVar[int] = 78
    items: dict[Annotated[int, Unsigned(1)], Annotated[bytes, UpTo(3)]]


def test_a_mapping_by_hand() -> None:
    data = bytes.fromhex("014e 02000000 03 01000000 61 07 00000000".replace(" ", ""))
    assert encode(Mapped({7: b"", 3: b"a"})) == data
    assert decode(Mapped, data, "peer") == Mapped({3: b"a", 7: b""})
    for disordered in ("07 00000000 03 01000000 61", "03 01000000 61 03 00000000"):
        with pytest.raises(RemoteProtocolError, match="do not increase"):
            decode(Mapped, data[:6] + bytes.fromhex(disordered.replace(" ", "")), "peer")
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode(Mapped, data[:2] + (2**31).to_bytes(4, "little") + data[6:], "peer")


def test_a_limit_is_checked_before_anything_is_read() -> None:
    assert decode(Sample, BYTES, "peer", len(BYTES)) == SAMPLE
    with pytest.raises(RemoteProtocolError, match=f"of {len(BYTES)} bytes; here it has at most 10"):
        decode(Sample, BYTES, "peer", 10)


def test_only_bytes_are_decoded() -> None:
    with pytest.raises(LocalProtocolError):
        decode(Sample, "text", "peer")
