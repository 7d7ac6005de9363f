"""Every script of docs/attacks is refused, for its own reason: it exits 0, and would exit 1 if the attack worked."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import protocols

ROOT = Path(protocols.__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "attacks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "stage")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_attack_is_refused(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    code: object = 0
    try:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().out
    assert code == 0, said
    tried = said.count("tried:")
    assert tried > 0
    assert said.count("refused:") + said.count("in vain:") == tried


def test_a_script_stands_alone() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "both_shares.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused:  GuardViolation" in done.stdout


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("refused('x', lambda: None, 'check')", 1),
        ("refused('x', lambda: Stage(degree=9), 'check')", 1),
        ("in_vain('x', True, '')", 1),
        ("in_vain('x', False, '')", 0),
    ],
)
def test_an_attack_that_works_exits_1(body: str, code: int) -> None:
    # The stage itself: a verdict that could not fail would make every script above worthless.
    source = f"from stage import Stage, in_vain, refused\n{body}\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(FOLDER)))}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == code


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_docstring_says_what_and_why(script: str) -> None:
    text = (FOLDER / f"{script}.py").read_text(encoding="utf-8")
    docstring = text.split('"""')[1]
    for heading in ("Attack:", "Gain:", "Source:", "Check:"):
        assert f"\n{heading}" in docstring
    assert len(text.splitlines()) <= 110


def table_rows() -> list[list[str]]:
    """The rows of docs/attacks/README.md that name a script, a check, a test and a mutant."""
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if len(row) == 5 and "](" in row[1]]


def test_the_table_has_every_script_once() -> None:
    assert sorted(row[1].split("](")[1].rstrip(")").removesuffix(".py") for row in table_rows()) == SCRIPTS


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row[1].split("]")[0].lstrip("["))
def test_what_the_table_names_exists(row: list[str]) -> None:
    _, _, check, test, mutants = row
    module, function = (part.strip("` ") for part in test.split(":"))
    assert f"def {function}(" in (FOLDER.parents[1] / "tests/protocols" / f"{module}.py").read_text("utf-8")
    table = tomllib.loads((FOLDER.parents[1] / "tests/protocols/mutants.toml").read_text("utf-8"))["mutant"]
    killed_by = {mutant["name"]: mutant["tests"] for mutant in table}
    script = row[1].split("]")[0].lstrip("[")
    for name in mutants.split(";"):  # without that check, the script does not pass
        assert f"test_attacks.py::test_the_attack_is_refused[{script}]" in killed_by[name.strip()]
    for file in re.findall(r"(\w+\.py)", check):
        assert (Path(protocols.__file__).parent / "secagg" / file).is_file()
    source = "".join(path.read_text("utf-8") for path in Path(protocols.__file__).parent.rglob("*.py"))
    for name in re.findall(r"`([\w.]+)`", check):
        assert re.search(rf"\b{name.split('.')[-1]}\b", source), name


def test_what_the_threat_model_names_exists() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    folder = ROOT / "tests" / "protocols"
    tests = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_*.py"))
    assert len(named) > 30
    for name in named:
        assert f"def {name}(" in tests or (folder / f"{name}.py").is_file(), name
