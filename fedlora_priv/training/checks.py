"""The check after a trainer's first step: every trained array moved, and nothing else did.

Adapters that silently stay as they were are a known failure (hooks or optimizer on parameters that the model
no longer uses); noise hides it from everything but a direct look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedlora_priv.adapters import trainable_parameters
from fedlora_priv.errors import FedloraError


class StepCheck:
    """A photograph of a model before a step, to be compared with the model after it.

    Args:
        model: the PEFT model, before the step.
        trained: state names of what the step may change.
    """

    def __init__(self, model: nn.Module, trained: Iterable[str]) -> None:
        self._model = model
        self._trained = frozenset(trained)
        self._before = self._fingerprints()

    def require_changes(self, *, noised: bool) -> None:
        """Raise unless exactly the trained arrays changed.

        Args:
            noised: whether noise was added; without noise a gradient of exactly zero is legitimate (A at
                B = 0), so only changes elsewhere are errors.
        """
        after = self._fingerprints()
        changed = {name for name in after if after[name] != self._before.get(name)}
        if wrong := sorted(changed - self._trained):
            raise FedloraError(
                f"the step changed {wrong[0]}, which is frozen", "no hook may modify the model"
            )
        if noised and (missing := sorted(self._trained - changed)):
            raise FedloraError(
                f"the step left {missing[0]} unchanged, so it is not being trained",
                "build a new PrivateTrainer after changing or moving the model",
            )

    def _fingerprints(self) -> dict[str, int]:
        """Return a checksum of each trainable by state name, and of everything else by parameter name."""
        trainables: Mapping[str, Tensor] = trainable_parameters(self._model)
        own = {id(tensor) for tensor in trainables.values()}
        rest = {n: t for n, t in self._model.state_dict(keep_vars=True).items() if id(t) not in own}
        return {name: _checksum(tensor) for name, tensor in (*trainables.items(), *rest.items())}


def _checksum(tensor: Tensor) -> int:
    """Return the sum of a tensor's bit patterns, which a change of a few values leaves with chance 2^-32."""
    data = tensor.detach().contiguous()
    whole_words = data.element_size() % 4 == 0 and data.numel() > 0
    return int(data.reshape(-1).view(torch.int32 if whole_words else torch.uint8).sum(dtype=torch.int64))
