"""The mean of products from sums: exact, by a sketch of the cross term, or in two passes.

Everybody starts a round from the same B₀, A₀. With ΔBₖ = Bₖ − B₀, ΔAₖ = Aₖ − A₀ and means over the survivors

    mean(BₖAₖ) = B̄Ā + C,    C = R − ΔB̄·ΔĀ,    R = mean(ΔBₖ·ΔAₖ).

B̄ and Ā come from the sums of the factors' changes, as in FedIT. What FedIT lacks is C, the covariance of the two
changes over clients. R is itself a mean of products of thin matrices, so every linear map of it is a sum:

    exact     sₖ·BₖAₖ − s·B₀A₀ travels dense, m·n coordinates; no factors are needed
    sketch    Y = RΩ (m, k), Z = ΨR (l, n), H = RG (m, g) travel beside the factors, l = 2k + 1
    two-pass  Y and H travel; the server announces Q; then QᵀR (k, n) travels

with Ω, Ψ, G Gaussian from the round's public seed. The server takes ΔB̄·ΔĀ out of what it got (those are maps of R,
and it wants those of C), and then Q = qr(CΩ), X = (ΨQ)⁺·ΨC, C ≈ c·QX. That is exact where C has rank ≤ k.

*Shrinkage.* Where C is noise of high rank, QX is mostly the sketch's own error. The columns G take no part in Q and
X, so c = ⟨CG, QXG⟩/‖QXG‖², cut to [0, 1], is the factor that serves best on columns nobody has fitted. At c = 0 the
result is B̄Ā: FedIT. So `sketch` is no worse than FedIT but for the chance in c.

*Certificate.* Σ‖(ΔW − W⁺)g‖²/columns is an unbiased estimate of the error ‖ΔW − W⁺‖² of whatever W⁺ the server has
made of ΔW = s·mean(BₖAₖ). In the worst case (error of rank one) it is that error times χ² with one degree of freedom a
column; 48 columns put its root within 20 % in 95 % of cases. Errors of several modules add up, so L modules share three
times 48 columns (three, because their errors are not equal), at least 4 each. The claim is for all modules together;
a single module's figure is as good only where its error has a high rank, as under DP noise it has.

*Policy.* After a sketch the held-out columns also tell what was missed, ‖C − c·QX‖. Above `tolerance`·‖ΔW‖ the server
asks for a second exchange: QᵀR on the same Q (`two-pass`), or everything dense (`exact`).

Source: Tropp, Yurtsever, Udell, Cevher, "Practical sketching algorithms for low-rank matrix approximation" (2017),
sizes as there; Halko, Martinsson, Tropp (2011) for two passes. Taking R apart from the linear terms, the centring, the
shrinkage, the pooling of columns and the policy are ours (docs/decisions 0042, 0043).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import public
from fedlora_priv.methods.base import Shared, Sums
from fedlora_priv.methods.errors import AssumptionError, UploadError
from fedlora_priv.methods.layout import Layout, LoraModule, Shapes, State
from fedlora_priv.methods.thin import Array, Dense, Group, Product, Thin, factors, plus, stack, transposed

Mode = Literal["exact", "sketch", "two-pass"]
Kind = Literal["range", "corange", "held_out", "projected", "delta_w"]
"""What can travel of the cross term: Y, Z, H, QᵀR, or the dense product; see above."""

DEGREES = 48
"""Held-out columns that a lone module needs: χ²₄₈/48 is within (0.8², 1.2²) with probability 0.95."""

UNEVENNESS = 3
"""Modules' errors differ: L of them are counted as L/3 equal ones. Seen: L/2 and above, L/4 in one of 60 rounds."""

FEWEST_COLUMNS = 4
"""Held-out columns of one module, however many modules there are."""

SKEWED = 1e-3
"""How far QᵀQ of an announced basis may be from the identity: rounding is 1e-6; more would amplify an upload."""

_FIRST: dict[Mode, tuple[Kind, ...]] = {
    "exact": ("delta_w",), "sketch": ("range", "corange", "held_out"), "two-pass": ("range", "held_out")
}  # fmt: skip
_SECOND: dict[Mode | None, tuple[Kind, ...]] = {"two-pass": ("projected",), "exact": ("delta_w",)}


@dataclass(frozen=True)
class Released:
    """What a round has released of one group of modules: the state it began from, and sums over n clients."""

    group: Group
    state: State
    sums: Sums
    n: int

    def has(self, kind: Kind) -> bool:
        """Whether that kind has travelled."""
        return f"{self.group[0].name}.{kind}" in self.sums

    def mean(self, kind: Kind) -> Array:
        """Return the mean of what travelled of that kind, stacked."""
        return stack(self.sums, [f"{m.name}.{kind}" for m in self.group]) / self.n

    def start(self) -> Thin:
        """Return the mean of the B₀A₀ that the clients started from."""
        return factors(self.group, self.state)

    def drift(self) -> Thin:
        """Return ΔB̄·ΔĀ."""
        sums = factors(self.group, self.sums)
        return Thin(sums.left / self.n, sums.right / self.n)

    def linear(self) -> Thin:
        """Return the mean of the products but for C: B̄·Ā."""
        start, drift = factors(self.group, self.state), self.drift()
        return Thin(start.left + drift.left, start.right + drift.right)


@dataclass(frozen=True)
class CrossTerm:
    """One of the ways to get the mean of the products.

    Args:
        mode: what travels in the first exchange.
        fallback: what travels in a second exchange if a sketch misses too much; None never asks for it.
        tolerance: the most that a sketch may miss, as a fraction of ‖ΔW‖ of all modules.
        columns: k, columns of the sketch; None takes each module's rank.

    Raises:
        AssumptionError: a fallback of anything but a sketch, or a parameter out of range.
    """

    mode: Mode = "sketch"
    fallback: Literal["two-pass", "exact"] | None = None
    tolerance: float = 0.05
    columns: int | None = None

    def __post_init__(self) -> None:
        if self.fallback is not None and self.mode != "sketch":
            raise AssumptionError(
                f"the mode {self.mode!r} has no fallback", "only a sketch can miss anything"
            )
        if not 0.0 < self.tolerance < 1.0:
            raise AssumptionError(f"a tolerance of {self.tolerance} is not between 0 and 1", "choose 0.05")
        if self.columns is not None and self.columns < 1:
            raise AssumptionError(f"a sketch cannot have {self.columns} columns", "leave it out for the rank")

    @property
    def needs_factors(self) -> bool:
        """Whether the changes of the factors must travel in the first exchange."""
        return self.mode != "exact"

    def exchanges(self, layout: Layout) -> tuple[Shapes, ...]:
        """Return names and shapes of what travels in each exchange, the factors apart."""
        return tuple(
            {f"{m.name}.{kind}": self._shape(kind, m, layout) for m in layout.modules for kind in kinds}
            for kinds in self._exchanges()
        )

    def announces(self, layout: Layout) -> tuple[Shapes, ...]:
        """Return names and shapes of what is announced before each exchange after the first."""
        return tuple(
            {
                basis_name(m): (m.out_features, self._shape("projected", m, layout)[0])
                for m in layout.modules
                if "projected" in kinds
            }
            for kinds in self._exchanges()[1:]
        )

    def upload(
        self, layout: Layout, group: Group, start: Thin, trained: Thin, shared: Shared
    ) -> dict[str, NDArray[Any]]:
        """Return one client's arrays of this exchange, from B·A as it started and as it was trained."""
        drift = Thin(trained.left - start.left, trained.right - start.right)
        arrays: dict[str, NDArray[Any]] = {}
        for kind in self._exchanges()[shared.exchange]:
            if kind == "delta_w":
                arrays |= {
                    f"{m.name}.{kind}": _change(m, start.part(i), trained.part(i))
                    for i, m in enumerate(group)
                }
                continue
            made = self._map(kind, layout, group, drift, shared)
            arrays |= {f"{m.name}.{kind}": array for m, array in zip(group, made, strict=True)}
        return arrays

    def announce(self, layout: Layout, released: Sequence[Released], shared: Shared) -> State | None:
        """Return what the second exchange needs, or None if the first one's sums are enough."""
        wanted = self.mode != "sketch" or shared.rehearsal
        if not wanted and self.missed(layout, released, shared) <= self.tolerance:
            return None
        if self.fallback == "exact":
            return {}
        return {
            basis_name(module): basis.astype(np.float32)
            for known in released
            for module, basis in zip(known.group, self._range(layout, known, shared), strict=True)
        }

    def mean_product(self, layout: Layout, known: Released, shared: Shared) -> Product:
        """Return ΔW = s·mean(BₖAₖ) of a group's modules, from the best that the sums hold."""
        scaling = known.group[0].scaling
        if known.has("delta_w"):
            start = known.start()
            return plus(Dense(known.mean("delta_w")), Thin(scaling * start.left, start.right))
        mean = known.linear()
        return Thin(scaling * mean.left, mean.right) + self.cross_term(layout, known, shared)

    def cross_term(self, layout: Layout, known: Released, shared: Shared) -> Thin:
        """Return s·C of a group's modules, thin: from the second pass if there was one, else from the sketch."""
        if known.has("projected"):
            q = announced_basis(known.group, shared)
            return Thin(known.group[0].scaling * q, self._of_cross("projected", layout, known, shared))
        q = self._range(layout, known, shared)
        psi = self._draw("corange", layout, known.group, shared)
        x = np.linalg.pinv(psi @ q) @ self._of_cross("corange", layout, known, shared)
        fitted = Thin(q, x).times(self._draw("held_out", layout, known.group, shared))
        c = _shrinkage(self._of_cross("held_out", layout, known, shared), fitted)
        return Thin(known.group[0].scaling * q, c[:, None, None] * x)

    def held_out(self, layout: Layout, known: Released, shared: Shared) -> tuple[Array, Array]:
        """Return G and ΔW·G of a group's modules, (L, n, g) and (L, m, g): the latter exactly."""
        columns = self._draw("held_out", layout, known.group, shared)
        product = known.linear().times(columns) + self._of_cross("held_out", layout, known, shared)
        return columns, known.group[0].scaling * product

    def missed(self, layout: Layout, released: Sequence[Released], shared: Shared) -> float:
        """Return the estimate of ‖C − c·QX‖/‖ΔW‖ of all modules together, after a sketch."""
        missed, size = 0.0, 0.0
        for known in released:
            columns, product = self.held_out(layout, known, shared)
            found = self.mean_product(layout, known, shared).times(columns)
            missed += float(np.square(product - found).sum())
            size += float(np.square(product).sum())
        return math.sqrt(missed / size) if size else 0.0

    def _exchanges(self) -> tuple[tuple[Kind, ...], ...]:
        """Return what travels in each exchange."""
        second = "two-pass" if self.mode == "two-pass" else self.fallback
        return (_FIRST[self.mode],) if second is None else (_FIRST[self.mode], _SECOND[second])

    def _shape(self, kind: Kind, module: LoraModule, layout: Layout) -> tuple[int, int]:
        """Return the shape of what travels of one module."""
        m, n = module.out_features, module.in_features
        k = min(self.columns or module.rank, m, n)
        shared = math.ceil(UNEVENNESS * DEGREES / len(layout.modules))
        held_out = min(max(FEWEST_COLUMNS, shared), DEGREES)
        shapes: dict[Kind, tuple[int, int]] = {
            "range": (m, k), "corange": (min(2 * k + 1, m), n), "held_out": (m, held_out),
            "projected": (k, n), "delta_w": (m, n),
        }  # fmt: skip
        return shapes[kind]

    def _draw(self, kind: Kind, layout: Layout, group: Group, shared: Shared) -> Array:
        """Return the Gaussian matrices of a kind: Ω (L, n, k), G (L, n, g), or Ψ (L, l, m)."""
        rows, columns = self._shape(kind, group[0], layout)
        shape = (rows, group[0].out_features) if kind == "corange" else (group[0].in_features, columns)
        return np.stack([public.gaussian(shared, f"{kind}/{module.name}", shape) for module in group])

    def _map(self, kind: Kind, layout: Layout, group: Group, product: Thin, shared: Shared) -> Array:
        """Return the linear map of a thin product that travels as that kind."""
        if kind == "projected":
            return product.after(transposed(announced_basis(group, shared)))
        drawn = self._draw(kind, layout, group, shared)
        return product.after(drawn) if kind == "corange" else product.times(drawn)

    def _of_cross(self, kind: Kind, layout: Layout, known: Released, shared: Shared) -> Array:
        """Return the map of C, from the mean map of R: less that of ΔB̄·ΔĀ."""
        return known.mean(kind) - self._map(kind, layout, known.group, known.drift(), shared)

    def _range(self, layout: Layout, known: Released, shared: Shared) -> Array:
        """Return Q (L, m, k), an orthonormal basis of the range of CΩ."""
        q: Array = np.linalg.qr(self._of_cross("range", layout, known, shared))[0]
        return q


def _change(module: LoraModule, start: Thin, trained: Thin) -> NDArray[np.float32]:
    """Return how s·BA of one module has changed, (m, n); float32 at once, for a model has many."""
    change: NDArray[np.float32] = (module.scaling * (trained.dense() - start.dense())[0]).astype(np.float32)
    return change


def _shrinkage(held_out: Array, fitted: Array) -> Array:
    """Return c in [0, 1] for each module, the multiple of `fitted` that is nearest to `held_out`."""
    inner = (held_out * fitted).sum(axis=(1, 2))
    square = np.square(fitted).sum(axis=(1, 2))
    c: Array = np.clip(np.divide(inner, square, out=np.zeros_like(inner), where=square > 0), 0.0, 1.0)
    return c


def basis_name(module: LoraModule) -> str:
    """Name of a module's basis in an announcement."""
    return f"{module.name}.basis"


def announced_basis(group: Group, shared: Shared) -> Array:
    """Return the bases that the server announced, (L, m, k), checked: a client projects its update on them.

    Raises:
        UploadError: there is none, or it is not orthonormal: projecting on it could amplify the upload.
    """
    for module in group:
        basis = shared.announced.get(basis_name(module))
        if basis is None or basis.ndim != 2 or len(basis) != module.out_features:
            raise UploadError(
                f"the server announced no basis for {module.name}", "it must, before a second pass"
            )
    bases = stack(shared.announced, [basis_name(m) for m in group])
    skew = transposed(bases) @ bases - np.eye(bases.shape[2])
    if not (np.abs(skew) <= SKEWED).all():  # a NaN is not
        raise UploadError("an announced basis is not orthonormal", "projecting on it could amplify an upload")
    return bases
