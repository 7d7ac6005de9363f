"""What a session gave, as a file, and its comparison with the plain sum, which only a demonstration can know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from examples.custom_system.agreement import QUANTISER
from protocols.secagg.interface import SecAggResult


def write_outcome(folder: Path, result: SecAggResult) -> None:
    """Write what a session gave where `compare` finds it."""
    outcome = {
        "ring_sum": result.sum.tolist(),
        "sum": QUANTISER.dequantise_sum(result.sum, len(result.survivors)).tolist(),
        "survivors": result.survivors,
        "lost": dict(result.lost),
    }
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


def compare(folder: Path) -> dict[str, Any]:
    """Return the session's outcome, after checking its sum against the plain one over the survivors' files."""
    outcome: dict[str, Any] = json.loads((folder / "server" / "outcome.json").read_text(encoding="utf-8"))
    rings = [np.fromfile(folder / name / "ring", dtype="<u4") for name in outcome["survivors"]]
    modular = np.sum(rings, axis=0, dtype=np.uint64) % 2**QUANTISER.modulus_bits
    if modular.tolist() != outcome["ring_sum"]:
        raise SystemExit("the sum of the integers is wrong")
    plain = np.sum(
        [np.load(folder / name / "vector.npy") for name in outcome["survivors"]], axis=0, dtype=float
    )
    error = float(np.abs(np.array(outcome["sum"]) - plain).max())
    if error > len(rings) / QUANTISER.levels:
        raise SystemExit(f"the sum is off by {error}: more than rounding can be")
    print(f"sum over {', '.join(outcome['survivors'])}: exact; rounding error at most {error:.1e}")
    print(f"lost: {outcome['lost'] or 'nobody'}")
    return outcome
