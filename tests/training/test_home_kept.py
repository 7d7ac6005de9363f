"""What is trained is noised, whether or not it is uploaded: a tensor that stays at home shapes later uploads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, norm

from fedlora_priv.adapters import read_state
from fedlora_priv.methods import METHODS
from fedlora_priv.methods.layout import Role
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from protocols.prg import SecretStream

NOISE, CLIP, BATCH, RATE = 2.0, 0.5, 4.0, 0.1
FALSE_ALARM = 1e-9

# One set of roles a method, and "A" alone.
ROLES: list[frozenset[Role]] = [
    frozenset({"A", "B", "head"}), frozenset({"B", "head"}), frozenset({"A", "head"}), frozenset({"A"}),
]  # fmt: skip


@pytest.mark.parametrize("roles", ROLES, ids=lambda roles: "+".join(sorted(roles)))
def test_every_trained_array_gets_noise_of_the_full_size(tiny_model, roles):
    """An empty batch leaves noise alone: each array moved by learning rate × noise / batch, like any other."""
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    nobody = TokenisedExamples((), np.zeros(0, dtype=np.int64), 0)
    result = trainer.train(
        nobody, start,
        StepSettings(
            steps=1, sample_rate=0.5, planned_batch_size=BATCH, noise_multiplier=NOISE, clip_norm=CLIP,
            learning_rate=RATE,
        ),
        trainable=roles, stream=SecretStream(bytes(range(32))),
    )  # fmt: skip
    for name, before in start.items():
        moved = (result.state[name].astype(np.float64) - before) * BATCH / (RATE * NOISE * CLIP)
        if trainer.layout.role(name) not in roles:
            assert not moved.any(), name
            continue
        squares = float((moved**2).sum())
        tail = min(chi2.cdf(squares, moved.size), chi2.sf(squares, moved.size))
        assert tail > FALSE_ALARM / 2, (
            f"{name}: {moved.size} coordinates, mean square {squares / moved.size:.3f}"
        )
        assert abs(moved).max() < norm.isf(FALSE_ALARM / 2 / moved.size), name
    assert result.private_audit[0].batch_size == 0


def test_no_method_trains_what_this_file_does_not_try():
    """A new method that keeps something at home trains it through the same trainer: add its roles to ROLES."""
    from fedlora_priv.methods.layout import Layout, LoraModule

    layout = Layout((LoraModule("module", 8, 8, 2, 2.0),), {"head.weight": (2, 8)})
    trained = {method.at(number).contract(layout).trains for method in METHODS.values() for number in (1, 2)}
    trained.remove(frozenset({"R", "head"}))  # Fed-SB's R is no array of this model
    assert trained <= set(ROLES), trained - set(ROLES)
