"""The code of docs/methods.md runs, and gives what the page says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_a_round_in_a_system_of_ones_own_gives_the_best_rank_r_of_the_mean_product() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "methods.md", "exec"), names)
    assert names["shared"].exchange == 1  # noise of high rank: the sketch was not enough
    products = [2.0 * own["query.lora_B"] @ own["query.lora_A"] for own in names["trained"]]
    mean, after = np.mean(products, axis=0), names["after"]
    left, values, right = np.linalg.svd(mean)
    best = (left[:, :4] * values[:4]) @ right[:4]
    np.testing.assert_allclose(2.0 * after["query.lora_B"] @ after["query.lora_A"], best, atol=1e-5)
    least = float(np.linalg.norm(mean - best) / np.linalg.norm(mean))
    assert names["certificate"].error == pytest.approx(least, rel=1e-4)
