"""Runs of the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlora_priv import cli
from fedlora_priv.cli import app


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it left."""

    code: int
    out: str
    err: str


@pytest.fixture
def fedlora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ran]:
    """Return a function that runs `fedlora` with these arguments, its homes inside tmp_path."""
    monkeypatch.setenv("FEDLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli.console, "width", 200)  # whatever it was when the module was imported

    def run(*arguments: object) -> Ran:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run
