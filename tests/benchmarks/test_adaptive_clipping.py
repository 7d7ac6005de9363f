"""The comparison of clip norms, on made-up rows."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import adaptive_clipping
from benchmarks.adaptive_clipping import Case, train


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_learns_and_its_adaptive_clip_norms_move_towards_the_gradients(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    for name, value in (("EXAMPLES", 400), ("FEATURES", 6), ("STEPS", 30), ("BATCH", 200)):
        monkeypatch.setattr(adaptive_clipping, name, value)
    generator = np.random.default_rng(0)
    labels = np.sign(generator.normal(size=400))
    inputs = generator.normal(size=(400, 6)) + labels[:, None]
    weights, clip_norm = train(Case(optimizer, 10.0, 1.0), inputs, labels, 0.3)
    assert clip_norm < 3
    assert (np.sign(inputs @ weights) == labels).mean() > 0.9
    assert train(Case(optimizer, 10.0, None), inputs, labels, 0.3)[1] == 10.0
