"""From a budget of bytes to density and bits.

What a client sends in a round is a fixed part (keys, shares, statements) and k packed values of b + ⌈log2 n⌉ bits. For
a budget many pairs (k, b) will do. The one proposed keeps the most of the update, by the plainest model there is:
values are Gaussian and any k of d coordinates hold k/d of the energy, of which `relative_error(b)` is lost to rounding
and clipping,

    kept = k/d · (1 - relative_error(b)).

The modulus' head room ⌈log2 n⌉ is paid per value, whatever the value's bits; so very few bits are poor value: for
three clients or more it is 3 or 4 until everything travels, and more only then. A support that finds the large
coordinates keeps more than the model says, at every number of bits alike.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from fedlora_priv.communication.choices import LEAST_WHOLE_BITS
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.meter import Summed, most_uploaded, wire_bytes
from fedlora_priv.communication.scales import relative_error
from fedlora_priv.federation import wire
from protocols.packing import packed_size
from protocols.quantise import Quantiser
from protocols.secagg.codec import least_size
from protocols.secagg.messages import MaskedVector
from protocols.secagg.session import SessionParameters

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str) -> int:
    """Return the number of bytes that somebody has written, with one of `UNITS` or none.

    Raises:
        CommunicationError: it is no such number, or less than a byte.

    Example:
        >>> parse_bytes("50kB"), parse_bytes("1.5 MiB"), parse_bytes("900")
        (50000, 1572864, 900)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if (
        found is None
        or (found[2] or "B") not in UNITS
        or (size := int(float(found[1]) * UNITS[found[2] or "B"])) < 1
    ):
        raise CommunicationError(
            f"{text!r} is no number of bytes", f"write 50kB; units are {', '.join(UNITS)}"
        )
    return size


@dataclass(frozen=True)
class Proposed:
    """A density and a number of bits, and what they come to.

    Args:
        density: what to write into the experiment file: ceil(density·dimension) coordinates are `coordinates`.
        value_bits: bits of one client's value, sign included.
        coordinates: how many travel.
        uploaded: bytes that the client which sends the most sends in a round.
        whole: the same of a round in which everything travels at those bits.
        fixed: how many of them do not depend on the choice.
        kept: by the module's model, how much of an update's energy arrives.
    """

    density: float
    value_bits: int
    coordinates: int
    uploaded: int
    whole: int
    fixed: int
    kept: float


def propose(
    byte_budget: int,
    session: SessionParameters,
    dimension: int,
    *,
    travels_whole: bool = False,
    attachment_bytes: int = 0,
    other_bytes: int = 0,
    begun_by: tuple[wire.Message, wire.Message] | None = None,
) -> Proposed:
    """Return the density and bits with which no client sends more than `byte_budget` bytes a round.

    Args:
        session: the round's session of secure aggregation; its vector's length, modulus and bound do not matter.
        dimension: coordinates of an upload before any are left out.
        travels_whole: of the method's contract: all coordinates, at 8 bits or more.
        attachment_bytes: what a client attaches to its confirmation.
        other_bytes: what else goes up in the round, such as a vote.
        begun_by: as in `meter.Summed`.

    Raises:
        CommunicationError: not even the least choice fits; says how many bytes it takes.
    """
    if dimension < 1:
        raise CommunicationError("an upload has at least one coordinate")
    upload = _Upload.of(session, attachment_bytes, other_bytes, begun_by)
    smallest, least_bits = (dimension, LEAST_WHOLE_BITS) if travels_whole else (1, 2)
    if (needed := upload.bytes(smallest, least_bits)) > byte_budget:
        raise CommunicationError(
            f"{byte_budget} bytes a round are too few: keys, shares and framing alone take {upload.fixed}, "
            f"and with the least that can be sent a round takes {needed}",
            "raise the budget, or choose fewer secure_aggregation.neighbours",
        )
    choices = [
        _widest(upload, byte_budget, smallest, dimension, value_bits)
        for value_bits in range(least_bits, 17)
        if upload.bytes(smallest, value_bits) <= byte_budget
    ]
    return max(choices, key=lambda choice: (choice.kept, choice.value_bits))


@dataclass(frozen=True)
class _Upload:
    """What a client sends in a round: `fixed` bytes and a packed vector."""

    clients: int
    fixed: int

    @classmethod
    def of(
        cls,
        session: SessionParameters,
        attachment_bytes: int,
        other_bytes: int,
        begun_by: tuple[wire.Message, wire.Message] | None,
    ) -> _Upload:
        """Return it for the client of the session that sends the most."""
        quantiser = Quantiser(1.0, 2, session.n)
        tiny = replace(
            session,
            vector_length=1,
            modulus_bits=quantiser.modulus_bits,
            bound=1,
            groups=(),
            min_contributors=0,
        )
        table = wire_bytes([Summed(tiny, attachment_bytes=attachment_bytes, begun_by=begun_by)])
        return cls(
            session.n, most_uploaded(table) + other_bytes - _in_envelope(packed_size(1, tiny.modulus_bits))
        )

    def bytes(self, coordinates: int, value_bits: int) -> int:
        """Return the bytes with a vector of that many values."""
        bits = Quantiser(1.0, value_bits, self.clients).modulus_bits
        return self.fixed + _in_envelope(packed_size(coordinates, bits))


def _in_envelope(packed: int) -> int:
    """Return the bytes of a packed vector and of what says its length: an envelope does, in decimal."""
    return packed + len(str(packed + 2 + least_size(MaskedVector)))


def _widest(upload: _Upload, budget: int, low: int, dimension: int, value_bits: int) -> Proposed:
    """Return the most coordinates of that many bits that fit; `low` of them do."""
    high = dimension
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if upload.bytes(middle, value_bits) <= budget else (low, middle - 1)
    kept = low / dimension * (1 - relative_error(value_bits))
    size, whole = upload.bytes(low, value_bits), upload.bytes(dimension, value_bits)
    return Proposed(_density(low, dimension), value_bits, low, size, whole, upload.fixed, kept)


def _density(k: int, dimension: int) -> float:
    """Return a fraction of which ceil(fraction·dimension) is k."""
    density = k / dimension
    return density if math.ceil(density * dimension) == k else math.nextafter(density, 0.0)
