"""The one way out of a client: an upload becomes ring elements here and nowhere else.

A channel knows what a method uploads in an exchange, the support that travels and the public quantisation
bounds, so both sides turn named arrays into integers mod 2^b and a modular sum back into named arrays by the
same object. Its digest is part of the context that every pair of masks is bound to: two parties that were
told different supports or bounds have masks that do not cancel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.groups import Contributors, groups_on, vector_form
from fedlora_priv.federation.vectors import dimension, flatten, unflatten
from fedlora_priv.methods.errors import SumError
from fedlora_priv.methods.layout import Shapes
from protocols.errors import QuantisationError
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.session import VectorForm
from protocols.sparsify import Support


@dataclass(frozen=True)
class UploadChannel:
    """Named float arrays ⇄ ring elements, for one exchange.

    Args:
        shapes: names and shapes of what the method uploads.
        support: which of the flattened coordinates travel, the same for everybody.
        bounds: for each array the largest magnitude that is sent, by channel: float32, of a shape that broadcasts to
            the array's (`fedlora_priv.communication.scales.channel_shapes`). Larger values are clipped.
        value_bits: bits of one client's quantised value, sign included.
        max_clients: how many clients may be summed without overflow.
        contributors: who contributes to which coordinates, all of which then travel; nothing where everybody does.
    """

    shapes: Shapes
    support: Support
    bounds: Mapping[str, NDArray[np.float32]]
    value_bits: int
    max_clients: int
    contributors: Contributors = ()

    @property
    def dimension(self) -> int:
        """Number of coordinates of one upload, before any are left out."""
        return dimension(self.shapes)

    @cached_property
    def quantiser(self) -> Quantiser:
        """The quantiser of the coordinates that travel."""
        bounds = {name: np.broadcast_to(self.bounds[name], shape) for name, shape in self.shapes.items()}
        return Quantiser(self.support.take(flatten(self.shapes, bounds)), self.value_bits, self.max_clients)

    @property
    def form(self) -> VectorForm:
        """What a masked upload looks like to secure aggregation, but for who contributes where."""
        return VectorForm(len(self.support), self.quantiser.modulus_bits, self.quantiser.levels)

    def form_on(self, roster: Sequence[str]) -> VectorForm:
        """Return that form in a session of these clients, with who contributes where."""
        if not self.contributors:
            return self.form
        groups = groups_on(self.contributors, roster)
        return vector_form(groups, len(roster), self.form.modulus_bits, self.form.bound)

    def bounds_to_bytes(self) -> bytes:
        """Return the bounds as they travel: arrays in the contract's order, little-endian float32."""
        return b"".join(self.bounds[name].astype("<f4").tobytes() for name in self.shapes)

    def encode(self, values: NDArray[np.float32], stream: SecretStream) -> NDArray[np.uint32]:
        """Return what travels of one client's upload as ring elements, uint32 of shape (k,).

        Args:
            values: the upload as one vector, of shape (d,).
            stream: what rounding draws on.
        """
        return self.quantiser.quantise(self.support.take(values), stream)

    def sums(self, ring_sum: NDArray[np.uint32], n: int) -> dict[str, NDArray[np.float64]]:
        """Return the named sums, float64, of a modular sum over `n` clients; zero where nothing travelled.

        Raises:
            SumError: `n` honest clients cannot have added up to this.
        """
        try:
            return unflatten(self.shapes, self.support.scatter(self.quantiser.dequantise_sum(ring_sum, n)))
        except QuantisationError as error:
            raise SumError(str(error), "the round is lost") from error

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever anything that both sides must agree on differs."""
        names = "\n".join(f"{name} {shape}" for name, shape in self.shapes.items())
        held_by = {held for _, held in self.contributors}  # few sets for many runs
        sets = {held: hashlib.sha256(str(sorted(held)).encode()).hexdigest() for held in held_by}
        who = "\n".join(f"{size} {sets[held]}" for size, held in self.contributors)
        parts = (names.encode(), self.support.digest(), self.quantiser.digest(), who.encode())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
