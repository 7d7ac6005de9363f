"""Processes that carry a mark in their environment: found, killed, and not outliving whoever started them.

As a program, ``python processes.py MARK`` waits until its standard input ends, which it does whatever becomes of the
process at the other end of the pipe, then kills what carries the mark.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

MARK = "FLEET_MARK"
KILL_WITHIN_S = 300.0


def marked(mark: str) -> list[psutil.Process]:
    """Processes that live and whose mark begins like this, whatever became of their parents and groups."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if one.environ().get(MARK, "").startswith(mark) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def command(process: psutil.Process) -> list[str]:
    """A process's arguments; none if it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def kill_all(living: Callable[[], list[psutil.Process]]) -> None:
    """kill -9 whatever `living` returns, until it returns nothing: what is killed may just have started another."""
    deadline = time.monotonic() + KILL_WITHIN_S
    while found := living():
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        time.sleep(0.05)  # waiting for them would take their exit status from whoever has started them
        if time.monotonic() > deadline:
            raise AssertionError(f"cannot be killed: {found}")


@contextlib.contextmanager
def guarded(mark: str) -> Iterator[None]:
    """Kill what carries the mark when the block ends, or this process does, be it by kill -9."""
    command = [sys.executable, str(Path(__file__).resolve()), mark]
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, start_new_session=True
    )  # `timeout` ends a whole group
    assert guard.stdin is not None
    try:
        yield
    finally:
        kill_all(lambda: marked(mark))
        guard.stdin.close()
        guard.wait(timeout=KILL_WITHIN_S)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_all(lambda: marked(sys.argv[1]))
