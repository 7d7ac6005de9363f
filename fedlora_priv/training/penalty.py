"""A penalty on the weights beside the private loss: its gradient joins the noised one, neither clipped nor noised.

A step under DP-SGD moves the weights w by a noised sum s of clipped gradients over the planned batch size b. With a
penalty P it moves them by

    s / b + ∇P(w)

and, through Adam, by its moments of that.

Guarantee: training is the composition of subsampled Gaussian mechanisms that it is without the penalty, at the same
price. By induction: the first weights are the start state, which whoever ε is against has already. A later step's w is
a function of the start and of the noised sums so far, and so is ∇P(w); what the step's batch has a part in is s alone,
whose sensitivity and noise are as they were. So all weights are post-processing of noised sums, each of gradients at
weights that follow from the sums before it (adaptive composition). That holds as long as P is a public function of the
weights. One that looks at examples would be a release that nothing covers, and no clipping here would bound it.

Not divided by the batch size, for ∇P is no sum over examples: P is added to their mean loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlora_priv.errors import FedloraError, StateBeyondBounds
from fedlora_priv.methods.layout import State
from fedlora_priv.training.support import Coordinates

Penalty = Callable[[State], Mapping[str, NDArray[Any]]]
"""Given the arrays that are trained, by state name, returns the penalty's gradient by those that it bears on.

It sees weights and must follow from public constants besides: see this module. The arrays are float32 and read-only.
"""


def add_gradient(
    penalty: Penalty, trained: Mapping[str, nn.Parameter], parts: Mapping[str, Coordinates]
) -> None:
    """Add a penalty's gradient at the present weights to the parameters' ``grad``, which is noised by then.

    Args:
        trained: by state name, the parameters that are trained.
        parts: the coordinates of those that are trained in part; the others' gradient stays zero.

    Raises:
        FedloraError: the gradient is of other arrays or shapes.
        StateBeyondBounds: it is not finite; what the step has drawn stays charged.
    """
    for name, gradient in penalty({name: _values(p) for name, p in trained.items()}).items():
        parameter = trained.get(name)
        if parameter is None or parameter.grad is None or tuple(parameter.shape) != gradient.shape:
            raise FedloraError(
                f"a penalty has a gradient of shape {gradient.shape} for {name}, which is not trained so",
                "return gradients of arrays that are trained, each of its array's shape",
            )
        if not np.isfinite(gradient).all():
            raise StateBeyondBounds(
                f"the penalty's gradient of {name} is not finite",
                "training diverged: lower the penalty or the learning rate",
            )
        added = torch.as_tensor(gradient, dtype=parameter.dtype, device=parameter.device)
        if (part := parts.get(name)) is not None:
            added = part.scatter(part.take(added[None])[0])
        parameter.grad = parameter.grad + added


def _values(parameter: nn.Parameter) -> NDArray[np.float32]:
    """Return a parameter's values, which nobody may write to."""
    values: NDArray[np.float32] = parameter.detach().cpu().numpy().view()
    values.flags.writeable = False
    return values
