"""The README's code runs, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_protocols_example_gives_the_mean_of_the_survivors() -> None:
    code = next(block for block in python_blocks() if "SecAggServer" in block)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    result, vectors = names["result"], names["vectors"]
    assert len(result.survivors) == 4
    truth = np.mean([vectors[name] for name in result.survivors], axis=0)
    assert np.abs(names["mean"] - truth).max() < 2 * 6 / 32767


def test_the_training_example_trains_and_saves_an_adapter(
    tiny_llama: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next(block for block in python_blocks() if "PrivateTrainer" in block)
    rows = (tiny_text / "train.txt").read_text(encoding="utf-8").split("\n\n")
    names: dict[str, object] = {"source": tiny_llama, "rows": rows, "n": len(rows)}
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), names)
    assert names["result"].steps_taken == 20
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_links_lead_to_files() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
