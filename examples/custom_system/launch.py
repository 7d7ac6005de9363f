"""A made-up federation: its folders, its processes, and two of them that are killed on the way."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from examples.custom_system.agreement import CLIENTS, DIMENSION
from examples.custom_system.outcome import compare
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import PHASES

Process = subprocess.Popen[str]


def prepare(folder: Path, names: Iterable[str] = CLIENTS) -> None:
    """Make every party's folder: an identity and a vector each, and a copy of the roster for everybody.

    In a real federation each client makes its own identity, and the roster travels by another way than the
    server: whoever can change it can play everybody.
    """
    identities = {name: Identity.generate() for name in names}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    for index, (name, identity) in enumerate(identities.items()):
        home = folder / name
        home.mkdir(parents=True, mode=0o700)
        (home / "identity.key").write_bytes(identity.to_private_bytes())
        (home / "identity.key").chmod(0o600)
        roster.save(home / "roster.json")
        np.save(
            home / "vector.npy", np.random.default_rng(index).uniform(-1, 1, DIMENSION).astype(np.float32)
        )
    (folder / "server").mkdir()
    roster.save(folder / "server" / "roster.json")


class Processes:
    """The processes of one run; all of them are stopped at the end, each by its own handle."""

    def __init__(self) -> None:
        self._running: list[Process] = []

    def start(self, module: str, *arguments: object) -> Process:
        """Start ``python -m module arguments`` with pipes for its input and output."""
        command = [sys.executable, "-m", module, *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  (this folder's own programs)
        self._running.append(process)
        return process

    def stop(self) -> None:
        """Kill what still runs, and close all pipes."""
        for process in self._running:
            process.kill()
            process.communicate()


@contextmanager
def processes() -> Iterator[Processes]:
    """Give a `Processes` that leaves nothing behind."""
    started = Processes()
    try:
        yield started
    finally:
        started.stop()


def first_line(process: Process) -> str:
    """Return the first line that a process prints."""
    assert process.stdout is not None  # noqa: S101  (started with a pipe)
    return process.stdout.readline().strip()


def kill_before(process: Process, phase: str) -> None:
    """Let a client that was started with ``--step`` answer until its turn in `phase` comes, and ``kill -9`` it."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  (pipes, see above)
    for line in process.stdout:
        if line.strip() == phase:
            process.kill()
            process.wait()
            return
        process.stdin.write("\n")
        process.stdin.flush()
    raise RuntimeError(f"the client never came to phase {phase}")


def _turn(text: str) -> dict[str, str]:
    """Read whose turn in which phase is meant."""
    name, _, phase = text.partition(":")
    if text and (name not in CLIENTS or phase not in PHASES):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no turn: say client-2:mask, or another client or phase"
        )
    return {name: phase} if text else {}


def run_federation(description: str | None, *, server: str, client: str, wait_option: str) -> None:
    """Run one session of two modules as its server and clients, as the command line says, and compare its sum.

    Args:
        wait_option: the server's option for how long it waits for a client that is gone.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="is made, and must not exist")
    for option, default in (("--kill", "client-2:mask"), ("--restart", "client-4:confirm")):
        parser.add_argument(option, default=default, type=_turn, metavar="CLIENT:PHASE", help="empty: nobody")
    parser.add_argument("--wait-s", type=float, default=5.0, help="for a killed client to come back")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already: name a folder to be made")
    prepare(options.folder)
    phases = {**options.kill, **options.restart}
    with processes() as running, ThreadPoolExecutor() as pool:
        serving = running.start(server, options.folder / "server", wait_option, options.wait_s)
        port = first_line(serving).removeprefix("port ")

        def kill(name: str) -> None:
            """Start a client, kill it when its turn comes, and perhaps start it again."""
            kill_before(running.start(client, options.folder / name, port, "--step"), phases[name])
            print(f"killed {name} when it was about to {phases[name]}", flush=True)
            if name in options.restart:
                running.start(client, options.folder / name, port)

        killed = [pool.submit(kill, name) for name in phases]
        for name in CLIENTS:
            if name not in phases:
                running.start(client, options.folder / name, port)
        if serving.wait() != 0:
            raise SystemExit("the session was aborted")
        for future in killed:
            future.result()
    compare(options.folder)
