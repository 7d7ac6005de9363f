"""What a federation of real processes costs: ``python -m benchmarks.flower_fleet``, some minutes.

A SuperLink and a SuperNode for each hospital of examples/flower/hospitals.toml, deployed by `fedlora` commands over
TLS on this machine. Between each node and the SuperLink bytes are passed on and counted. Three tables: each message of
the last round against what Flower waits for by itself; the round's bytes at the socket against the protocol's own count
in metrics.jsonl; then one node, payloads of 1, 10 and 100 MB there and back (`flower_echo`). Wall times depend on what
else the machine does, so its load stands above them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no types

from benchmarks import flower_echo
from benchmarks.common import markdown
from benchmarks.pass_through import WAYS, PassThrough
from fedlora_priv.config import Experiment
from fedlora_priv.deploy import start
from fedlora_priv.federation.parties import NodeSettings
from tests.flower.deployment import change
from tests.flower.fleet import RUN, SUPERLINK, Fleet, fleet

HOSPITALS = Path(__file__).resolve().parents[1] / "examples" / "flower" / "hospitals.toml"
LOOKS = {
    "node for a message": 3.0,
    "node for a task": 0.1,
    "node for the answer": 0.5,
    "server for answers": 0.25,
}
"""Seconds between two looks (docs/flower.md): what a message waits at most, whatever is in it."""

FLOOR_S = sum(LOOKS.values())
MB = 10**6
SAMPLE_S = 0.25


class Cpu:
    """The CPU seconds of each process that SuperExecs below some SuperNodes have started, while a block runs.

    Args:
        parties: names of SuperNodes of the fleet.
    """

    def __init__(self, run: Fleet, parties: list[str]) -> None:
        self.of: dict[int, float] = {}
        self._run, self._parties = run, parties
        self._over = threading.Event()

    def __enter__(self) -> Cpu:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        """Look often: a process that has ended is there until its parent starts another."""
        starters: list[psutil.Process] = []
        while not self._over.wait(SAMPLE_S):
            with contextlib.suppress(psutil.Error, OSError):
                if len(starters) < len(self._parties):
                    every = [one for party in self._parties for one in self._run.processes(party)]
                    starters = [
                        one for one in every if any("flower-superexec" in part for part in one.cmdline())
                    ]
                for one in starters:
                    for child in one.children():
                        times = child.cpu_times()
                        self.of[child.pid] = times.user + times.system


@contextlib.contextmanager
def counted(run: Fleet) -> Iterator[list[PassThrough]]:
    """Put a pass-through between the SuperLink and each node."""
    port = start.node_link(NodeSettings.load(run.node(1))).port
    ways = [PassThrough(port) for _ in range(run.experiment.federation.clients)]
    for number, way in enumerate(ways, start=1):
        change(run.node(number), "flower", port=way.port)
    try:
        yield ways
    finally:
        for way in ways:
            way.close()


def federation(folder: Path, clients: int, rounds: int) -> Iterator[str]:
    """Yield the tables of a whole federation."""
    overrides = [f"federation.clients={clients}", f"federation.rounds={rounds}"]
    experiment = Experiment.load(HOSPITALS, [*overrides, 'engine.kind="flower"'])
    names = [f"client-{number}" for number in range(1, clients + 1)]
    with fleet(experiment, folder) as run, counted(run) as ways, Cpu(run, names) as cpu:
        run.start()
        if run.finished():
            raise SystemExit(run.tails())
        load = os.getloadavg()[1]
        metrics, events = (run.run_folder / "metrics.jsonl").read_text().splitlines(), run.events()
    steps = [step for step in steps_of(events) if step["round"] == rounds and step["name"] != "close"]
    yield f"\n{clients} SuperNodes, round {rounds} of {rounds}, {os.cpu_count()} cores, load {load:.0f}.\n"
    yield from messages(steps, events, cpu.of)
    yield ""
    yield from sizes(steps, ways, json.loads(metrics[rounds - 1]), clients)


def steps_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the server asked: round, name, begin and end."""
    found: list[dict[str, Any]] = []
    for event in events:
        number, _, name = event["step"].partition(".")
        if event["what"] == "asking":
            found.append({"round": int(number), "name": name, "began": event["at"]})
        elif event["what"] == "asked":
            found[-1]["ended"] = event["at"]
    return found


def messages(
    steps: list[dict[str, Any]], events: list[dict[str, Any]], cpu: Mapping[int, float]
) -> Iterator[str]:
    """Yield each message's wall time beside Flower's floor, and what its processes cost."""
    yield markdown(
        (
            "message",
            "wall time",
            "Flower's looks",
            "ratio",
            "until the last app has it",
            "CPU at a node, mean",
        )
    )
    yield markdown(("---",) * 6)
    total = 0.0
    for step in steps:
        inside = [one for one in events if step["began"] <= one["at"] <= step["ended"]]
        called = [one["at"] for one in inside if one["what"] == "called"]
        used = [cpu[one["pid"]] for one in inside if one["what"] == "answered" and one["pid"] in cpu]
        wall = step["ended"] - step["began"]
        total += wall
        yield markdown((
            step["name"], f"{wall:.1f} s", f"{FLOOR_S:.2f} s", f"{wall / FLOOR_S:.1f}",
            f"{max(called) - step['began']:.1f} s", f"{sum(used) / len(used):.2f} s" if used else "not seen",
        ))  # fmt: skip
    floor = FLOOR_S * len(steps)
    yield markdown(("the round", f"{total:.1f} s", f"{floor:.2f} s", f"{total / floor:.1f}", "", ""))


def sizes(
    steps: list[dict[str, Any]], ways: list[PassThrough], row: Mapping[str, Any], clients: int
) -> Iterator[str]:
    """Yield the round's bytes at the sockets beside the protocol's own count."""
    began, ended = steps[0]["began"], steps[-1]["ended"]
    yield markdown(
        (
            "all nodes, the whole round",
            "at the socket",
            "the protocol's count",
            "ratio",
            "a node and second beside it",
        )
    )
    yield markdown(("---",) * 5)
    for way in WAYS:
        at_socket = sum(one.count(way, began, ended) for one in ways)
        ours = sum(row[f"{way}loaded_bytes"].values())
        beside = (at_socket - ours) / clients / (ended - began)
        yield markdown((way, f"{at_socket:,}", f"{ours:,}", f"{at_socket / ours:.3f}", f"{beside:,.0f}"))


def payloads(folder: Path, megabytes: list[int], times: int) -> Iterator[str]:
    """Yield the table of payloads that go to one node and back."""
    experiment = Experiment.load(HOSPITALS, ['engine.kind="flower"'])
    with fleet(experiment, folder) as run, counted(run) as ways:
        run.extra |= {
            flower_echo.SIZES: json.dumps([size * MB for size in megabytes]),
            flower_echo.TIMES: str(times),
        }
        link, node = start.superlink(run.server), start.supernode(run.node(1))
        run._launch(SUPERLINK, link.arguments, link.environment)
        run.wait(lambda: run.call("node", "check", run.node(1)).returncode == 0, "the SuperLink answers")
        run.call("server", "admit", run.server)
        project = run.out / "echo" / "pyproject.toml"
        project.parent.mkdir()
        project.write_text(flower_echo.PROJECT)
        submit = start.at_server(run.server, "flwr", "run", str(project.parent), start.CONNECTION, "--stream")
        # Last, for every command of this package writes its own.
        for place in (run.server.parent / "flower", run.home(1) / "flower"):
            for command in (place / "bin").iterdir():
                command.write_text(
                    f'#!/bin/sh\nexec "{sys.executable}" -m {flower_echo.NAME} {command.name} "$@"\n'
                )
        run._launch(RUN, submit.arguments, submit.environment)
        run._launch("client-1", node.arguments, node.environment)
        run.finished()
        load = os.getloadavg()[1]
        said = [
            json.loads(line.partition(flower_echo.LINE)[2])
            for line in run.log(RUN).splitlines()
            if flower_echo.LINE in line
        ]
        if len(said) != times * len(megabytes):
            raise SystemExit(run.tails())
        yield f"\nOne node, there and back, mean of {times} one after the other, load {load:.0f}.\n"
        yield markdown(
            ("payload", "wall time", "Flower's looks", "ratio", "down at the socket", "up at the socket")
        )
        yield markdown(("---",) * 6)
        for size in megabytes:
            mine = [one for one in said if one["size"] == size * MB]
            wall = sum(one["ended"] - one["began"] for one in mine) / times
            up, down = (
                sum(ways[0].count(way, one["began"], one["ended"]) for one in mine) / times for way in WAYS
            )
            yield markdown((
                f"{size} MB", f"{wall:.1f} s", f"{FLOOR_S:.2f} s", f"{wall / FLOOR_S:.1f}",
                f"{down:,.0f} ({down / size / MB:.4f})", f"{up:,.0f} ({up / size / MB:.4f})",
            ))  # fmt: skip


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="the last is shown")
    parser.add_argument(
        "--megabytes", type=int, nargs="*", default=[1, 10, 100], help="none: leave that table out"
    )
    parser.add_argument("--only-payloads", action="store_true", help="leave the federation out")
    parser.add_argument("--times", type=int, default=2, help="messages of a size")
    parser.add_argument("--folder", type=Path, help="for what is temporary; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if not options.only_payloads:
            for line in federation(Path(folder) / "federation", options.clients, options.rounds):
                print(line, flush=True)
        if options.megabytes:
            for line in payloads(Path(folder) / "echo", options.megabytes, options.times):
                print(line, flush=True)


if __name__ == "__main__":
    main()
