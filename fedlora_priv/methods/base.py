"""What a federated LoRA method is: pure functions around one or more sums.

The server of this project can only ever see sums over clients, so a method is a *contract* (what is uploaded,
what is trained, what leaks) with a client's half and a server's half. A round of it goes::

    method = method.at(round)                               a schedule has other methods for other rounds
    start = method.start(layout, state, shared)             client: what it trains from
    upload(layout, state, trained, shared)      -> arrays, to be SUMMED over clients
    announce(layout, state, sums, n, shared)    -> what everybody is told before the next exchange, or None
    combine(layout, state, sums, n, shared)     -> the next global state
    certify(layout, state, sums, n, shared, combined)  -> how far `combined` is from the mean of the products

*Exchanges.* A method with one exchange never announces anything. With more, ``upload`` is called once for each
``shared.exchange``; what it may depend on besides its own client's arrays is ``shared.announced``, a public
function of the earlier sums. ``combine`` gets the sums of all exchanges together: names are used once a round.

*State.* The global state is named arrays: A, B and head, for some methods also R (a square matrix between A and
B) and the *base residual*, what the method has added to W0 so far (`fedlora_priv.methods.residual`). All of it
is public, and all of it is in digests and checkpoints because it is in the state.

No method can reach a single client's upload: ``combine`` is handed nothing but sums. The public functions check
their arguments and raise `MethodError`; a method writes `contract`, `_upload` and `_combine`, or only the first
(`fedlora_priv.methods.linear`). Methods are plain numpy; they know nothing of masking, engines or the ledger.

Notation (all methods): W = W0 + scaling·B·A with A of shape (r, n), B of shape (m, r), scaling s = α/r. Means are
over the K survivors of a round, all with the same weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.certificate import Certificate
from fedlora_priv.methods.errors import AssumptionError, SumError, UploadError
from fedlora_priv.methods.layout import Layout, LoraModule, Role, Shapes, State

Sums = Mapping[str, NDArray[np.float64]]
"""Named sums over clients of what the contract uploads."""


@dataclass(frozen=True)
class Shared:
    """What every party knows in a round besides the global state.

    Args:
        seed, round: the public seed, and the number of the round (1-based; 0 is before the first).
        exchange: which exchange of the round this is, 0-based.
        announced: what the server has told everybody since the last exchange; empty in the first.
        rehearsal: made-up clients act this round out, and every exchange that it may have.
    """

    seed: int
    round: int
    exchange: int = 0
    announced: State = field(default_factory=dict)
    rehearsal: bool = False


@dataclass(frozen=True)
class Contract:
    """What a method promises about its uploads, printed by ``fedlora methods``.

    Args:
        uploads: names and shapes of what travels in the first exchange.
        trains: the roles that a client trains. All others are frozen, and must come back as they were.
        exact: whether a round gives the mean of the clients' products, by whatever drifts: all of it, or its
            best rank r where the notes say so; of the shared factor alone where others stay at home.
        noise: how the clients' DP noise gets into W.
        leaks: what the server learns.
        weights: how clients count in the means: all the same, or by a bounded norm that travels masked.
        later: names and shapes of the exchanges after the first.
        announces: names and shapes of what everybody is told before each of those.
        limits: the largest magnitude in an array of `uploads`, where that is known for certain.
        may_stop_early: whether a round may end before its last exchange.
        travels_whole: whether every coordinate must travel, at 8 bits or more: what is left out of a linear map of a
            product, or of a count, makes it the map of nothing.
        stays_home: trained roles that never travel: each client keeps its own.
        changes_base: as in the method.
    """

    uploads: Shapes
    trains: frozenset[Role]
    exact: bool
    noise: str
    leaks: str = "the sum over survivors"
    weights: Literal["uniform", "norm"] = "uniform"
    later: tuple[Shapes, ...] = ()
    announces: tuple[Shapes, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    may_stop_early: bool = False
    travels_whole: bool = False
    stays_home: frozenset[Role] = frozenset()
    changes_base: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def exchanges(self) -> int:
        """The most exchanges that a round may have."""
        return 1 + len(self.later)

    @property
    def dimension(self) -> int:
        """Number of coordinates that one client uploads in the first exchange, before any are left out."""
        return _size(self.uploads)

    @property
    def round_dimension(self) -> int:
        """Number of coordinates that one client uploads in a round with all its exchanges."""
        return sum(_size(shapes) for shapes in (self.uploads, *self.later))

    def exchange(self, number: int) -> Shapes:
        """Return what travels in one exchange of a round, 0-based."""
        return (self.uploads, *self.later)[number]

    def size(self, number: int) -> int:
        """Return how many coordinates travel in one exchange of a round, 0-based."""
        return _size(self.exchange(number))

    def announced(self, number: int) -> Shapes:
        """Return what is announced before an exchange, 0-based: nothing before the first."""
        return ({}, *self.announces)[number]


class Method(ABC):
    """A federated LoRA method: see the module's docstring."""

    name: str
    title: str
    source: str
    moves_by_mean = False
    """Whether `combine` is nothing but each array moved by its mean change, so that a server optimiser may step."""
    changes_base = False
    """Whether in any round the state gets a base residual, to be shipped with the adapter."""

    @abstractmethod
    def contract(self, layout: Layout) -> Contract:
        """Return what is uploaded and trained, and what leaks."""

    def at(self, round: int) -> Method:  # noqa: ARG002 - most need none of it
        """Return the method of that round (1-based): itself, unless it is a schedule."""
        return self

    def begin(self, layout: Layout, initial: State, shared: Shared) -> State:  # noqa: ARG002 - most need none of it
        """Return the global state before the first round."""
        return initial

    def start(self, layout: Layout, state: State, shared: Shared) -> State:  # noqa: ARG002 - most need none of it
        """Return what a client trains from: all of the global state that is trainable."""
        return {name: array for name, array in state.items() if layout.role(name) != "base"}

    def personal(self, layout: Layout, state: State, own: State) -> State:
        """Return a state with a client's `own` arrays where they stay at home."""
        kept = self.contract(layout).stays_home
        return {name: own[name] if layout.role(name) in kept else array for name, array in state.items()}

    def shapes(self, layout: Layout) -> Shapes:
        """Return the shape of every array that a client has trained or held frozen."""
        return layout.shapes()

    @final
    def require(self, layout: Layout) -> None:
        """Return if the method works with this layout; asked before anything is trained.

        Raises:
            AssumptionError: it does not, as where a rank is above its matrix.
        """
        self._require(layout)

    def accept(self, layout: Layout, own: Layout) -> None:
        """Return if a client whose own model has the layout `own` can take part.

        Raises:
            AssumptionError: it has other modules, shapes, ranks or scalings.
        """
        if own.heads != layout.heads:
            raise AssumptionError("a client's head has other shapes than the global one", "use one model")
        mine = {module.name: module for module in own.modules}
        for module in layout.modules:
            self._accept_module(module, mine.pop(module.name, None))
        if mine:
            raise AssumptionError(
                f"a client adapts {min(mine)}, which the federation does not", "use one layout"
            )

    def at_client(self, own: Layout) -> Method:  # noqa: ARG002 - only unequal ranks need it
        """Return the method as a client has it whose own model, which `accept` takes, has the layout `own`."""
        return self

    @final
    def upload(self, layout: Layout, start: State, trained: State, shared: Shared) -> dict[str, NDArray[Any]]:
        """Return the arrays of this exchange for one client, float32; they will be summed over clients.

        Args:
            start: the global state.
            trained: what became of `self.start(...)`; other names are ignored.

        Raises:
            AssumptionError: the method does not work with this layout.
            UploadError: wrong names or shapes, a value that is not finite, a frozen array that has changed, or
                an announcement that is not what the contract says.
        """
        self._require_round(layout, shared)
        contract = self.contract(layout)
        told = contract.announced(shared.exchange)
        _require_arrays(shared.announced, told, UploadError, "the announcement")
        _require_arrays(trained, self.shapes(layout), UploadError, "the trained state", exactly=False)
        began = self.start(layout, start, shared)
        for name in self.shapes(layout):
            if layout.role(name) not in contract.trains and not np.array_equal(began[name], trained[name]):
                raise UploadError(
                    f"{name} is frozen in {self.name!r} but was trained", "train what it trains"
                )
        arrays = _float32(self._upload(layout, start, trained, shared))
        _require_arrays(arrays, contract.exchange(shared.exchange), UploadError, "the upload")
        return arrays

    @final
    def announce(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State | None:
        """Return what everybody is told before the exchange after `shared.exchange`, or None if there is none.

        It is float32, as it travels: the server goes on with the very values that its clients have.

        Raises:
            AssumptionError, SumError: as in `combine`.
        """
        self._require_sums(layout, sums, n, shared)
        if shared.exchange + 1 >= self.contract(layout).exchanges:
            return None
        announced = self._announce(layout, state, sums, n, shared)
        return None if announced is None else _float32(announced)

    @final
    def combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> dict[str, NDArray[np.float32]]:
        """Return the next global state from the sums over `n` clients of all exchanges.

        Raises:
            AssumptionError: the method does not work with this layout.
            SumError: a sum is missing, has the wrong shape or is not finite, or is over no client.
        """
        self._require_sums(layout, sums, n, shared)
        return _float32(self._combine(layout, state, sums, n, shared))

    def certify(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared, combined: State
    ) -> Certificate | None:
        """Return how far `combined` is from the mean of the products, where the sums tell."""
        del layout, state, sums, n, shared, combined
        return None

    def contributors(self, layout: Layout, sums: Sums, n: int) -> Mapping[str, NDArray[np.int64]]:
        """Return how many of the `n` clients have a part in each coordinate of each sum, broadcasting to it."""
        del layout
        return dict.fromkeys(sums, np.array(n))

    @abstractmethod
    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return this exchange's arrays; the arguments have been checked."""

    def _announce(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State | None:
        """Return what the next exchange needs; the arguments have been checked."""
        raise NotImplementedError  # asked of methods with a later exchange only

    @abstractmethod
    def _combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return the next state; the arguments have been checked."""

    def _require(self, layout: Layout) -> None:  # noqa: B027 - most methods work with any
        """Raise AssumptionError if the method does not work with this layout."""

    def _accept_module(self, module: LoraModule, own: LoraModule | None) -> None:
        """Raise AssumptionError unless a client may have `own` where the federation has `module`."""
        if own is None:
            raise AssumptionError(f"a client does not adapt {module.name}", "use one layout everywhere")
        for what in ("out_features", "in_features", "rank", "scaling"):
            theirs, ours = getattr(own, what), getattr(module, what)
            if theirs != ours:
                raise AssumptionError(
                    f"{module.name} has {what} {theirs} at a client and {ours} in the federation",
                    "use one LoRA configuration; for unequal ranks use flexlora",
                )

    def _require_round(self, layout: Layout, shared: Shared) -> None:
        """Raise unless this is the round's method and works with the layout."""
        if self.at(shared.round) is not self:
            raise AssumptionError(f"round {shared.round} has another method of {self.name!r}", "ask its `at`")
        self._require(layout)

    def _require_sums(self, layout: Layout, sums: Sums, n: int, shared: Shared) -> None:
        """Raise unless `sums` are those of all exchanges up to this one, over at least one client."""
        self._require_round(layout, shared)
        if n < 1:
            raise SumError("there is no survivor to average over")
        contract = self.contract(layout)
        shapes: dict[str, tuple[int, ...]] = {}
        for number in range(shared.exchange + 1):
            shapes |= contract.exchange(number)
        _require_arrays(sums, shapes, SumError, "the sum")


def _float32(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return the arrays as float32."""
    return {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}


def _size(shapes: Shapes) -> int:
    """Return the number of coordinates of named shapes."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _require_arrays(
    arrays: Mapping[str, NDArray[Any]],
    shapes: Shapes,
    error: type[UploadError | SumError],
    what: str,
    *,
    exactly: bool = True,
) -> None:
    """Raise `error` unless there is a finite array of the right shape for every name (and no other)."""
    odd = set(shapes) - set(arrays) if not exactly else set(shapes) ^ set(arrays)
    if odd:
        raise error(f"{what} and the contract differ in {', '.join(sorted(odd)[:3])}", "use one layout")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise error(f"{what} has {name} of shape {arrays[name].shape}, not {shape}", "use one layout")
        if not np.isfinite(arrays[name]).all():
            raise error(f"{what} has a NaN or an infinity in {name}", "training diverged: drop this round")
