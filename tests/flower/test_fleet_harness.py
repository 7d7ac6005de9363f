"""The harness of federations of processes: what it starts ends with it, and what it looks for it would find."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flower.fleet import ROOT, Fleet
from tests.flower.processes import MARK, guarded, kill_all, marked

WAIT_S = 300.0
BELOW = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', '{}'], start_new_session=True)"
SLEEPER = f"{BELOW.format('import time; time.sleep(900)')}; print('up', flush=True); p.wait()"
"""A process with one below it that has left its group and session."""

KILLED = """
import os, signal, subprocess, sys
from tests.flower.processes import MARK, guarded
mark, sleeper = sys.argv[1:]
with guarded(mark):
    below = subprocess.Popen([sys.executable, "-c", sleeper], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE)
    below.stdout.readline()
    print("up", flush=True)
    KILL
"""
"""A test that is killed while what it has started runs."""

TELEMETRY = """
import socket
from flwr.supercore import telemetry
socket.setdefaulttimeout(1)
telemetry.TELEMETRY_EVENTS_URL = "https://telemetry.invalid/"
telemetry.create_event(telemetry.EventType.PING, None)
"""


def test_killing_reaches_what_has_left_the_group() -> None:
    mark = f"test-{os.getpid()}-a"
    environment = {**os.environ, MARK: f"{mark}/x/"}
    with guarded(mark):
        process = subprocess.Popen([sys.executable, "-c", SLEEPER], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        assert len(marked(mark)) == 2
        assert not marked(f"{mark}/y/")
        kill_all(lambda: marked(f"{mark}/x/"))
        assert not marked(mark)
    process.stdout.close()
    assert process.wait(timeout=WAIT_S) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("kill", "by"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
        ("os.killpg(0, signal.SIGTERM)", signal.SIGTERM),  # as `timeout` does
    ],
)
def test_nothing_outlives_a_test_that_is_killed(kill: str, by: signal.Signals) -> None:
    mark = f"test-{os.getpid()}-b"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED.replace("KILL\n", f"{kill}\n"), mark, SLEEPER],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == -by
    assert done.stdout == b"up\n"
    deadline = time.monotonic() + WAIT_S
    while marked(mark):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_that_would_call_out_is_noticed(tmp_path: Path) -> None:
    """Flower's own telemetry, with its switch on: what no process of a federation may do."""
    fleet = Fleet(tmp_path, None)  # type: ignore[arg-type]  # nothing is deployed
    fleet.trace.mkdir()
    for switch, expected in (("0", set()), ("1", {"telemetry.invalid"})):
        environment = fleet._environment(
            "x", {"FLWR_TELEMETRY_ENABLED": switch, "FLWR_HOME": str(tmp_path), "no_proxy": "*"}
        )
        subprocess.run(
            [sys.executable, "-c", TELEMETRY],
            env=environment,
            check=True,
            capture_output=True,
            timeout=WAIT_S,
        )
        assert {host for _, host, _ in fleet.calls()} == expected
