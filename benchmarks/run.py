"""Measure what this project costs, each figure beside its limit or its baseline in the same run.

``make bench`` runs every section, ``python benchmarks/run.py masks sessions`` those that are named. Machines are
shared and noisy, so read the ratios; the seconds only say where they come from. Every figure is the best of
several repetitions.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

# A module of this folder may be called as a package of the project is; only the project's are to be found first.
sys.path[0] = str(Path(__file__).resolve().parents[1])

SECTIONS = ("masks", "encoding", "sharing", "sessions", "scaling", "training")
"""The modules of this package that have ``rows()``, in the order in which they run."""


def main() -> None:
    """Print the table of every section, and the machine it is of."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all of them unless given")
    chosen = parser.parse_args().sections or SECTIONS
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; CPU time")
    for name in chosen:
        _print_section(name)


def _print_section(name: str) -> None:
    """Run one section; a header is printed wherever the kind of line changes."""
    section = importlib.import_module(f"benchmarks.{name}")
    from benchmarks.common import markdown

    print(f"\n## {name}\n\n{section.__doc__}")
    header = None
    for row in section.rows():
        if header != row.HEADER:
            header = row.HEADER
            print(f"\n{markdown(header)}\n{markdown(('---',) * len(header))}")
        print(markdown(row.cells()), flush=True)


if __name__ == "__main__":
    main()
