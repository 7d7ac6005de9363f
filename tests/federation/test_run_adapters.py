"""Runs of methods that leave more than one adapter: what the folder holds is what the federation evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from fedlora_priv.adapters import write_state
from fedlora_priv.config import Experiment
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.run import run
from fedlora_priv.federation.setup import assemble
from fedlora_priv.pooling import MeanPoolingClassifier

CASES: dict[str, dict[str, Any]] = {
    "fed-sb": {},
    "rac-lora": {},
    "fedex": {"aggregation": {"products": "exact"}},
    "flora": {
        "aggregation": {"products": "sketch"},
        "lora": {"rank": 4, "ranks": [4, 2, 1, 2, 4]},
    },
    "flexlora": {"lora": {"rank": 4, "ranks": [1, 2, 4, 4, 1]}},
}


@pytest.mark.parametrize("method", CASES)
def test_the_folder_of_a_run_is_the_model_that_was_evaluated(
    method: str, experiment_file: Callable[..., Path], tiny_model: Path, silent: Any
) -> None:
    file = experiment_file(
        federation={"method": method, "rounds": 2},
        communication={"support": "dense", "density": 1.0, "value_bits": 16},
        secure_aggregation={"mode": "insecure"},
        **CASES[method],
    )
    outcome = run(Experiment.load(file), progress=silent)
    assert outcome.problem is None
    assert all(len(row["survivors"]) == 5 for row in outcome.metrics)
    stored = checkpoint.load(outcome.folder / "checkpoints")
    assert stored is not None
    state, parts = stored[0].state, assemble(Experiment.load(file), lambda line: None)
    added = any(parts.layout.role(name) == "base" for name in state)
    assert added == (method in ("rac-lora", "fedex", "flora"))
    base = MeanPoolingClassifier.from_pretrained(str(tiny_model), 2)
    loaded = PeftModel.from_pretrained(base, str(outcome.folder / "adapter")).eval()
    assert parts.evaluation is not None
    batch = parts.evaluation.subset(range(40)).collate(torch.device("cpu"))
    with torch.no_grad():
        found = loaded(**batch.inputs).logits.numpy()
        write_state(parts.trainer.model, state)
        wanted = parts.trainer.model(**batch.inputs).logits.numpy()
        write_state(parts.trainer.model, parts.initial)
        before = parts.trainer.model(**batch.inputs).logits.numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(wanted - before).max() > 1e-2
    assert outcome.metrics[-1]["accuracy"] == parts.trainer.evaluate(parts.evaluation, state).value
