"""Measure what this project costs, each figure beside its limit or its baseline in the same run.

``make bench`` runs every section and writes RESULTS.md; ``python benchmarks/run.py masks sessions`` runs those that
are named and only prints. Machines are shared and noisy, so read the ratios; the seconds only say where they come
from. They are CPU time, the least of several repetitions unless a section says otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

SECTIONS = (
    "masks", "encoding", "sharing", "sessions", "accounting", "training", "partial_layers", "aggregation", "scaling",
)  # fmt: skip
"""The modules of this package that have ``rows()``, in the order in which they run; the longest is last."""


def main() -> None:
    """Print the tables of every section, and the machine they are of."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all of them unless given")
    parser.add_argument(
        "--write", type=Path, default=os.devnull, metavar="FILE", help="write to this file too"
    )
    arguments = parser.parse_args()
    chosen = arguments.sections or SECTIONS
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    with arguments.write.open("w", encoding="utf-8") as results:
        for line in report(chosen):
            print(line, flush=True)
            print(line, file=results, flush=True)


def report(sections: tuple[str, ...] | list[str]) -> Iterator[str]:
    """Yield the report line by line, as Markdown."""
    began = time.monotonic()
    yield "# Results"
    yield f"\n`{' '.join(('python benchmarks/run.py', *sections))}`, one run. {_machine()}\n"
    yield "Times are CPU time; the machine is shared, so read the ratios. docs/decisions 0014 and 0015 explain them."
    for name in sections:
        yield from _section(name)
    yield f"\nThe whole run took {(time.monotonic() - began) / 60:.0f} minutes of wall time."


def _machine() -> str:
    """Return what the figures were measured with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "cryptography"))
    return (
        f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, {packages}."
    )


def _section(name: str) -> Iterator[str]:
    """Run one section; a header comes wherever the kind of line changes."""
    from benchmarks.common import markdown

    section = importlib.import_module(f"benchmarks.{name}")
    yield f"\n## {name}\n\n{(section.__doc__ or '').strip()}"
    header = None
    for row in section.rows():
        if header != row.HEADER:
            header = row.HEADER
            yield f"\n{markdown(header)}\n{markdown(('---',) * len(header))}"
        yield markdown(row.cells())


if __name__ == "__main__":
    # As a script, this file's folder comes first: a section may be called as a package of the project is.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
