"""Per-example gradients of linear layers, from what went in and the gradient of what came out.

Example i's gradient of a weight is ``Gᵢᵀ Aᵢ``, with its inputs A (tokens, in) and output gradients G (tokens,
out). Its squared norm is also the sum over all pairs of tokens of ``(AᵢAᵢᵀ) ∘ (GᵢGᵢᵀ)``, which needs no array of
the weight's shape: for few tokens and a large weight, such as a head on one pooled vector, that is far cheaper.

Of a weight that is trained in part only those entries are computed, each example's the sum over its tokens of an
output's gradient times an input; rows and columns without any are left out before anything is multiplied.

Source: Goodfellow 2015, "Efficient per-example gradient computations"; Li et al. 2022, section 4, for tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, finfo, float64

from fedlora_priv.training.engine import ExampleGradients, GradientRows
from fedlora_priv.training.support import Coordinates

_TOUCH = 8
"""What it costs to write a number, square it and weigh it, in multiply-adds of a matrix product."""

_GATHER = 12
"""What it costs to look two numbers up and multiply them, in the same."""


@dataclass(frozen=True)
class LinearGradients:
    """Per-example gradients of a linear layer's weight, kept as their two factors.

    Everything is computed in float64. A sum of pairs can cancel; and the sum over examples is not made of the
    rows whose norms were taken, so that rounding could put more of an example into it than its norm says.

    Attributes:
        inputs: (n, tokens, in).
        outputs: gradients of the outputs, (n, tokens, out).
    """

    inputs: Tensor = field(repr=False)
    outputs: Tensor = field(repr=False)

    def one_by_one(self) -> GradientRows:
        """Return the same gradients as an array; on CPUs a product with few rows is several times as fast."""
        if self.outputs.shape[-1] > self.inputs.shape[-1]:
            return GradientRows(self.inputs.transpose(1, 2) @ self.outputs, transposed=True)
        return GradientRows(self.outputs.transpose(1, 2) @ self.inputs)

    def squares(self) -> Tensor:
        """Return each example's squared L2 norm, float64 (n,), and as much more as it may have been rounded down by."""
        inputs, outputs = self.inputs.double(), self.outputs.double()
        pairs = (inputs @ inputs.transpose(1, 2)) * (outputs @ outputs.transpose(1, 2))
        # Tokens that cancel leave less than the rounding of their products, which grows with what there was to add.
        terms = inputs.shape[1] ** 2 + inputs.shape[2] + outputs.shape[2]
        largest = (inputs.norm(dim=2) * outputs.norm(dim=2)).sum(dim=1).square()
        squares: Tensor = pairs.sum(dim=(1, 2)).clamp(min=0.0) + terms * finfo(float64).eps * largest
        return squares

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the examples' sum, each times its weight (n,), float64 (out, in)."""
        outputs = self.outputs.double() * weights[:, None, None]
        return outputs.flatten(0, 1).T @ self.inputs.double().flatten(0, 1)

    def without(self, left_out: Tensor) -> LinearGradients:
        """Return them with zeros for the examples that `left_out`, bool (n,), marks."""
        mask = left_out[:, None, None]
        return LinearGradients(self.inputs.masked_fill(mask, 0.0), self.outputs.masked_fill(mask, 0.0))


def weight_gradients(inputs: Tensor, outputs: Tensor, part: Coordinates | None = None) -> ExampleGradients:
    """Return per-example gradients of a linear layer's weight, in the form that costs fewer operations.

    Args:
        inputs: (n, ..., in).
        outputs: gradients of the outputs, (n, ..., out).
        part: the coordinates of the weight that are asked for; all of them unless given.
    """
    factors = LinearGradients(_by_tokens(inputs), _by_tokens(outputs))
    if part is not None:
        return GradientRows(_entries(factors.inputs, factors.outputs, part))
    tokens, size = factors.inputs.shape[1], inputs.shape[-1] * outputs.shape[-1]
    by_rows = tokens * size + _TOUCH * size
    by_pairs = 2 * (2 * tokens**2 * (inputs.shape[-1] + outputs.shape[-1]) + tokens * size)  # float64: twice
    return factors if by_pairs < by_rows else factors.one_by_one()


def bias_gradients(outputs: Tensor, part: Coordinates | None = None) -> GradientRows:
    """Return per-example gradients of a linear layer's bias, (n, out), or of some of its coordinates, (n, k)."""
    rows = _by_tokens(outputs).sum(dim=1)
    return GradientRows(rows if part is None else part.take(rows))


def _entries(inputs: Tensor, outputs: Tensor, part: Coordinates) -> Tensor:
    """Return some entries of each example's gradient, (n, k), from inputs and output gradients (n, tokens, ...)."""
    (rows, row_of), (columns, column_of) = part.rows, part.columns
    outputs, inputs = outputs.index_select(2, rows), inputs.index_select(2, columns)
    size, tokens = len(rows) * len(columns), inputs.shape[1]
    if _GATHER * tokens * len(part) < (tokens + _TOUCH) * size:
        return (outputs.index_select(2, row_of) * inputs.index_select(2, column_of)).sum(dim=1)
    if len(rows) > len(columns):  # on CPUs a product with few rows is several times as fast
        products, places = inputs.transpose(1, 2) @ outputs, column_of * len(rows) + row_of
    else:
        products, places = outputs.transpose(1, 2) @ inputs, row_of * len(columns) + column_of
    return products.flatten(1).index_select(1, places)


def _by_tokens(values: Tensor) -> Tensor:
    """Return (n, ..., width) as (n, tokens, width); one vector an example is one token."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)
