"""Messages as bytes, canonically: a frozen dataclass *is* the description of its wire format.

Every field of a message is annotated with its width, and is written in the order of declaration:

    Annotated[int, Unsigned(2)]      2 bytes, little-endian
    Annotated[bytes, Fixed(32)]      exactly 32 bytes
    Annotated[bytes, UpTo(1024)]     4-byte length, then at most 1024 bytes
    Annotated[str, UpTo(64)]         the same, in UTF-8
    tuple[Item, ...]                 4-byte count, then the items
    dict[Index, Item]                4-byte count, then keys with their items, by increasing key
    SomeDataclass                    its fields

A message starts with the version byte and the byte that names its kind. One value has one encoding: left-over
bytes are refused. A claimed length or count is compared with the bytes that are really there before anything
is allocated for it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints

from protocols.errors import LocalProtocolError, RemoteProtocolError

VERSION = 1
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Unsigned:
    """An unsigned integer of `size` bytes."""

    size: int


@dataclass(frozen=True)
class Fixed:
    """A string of exactly `size` bytes."""

    size: int


@dataclass(frozen=True)
class UpTo:
    """A string of at most `size` bytes."""

    size: int


class Message(Protocol):
    """A frozen dataclass that travels on its own; `KIND` is its second byte on the wire."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    KIND: ClassVar[int]


AnyMessage = TypeVar("AnyMessage", bound=Message)


def encode(message: Message) -> bytes:
    """Return the canonical encoding of `message`.

    Raises:
        LocalProtocolError: a field does not have its declared width.
    """
    out = bytearray((VERSION, message.KIND))
    _wire(type(message)).write(out, message)
    return bytes(out)


def decode(kind: type[AnyMessage], data: bytes, sender: str, most: int | None = None) -> AnyMessage:
    """Return the message of class `kind` that `data`, of at most `most` bytes, encodes.

    Raises:
        RemoteProtocolError: `data`, blamed on `sender`, is not the canonical encoding of such a message.
    """
    if not isinstance(data, bytes):
        raise LocalProtocolError("a message is bytes")
    if most is not None and len(data) > most:
        raise RemoteProtocolError(
            sender, f"a {kind.__name__} of {len(data)} bytes; here it has at most {most}"
        )
    reader = _Reader(data, sender)
    if reader.take(2) != bytes((VERSION, kind.KIND)):
        raise RemoteProtocolError(sender, f"not a {kind.__name__} message of version {VERSION}")
    message: AnyMessage = _wire(kind).read(reader)
    if reader.left:
        raise RemoteProtocolError(sender, f"{reader.left} bytes are left over after the message")
    return message


def least_size(kind: type) -> int:
    """Return the bytes of the shortest encoding of a dataclass, without version and kind."""
    return _wire(kind).least


class _Reader:
    """The bytes of a message, read up to a position."""

    def __init__(self, data: bytes, sender: str) -> None:
        self.data = data
        self.at = 0
        self.sender = sender

    @property
    def left(self) -> int:
        """How many bytes were not read yet."""
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        """Return the next bytes; slicing allocates no more than is there."""
        end = self.at + size
        if end > len(self.data):
            raise self.error("the message ends too early")
        taken, self.at = self.data[self.at : end], end
        return taken

    def take_length(self, most: int, least_each: int = 1) -> int:
        """Return a claimed length or count that the rest of the message can hold."""
        length = int.from_bytes(self.take(_LENGTH_BYTES), "little")
        if length > most or length * least_each > self.left:
            raise self.error("a claimed length exceeds its limit or the message")
        return length

    def error(self, reason: str) -> RemoteProtocolError:
        """Return the error that blames the sender."""
        return RemoteProtocolError(self.sender, reason)


@dataclass(frozen=True)
class _Wire:
    """How one type is written and read, and the fewest bytes it can take."""

    write: Callable[[bytearray, Any], None]
    read: Callable[[_Reader], Any]
    least: int


@functools.cache
def _wire(hint: Any) -> _Wire:
    """Return how a type is written and read."""
    if get_origin(hint) is Annotated:
        base, width = get_args(hint)
        return _wire_of_leaf(base, width)
    if get_origin(hint) is tuple:
        return _wire_of_tuple(_wire(get_args(hint)[0]))
    if get_origin(hint) is dict:
        return _wire_of_dict(*map(_wire, get_args(hint)))
    if dataclasses.is_dataclass(hint):
        return _wire_of_dataclass(hint)
    raise TypeError(f"{hint} has no wire format")


def _wire_of_leaf(base: type, width: Unsigned | Fixed | UpTo) -> _Wire:
    """Integers and strings."""
    size = width.size
    if isinstance(width, Unsigned):
        return _Wire(
            lambda out, value: out.extend(_checked_unsigned(value, size)),
            lambda reader: int.from_bytes(reader.take(size), "little"),
            size,
        )
    if isinstance(width, Fixed):
        return _Wire(lambda out, value: out.extend(_checked_fixed(value, size)), lambda r: r.take(size), size)
    if base is str:
        return _Wire(
            lambda out, value: _write_string(out, value.encode(), size),
            lambda reader: _read_text(reader, size),
            _LENGTH_BYTES,
        )
    return _Wire(
        lambda out, value: _write_string(out, value, size),
        lambda reader: reader.take(reader.take_length(size)),
        _LENGTH_BYTES,
    )


def _wire_of_tuple(item: _Wire) -> _Wire:
    """A count, then the items."""

    def write(out: bytearray, values: tuple[Any, ...]) -> None:
        out += len(values).to_bytes(_LENGTH_BYTES, "little")
        for value in values:
            item.write(out, value)

    def read(reader: _Reader) -> tuple[Any, ...]:
        count = reader.take_length(2**32, least_each=item.least)
        return tuple(item.read(reader) for _ in range(count))

    return _Wire(write, read, _LENGTH_BYTES)


def _wire_of_dict(key: _Wire, item: _Wire) -> _Wire:
    """A count, then keys and items by increasing key."""

    def write(out: bytearray, values: dict[Any, Any]) -> None:
        out += len(values).to_bytes(_LENGTH_BYTES, "little")
        for name in sorted(values):
            key.write(out, name)
            item.write(out, values[name])

    def read(reader: _Reader) -> dict[Any, Any]:
        count = reader.take_length(2**32, least_each=key.least + item.least)
        pairs = [(key.read(reader), item.read(reader)) for _ in range(count)]
        if any(a >= b for (a, _), (b, _) in itertools.pairwise(pairs)):
            raise reader.error("the keys of a mapping do not increase")
        return dict(pairs)

    return _Wire(write, read, _LENGTH_BYTES)


def _wire_of_dataclass(kind: Any) -> _Wire:
    """The fields in order."""
    hints = get_type_hints(kind, include_extras=True)
    fields = [(field.name, _wire(hints[field.name])) for field in dataclasses.fields(kind)]

    def write(out: bytearray, value: Any) -> None:
        for name, wire in fields:
            wire.write(out, getattr(value, name))

    def read(reader: _Reader) -> Any:
        return kind(*[wire.read(reader) for _, wire in fields])

    return _Wire(write, read, sum(wire.least for _, wire in fields))


def _checked_unsigned(value: int, size: int) -> bytes:
    """Return an integer's bytes if it fits."""
    if not (isinstance(value, int) and 0 <= value < 256**size):
        raise LocalProtocolError(f"{value} does not fit into {size} unsigned bytes")
    return value.to_bytes(size, "little")


def _checked_fixed(value: bytes, size: int) -> bytes:
    """Return a string if it has its length."""
    if len(value) != size:
        raise LocalProtocolError(f"a field of {size} bytes was given {len(value)}")
    return value


def _write_string(out: bytearray, value: bytes, most: int) -> None:
    """Write a length and a string."""
    if len(value) > most:
        raise LocalProtocolError(f"a field of at most {most} bytes was given {len(value)}")
    out += len(value).to_bytes(_LENGTH_BYTES, "little") + value


def _read_text(reader: _Reader, most: int) -> str:
    """Read a string that must be UTF-8."""
    try:
        return reader.take(reader.take_length(most)).decode()
    except UnicodeDecodeError:
        raise reader.error("a text is not UTF-8") from None
