"""A study that can be stopped and started at any time, and shared by processes: each takes what no other one is at.

Every finished run is a line of a file (`sst2_study.Lines`) and is not run again. A claim is a locked file, which ends
with its process. What is to be run may depend on the lines that are there: it is asked for again after each run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from benchmarks.methods_runs import Setting
    from benchmarks.sst2_study import Lines

S = TypeVar("S", bound="Setting")

T = TypeVar("T")

WAIT_S = 5.0
"""How long a process waits while all that can be run is being run by others."""


def stored_as(kind: type[T], stored: Mapping[str, Any]) -> T:
    """Return the setting, a dataclass, that `asdict` and JSON made `stored` of; what else is there is ignored."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]  # a TypeVar cannot say "a dataclass"
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name in known
    }
    return kind(**values)


def work(
    wanted: Callable[[], Sequence[tuple[str, S]]],
    run: Callable[[str, S], None],
    lines: Lines,
    locks: Path,
    most: int | None = None,
) -> None:
    """Run until nothing is wanted any more, or `most` runs; the most urgent that nobody is at comes first.

    Args:
        wanted: returns what can be run now and is not there yet, most urgent first.
        run: runs one and adds its line.
        locks: a folder for claims.
    """
    done = 0
    while most is None or done < most:
        todo = wanted()
        if not todo:
            return
        for study, setting in todo:
            with claimed(locks, study, setting) as mine:
                if not mine or lines.have(key(study, setting)):
                    continue
                run(study, setting)
                done += 1
                break
        else:
            time.sleep(WAIT_S)


@contextmanager
def claimed(folder: Path, study: str, setting: Setting) -> Iterator[bool]:
    """Yield whether no other process is at this run; the claim ends with the block, or with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(key(study, setting), sort_keys=True).encode()).hexdigest()[:24]
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def key(study: str, setting: Setting) -> dict[str, Any]:
    """Return what a run's line is found by."""
    return {"study": study, "setting": asdict(setting)}


def text(study: str, setting: Any) -> str:
    """Return a run as a text that two equal ones share; `setting` is as JSON has it, or as `asdict` has."""
    return json.dumps([study, setting], sort_keys=True)


def write_whole(folder: Path, name: str, content: str) -> None:
    """Write a file under `folder` so that whoever reads it meanwhile sees the old one or the new one."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{Path(name).name}.{os.getpid()}"
    fresh.write_text(content, encoding="utf-8")
    fresh.replace(folder / name)
