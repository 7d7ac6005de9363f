"""Any method over clients that each train a part of the model: some modules, or the first components of each.

A client uploads what the method it wraps would upload, with zeros for what it does not hold, and one count a module
(or one a component) that says what it holds: 1 or 0. The server then knows of module m

    Σ over holders of uploadₖ,    c_m = how many survivors hold it,

and hands the method n/c_m times the first. The method divides by n, as it always does, and so gets the mean over
holders: each module is a federation of its own, of those who train it. That needs nothing of the method but that
what it sums is summed by module, so it is right for factors, dense products and sketches, in every exchange.

*Components.* Where a method moves A and B by their mean changes, its sums can also be divided component by
component: a client of rank rₖ holds the first rₖ rows of A and columns of B, and component j becomes the mean over
clients with rₖ > j; one that no survivor has stays as it was. With FedIT inside, that is FediLoRA. For the best
rank r of the mean of unequal products, see `flexlora`.

*What is not held is frozen, not absent.* A client computes with the whole global state. What it does not train
comes back as it was, or the upload is refused.

The head is everybody's. The allocation is public, so the counts tell the server nothing that it does not know; that
they travel all the same makes the denominators those of the survivors, whoever they are, by the same sum.

Source: per-layer means over holders, Fed-HeLLo and FedRA; per-component means, FediLoRA. Doing so from sums, and
for any method, is ours (docs/decisions/0059).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.certificate import Certificate
from fedlora_priv.methods.errors import AssumptionError, UploadError
from fedlora_priv.methods.layout import Layout, LoraModule, Shapes, State
from fedlora_priv.methods.ranks import Ragged, as_if_equal, first_components, pairs, read_counts

_FACTORS = frozenset({"A", "B", "head"})


class Partial(Method):
    """A method in which each module, or component, is averaged over those who train it.

    Args:
        method: what is made of the means; of one round, or a schedule.
        own: the layout of this client's own model, with smaller ranks or other scalings; None for the federation's.
        trains: names of the modules that this client trains; None for all of them, and for the server.

    Raises:
        AssumptionError: the method counts components itself.
    """

    def __init__(
        self, method: Method, own: Layout | None = None, trains: frozenset[str] | None = None
    ) -> None:
        if isinstance(method, Ragged):
            raise AssumptionError(
                f"{method.name!r} divides by counts of its own",
                "use it alone, or fedit for parts of the model",
            )
        self.method, self.own, self.trains = method, own, trains
        self._phases: dict[Method, Partial] = {}
        self.name, self.title, self.source = method.name, f"{method.title}, in parts", method.source
        self.moves_by_mean, self.changes_base = method.moves_by_mean, method.changes_base

    def at(self, round: int) -> Method:
        """Return the method of that round, in the same parts."""
        method = self.method.at(round)
        if method is self.method:
            return self
        return self._phases.setdefault(method, Partial(method, self.own, self.trains))  # one for each phase

    def at_client(self, own: Layout) -> Method:
        """Return the method, in the same parts, of a client with that model of its own."""
        return Partial(self.method, own, self.trains)

    def contract(self, layout: Layout) -> Contract:
        """Return the method's contract, with counts."""
        plain = self.method.contract(layout)
        counts = {holders_name(m): (m.rank if self._by_component(plain) else 1,) for m in layout.modules}
        return replace(
            plain,
            uploads=dict(sorted((dict(plain.uploads) | counts).items())),
            limits=dict(plain.limits) | dict.fromkeys(counts, 1.0),
            travels_whole=True,
            leaks=f"{plain.leaks}, by module over those who train it",
            notes=(*plain.notes, "means are over the clients that train a module"),
        )

    def begin(self, layout: Layout, initial: State, shared: Shared) -> State:
        """Return the global state before the first round."""
        return self.method.begin(layout, initial, shared)

    def start(self, layout: Layout, state: State, shared: Shared) -> State:
        """Return what the method starts from, cut to this client's ranks."""
        mine = dict(self.method.start(layout, state, shared))
        if self.own is not None:
            for module, own in pairs(layout, self.own):
                mine |= first_components(module, own, state)
        return mine

    def shapes(self, layout: Layout) -> Shapes:
        """Return the shapes of this client's own arrays."""
        return self.method.shapes(self.own or layout)

    def certify(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared, combined: State
    ) -> Certificate | None:
        """Return how far `combined` is from the means over holders."""
        return self.method.certify(layout, state, self._as_means(layout, sums, n), n, shared, combined)

    def contributors(self, layout: Layout, sums: Sums, n: int) -> Mapping[str, NDArray[np.int64]]:
        """Return how many of the `n` clients have a part in each coordinate of each sum, broadcasting to it."""
        among = dict(super().contributors(layout, sums, n))
        for name, counts in self._counts(layout, sums, n).items():
            among[name] = counts.astype(np.int64)
        return among

    def _accept_module(self, module: LoraModule, own: LoraModule | None) -> None:
        """Raise AssumptionError unless shapes are the same and the rank no larger; scalings may differ."""
        super()._accept_module(module, own and as_if_equal(module, own))

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless the method works with this layout, and this client's part is one of it."""
        self.method._require(layout)
        contract = self.method.contract(layout)
        known = {module.name for module in layout.modules}
        for name in {name for number in range(contract.exchanges) for name in contract.exchange(number)}:
            if not layout.belongs(name, known):
                raise AssumptionError(f"{name} of {self.name!r} is of no single module", "train all of them")
        if odd := (self.trains or frozenset()) - known:
            raise AssumptionError(f"a client is to train {min(odd)}, which is not there", "use one layout")
        if self.own is not None:
            if not self._by_component(contract):
                raise AssumptionError(
                    f"{self.name!r} does not average by component", "for unequal ranks use fedit or flexlora"
                )
            self.accept(layout, self.own)

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return the method's upload with zeros for what is not held, and in the first exchange the counts."""
        self._require_frozen(layout, start, trained, shared)
        whole = self._whole(layout, start, trained, shared)
        arrays = dict(self.method.upload(layout, start, whole, shared))
        for name, array in arrays.items():
            if name not in layout.heads and not self._holds(name.rpartition(".")[0]):
                arrays[name] = np.zeros_like(array)
        if shared.exchange == 0:
            plain = self.method.contract(layout)
            for module, own in pairs(layout, self.own):
                held = np.arange(module.rank) < (own.rank if self._holds(module.name) else 0)
                arrays[holders_name(module)] = held if self._by_component(plain) else held[:1]
        return arrays

    def _announce(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State | None:
        """Return what the method announces."""
        return self.method.announce(layout, state, self._as_means(layout, sums, n), n, shared)

    def _combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return what the method makes of means over holders."""
        return self.method.combine(layout, state, self._as_means(layout, sums, n), n, shared)

    def _whole(self, layout: Layout, state: State, trained: State, shared: Shared) -> dict[str, NDArray[Any]]:
        """Return the method's own start with what this client has trained in it, in the federation's scaling."""
        trains = self.method.contract(layout).trains
        whole = dict(self.method.start(layout, state, shared))
        whole |= {name: trained[name] for name in layout.heads if "head" in trains}
        for module, own in pairs(layout, self.own):
            if not self._holds(module.name):
                continue
            if "R" in trains:
                whole[module.r_name] = trained[module.r_name]
            if "A" in trains:
                beyond = whole[module.a_name][own.rank :]
                whole[module.a_name] = np.concatenate([trained[module.a_name], beyond])
            if "B" in trains:
                beyond = whole[module.b_name][:, own.rank :]
                b = trained[module.b_name] * np.float32(own.scaling / module.scaling)
                whole[module.b_name] = np.concatenate([b, beyond], axis=1)
        return whole

    def _require_frozen(self, layout: Layout, start: State, trained: State, shared: Shared) -> None:
        """Raise UploadError if a module that this client does not train has changed."""
        began = self.start(layout, start, shared)
        for name in self.shapes(layout):
            if name in layout.heads or self._holds(name.rpartition(".")[0]):
                continue
            if not np.array_equal(began[name], trained[name]):
                raise UploadError(
                    f"{name} is not of this client's part but was trained", "train what it holds"
                )

    def _as_means(self, layout: Layout, sums: Sums, n: int) -> dict[str, NDArray[np.float64]]:
        """Return the method's sums, each n times the mean over those who hold it."""
        means = {name: array for name, array in sums.items() if not name.endswith(_HOLDERS)}
        for name, counts in self._counts(layout, sums, n).items():
            means[name] = means[name] * np.divide(n, counts, out=np.zeros_like(counts), where=counts > 0)
        return means

    def _counts(self, layout: Layout, sums: Sums, n: int) -> dict[str, NDArray[np.float64]]:
        """Return how many hold each component of each sum of a module's array, in a shape that broadcasts to it."""
        found = {}
        for module in layout.modules:
            counts = read_counts(module, sums[holders_name(module)], n)
            for name in sums:
                if name.rpartition(".")[0] == module.name and not name.endswith(_HOLDERS):
                    by_row = len(counts) > 1 and name == module.a_name
                    found[name] = counts[:, None] if by_row else counts
        return found

    def _holds(self, module: str) -> bool:
        """Whether this client trains a module."""
        return self.trains is None or module in self.trains

    def _by_component(self, plain: Contract) -> bool:
        """Whether what the method sums can be divided component by component."""
        return self.moves_by_mean and plain.trains <= _FACTORS


_HOLDERS = ".holders"


def holders_name(module: LoraModule) -> str:
    """Name of a module's counts in an upload."""
    return f"{module.name}{_HOLDERS}"
