"""Attacks: from what an adversary sees to one score per canary, larger where it looks as if it had been in.

Both know the canaries' rows and the model's start; neither looks at the coins or at the client's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from accounting.planning import Plan
from fedlora_priv.adapters import trainable_parameters, write_state
from fedlora_priv.methods.layout import Role, State
from fedlora_priv.training.batching import microbatches
from fedlora_priv.training.examples import Examples
from fedlora_priv.training.hooks import per_example_gradients
from fedlora_priv.training.losses import example_losses
from fedlora_priv.training.trainer import PrivateTrainer

ATTACKERS = {
    "update": "white-box: sees every noised update of the client (server and all other clients collude), knows "
    "the canary rows",
    "loss-drop": "black-box: queries the released adapter and the base model, knows the canary rows",
}
"""What each attack needs to see."""

_MAX_TOKENS = 2048  # padded tokens computed at once
_RANK_TOLERANCE = 1e-9
"""Relative size below which an eigenvalue, computed from float32 gradients, is rounding."""


@dataclass(frozen=True)
class UpdateAttack:
    """How often each canary seems to be in a noised update, from the gradients they would have contributed.

    An update of SGD is -rate/batch times (the clipped gradients of the rows drawn, plus noise). With the
    canaries' gradients at the start as the rows of G, and y the update divided by -rate/batch, this is the
    posterior mean of how often each row of G is in y when those counts and the noise are taken as Gaussian:
    (G·Gᵀ + λ)⁻¹·G·y, which lets canaries with similar gradients explain each other away. λ is the variance of
    the noise over that of a count. Both are estimated from y, the noise from the part that no canary explains,
    so that noise or clipping that is missing makes the attack sharp.

    After the first of several local steps, and with Adam, this is an approximation: a weaker attack, never a
    wrong bound.

    Args:
        trainer: for its model; the state in it is overwritten.
        rows: the canaries.
        plan: the client's plan, of which only public numbers are used.
        trains: the roles that are trained.
        learning_rate: of the experiment.
    """

    trainer: PrivateTrainer
    rows: Examples
    plan: Plan
    trains: frozenset[Role]
    learning_rate: float

    def scores(self, start: State, update: State) -> NDArray[np.float64]:
        """Return the estimated counts, (m,), from one noised update and the state it started from."""
        names = [name for name in sorted(start) if self.trainer.layout.role(name) in self.trains]
        moved = np.concatenate([(start[name] - update[name]).ravel() for name in names]).astype(np.float64)
        # Noise moves all that is trained. What has not moved was not trained, nor any gradient of it clipped.
        moving = moved != 0 if moved.any() else np.ones(moved.shape, dtype=np.bool_)
        seen = torch.from_numpy(moved[moving] * self.plan.planned_batch_size / self.learning_rate)
        gradients = self._gradients(start, names, torch.from_numpy(moving))
        values, vectors = torch.linalg.eigh(gradients @ gradients.T)
        real = values > _RANK_TOLERANCE * values.max()
        values, vectors = values[real], vectors[:, real]
        # y in the orthonormal directions that canaries span: along the k-th, a count's effect is √values[k].
        along = (vectors.T @ (gradients @ seen)) / values.sqrt()
        noise = self._noise(seen, along)
        ridge = noise / self._count(along, values, noise)
        counts = vectors @ (values.sqrt() * along / (values + ridge))
        return np.asarray(counts.numpy(), dtype=np.float64)

    def _noise(self, seen: Tensor, along: Tensor) -> float:
        """Return the noise's variance per coordinate: estimated where canaries leave room for it, else as claimed."""
        room = len(seen) - len(along)
        if room < len(self.rows):
            return (self.plan.noise_multiplier * self.plan.clip_norm) ** 2 * self.plan.steps_per_round
        left = float(seen.square().sum() - along.square().sum())
        return max(left / room, _RANK_TOLERANCE * float(seen.square().mean()))

    def _count(self, along: Tensor, values: Tensor, noise: float) -> float:
        """Return the variance of a count: as planned, or more if the update shows (at 3 sigma) larger contributions."""
        rate = self.plan.sample_rate / 2
        most = len(along) - len(along) // 10  # eigenvalues ascend; the mean count moves the last directions
        surplus = float(along[:most].square().sum()) - noise * (most + 3 * math.sqrt(2 * most))
        return max(rate * (1 - rate) * self.plan.steps_per_round, surplus / float(values[:most].sum()))

    def _gradients(self, start: State, names: list[str], moving: Tensor) -> Tensor:
        """Return the canaries' clipped gradients at `start` of what is `moving`, float64 (m, k), as in training."""
        model = self.trainer.model
        write_state(model, start)
        parameters = trainable_parameters(model)
        trained = {name: parameters[name] for name in names}
        gradients: Tensor = torch.empty((len(self.rows), int(moving.sum())), dtype=torch.float64)
        with per_example_gradients(model, trained) as hooked:
            for indices in microbatches(self.rows.lengths(), _MAX_TOKENS):
                rows = self.rows.subset(indices)
                gradients[indices] = _per_example(hooked, rows, trained, self.trainer.device)[:, moving]
        norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        gradients *= self.plan.clip_norm / norms.clamp(min=self.plan.clip_norm)
        return gradients


def _per_example(
    hooked: nn.Module, rows: Examples, trained: dict[str, nn.Parameter], device: torch.device
) -> Tensor:
    """Return the gradients of a microbatch, float64 (n, d); forgets them in the model."""
    batch = rows.collate(device)
    example_losses(hooked(**batch.inputs).logits, batch).sum().backward()  # type: ignore[no-untyped-call]  # backward is untyped in torch
    parts = []
    owners: Any = trained.values()
    for parameter in owners:
        parts.append(parameter.grad_sample.detach().flatten(1).to("cpu", torch.float64))
        parameter.grad_sample = None
    return torch.cat(parts, dim=1)


def losses(trainer: PrivateTrainer, rows: Examples, state: State) -> NDArray[np.float64]:
    """Return the loss of each row at a state, (n,); the model is left at that state."""
    write_state(trainer.model, state)
    trainer.model.eval()
    found = np.empty(len(rows))
    with torch.no_grad():
        for indices in microbatches(rows.lengths(), _MAX_TOKENS):
            batch = rows.subset(indices).collate(trainer.device)
            found[indices] = example_losses(trainer.model(**batch.inputs).logits, batch).cpu().numpy()
    return found


def loss_drop(trainer: PrivateTrainer, rows: Examples, before: State, after: State) -> NDArray[np.float64]:
    """Return by how much training lowered each row's loss, (n,); hard rows are not mistaken for non-members."""
    return losses(trainer, rows, before) - losses(trainer, rows, after)
