"""Takes one check of `protocols` out at a time, and sees that the tests named for it then fail.

The table is mutants.toml: a fragment of the source that occurs exactly once, what stands there instead, and the
tests of this folder of which each must fail (for a test with many cases: at least one case).

    python tests/protocols/mutants.py              all of them
    python tests/protocols/mutants.py --shard 1/4  every fourth
    python tests/protocols/mutants.py -k ring      those with "ring" in their name

Each mutant runs in a process of its own, forked from one that has the heavy imports done but nothing of
`protocols`, in a folder with a copy of the package, its tests and the attack scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import py_compile
import shutil
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Mutant:
    """A check taken out: in `file` of the package, `replacement` stands where `fragment` stood."""

    name: str
    file: str
    fragment: str
    replacement: str
    tests: tuple[str, ...]

    def source(self) -> str:
        """Return the mutated file.

        Raises:
            ValueError: the fragment is not there exactly once: the code has moved on, and so must the table.
        """
        source = (ROOT / "protocols" / self.file).read_text(encoding="utf-8")
        if (found := source.count(self.fragment)) != 1:
            raise ValueError(f"{self.name}: its fragment occurs {found} times in {self.file}")
        return source.replace(self.fragment, self.replacement)


def table() -> list[Mutant]:
    """Return every mutant."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def copy_to(folder: Path) -> None:
    """Copy what the tests need; bytecode is checked by content, since a mutant may be as long and as old."""
    no_bytecode = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for part in ("protocols", "tests/protocols", "docs/attacks"):
        shutil.copytree(ROOT / part, folder / part, ignore=no_bytecode)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for source in (folder / "protocols").rglob("*.py"):
        py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


class _Recorder:
    """A pytest plugin that notes how every case ended."""

    def __init__(self) -> None:
        self.ended: dict[str, set[str]] = {"passed": set(), "failed": set(), "broken": set()}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a case; a failure outside its body is no verdict."""
        if report.when == "call":
            self.ended[report.outcome].add(report.nodeid)
        elif report.failed:
            self.ended["broken"].add(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Note what could not be imported."""
        if report.failed:
            self.ended["broken"].add(report.nodeid)


def _cases(folder: Path, tests: tuple[str, ...]) -> dict[str, set[str]]:
    """Run tests in this process, which is thrown away afterwards; return how the cases ended."""
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other packages' plugins cost more than the tests
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    import protocols

    recorder = _Recorder()
    if not Path(protocols.__file__).is_relative_to(folder):
        recorder.ended["broken"].add(f"protocols was imported from {protocols.__file__}")
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "-p",
        "no:unraisableexception",  # it looks for all garbage, twice
        "--assert=plain",  # what an assertion would say is not read
        "--tb=no",
        *(f"tests/protocols/{test}" for test in tests),
    ]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = pytest.main(arguments, plugins=[recorder])
    if code not in (0, 1):
        recorder.ended["broken"].add(f"pytest ended with {code!r}")
    return recorder.ended


def survives(folder: Path, mutant: Mutant) -> str:
    """Return why a mutant counts as alive, or nothing if each of its tests failed."""
    target = folder / "protocols" / mutant.file
    original = target.read_text(encoding="utf-8")
    target.write_text(mutant.source(), encoding="utf-8")
    try:
        ended = _apart(folder, mutant.tests)
    finally:
        target.write_text(original, encoding="utf-8")
    if ended["broken"]:
        return f"the tests could not run: {sorted(ended['broken'])}"
    failed = {case.removeprefix("tests/protocols/") for case in ended["failed"]}
    kept = [test for test in mutant.tests if not any(_is_case(case, test) for case in failed)]
    return f"passes although the check is gone: {', '.join(kept)}" if kept else ""


def _is_case(case: str, test: str) -> bool:
    """Whether a case is the test, or one of its parametrisations."""
    return case == test or case.startswith(f"{test}[")


def _apart(folder: Path, tests: tuple[str, ...]) -> dict[str, set[str]]:
    """Run tests in a process of their own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_cases, (folder, tests))


def main() -> int:
    """Run the chosen mutants; return 1 if one survives or its tests fail without it."""
    parser = argparse.ArgumentParser(description="Take one check out at a time; its tests must fail.")
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th mutant, from the i-th")
    parser.add_argument("-k", default="", help="only those with this in their name")
    chosen = parser.parse_args()
    index, count = map(int, chosen.shard.split("/"))
    mutants = [mutant for mutant in table()[index - 1 :: count] if chosen.k in mutant.name]
    if not mutants:
        parser.error("no mutant is called that")
    import cryptography.hazmat.primitives.asymmetric.mlkem  # noqa: F401  (imported once, before the forks)
    import hypothesis  # noqa: F401  (likewise)
    import numpy as np  # noqa: F401  (likewise)
    import pytest  # noqa: F401  (likewise)

    gc.freeze()  # or each of the processes copies what it never changes
    alive = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        ended = _apart(folder, tuple(sorted({test for mutant in mutants for test in mutant.tests})))
        if ended["failed"] or ended["broken"]:
            print(f"without any mutant: {ended['failed'] | ended['broken']}")
            return 1
        for mutant in mutants:
            why = survives(folder, mutant)
            alive += bool(why)
            print(
                f"{'SURVIVES' if why else 'killed  '}  {mutant.name}{': ' + why if why else ''}", flush=True
            )
    print(f"{len(mutants) - alive} of {len(mutants)} killed")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
