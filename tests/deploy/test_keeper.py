"""The socket between a node's keeper and Flower's app: bytes go through, and nothing else can be had from it."""

from __future__ import annotations

import logging
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.deploy import keeper
from fedlora_priv.errors import EnvironmentProblem, FederationError


class Counting:
    """A client that counts its messages and suspends the count."""

    client_id = "client-3"

    def __init__(self) -> None:
        self.count = 0

    def resume(self, suspended: bytes) -> None:
        self.count = int.from_bytes(suspended, "big")

    def handle(self, data: bytes) -> bytes:
        if data == b"fail":
            raise ValueError("a secret row")
        self.count += 1
        return data[::-1]

    def suspend(self) -> bytes:
        return self.count.to_bytes(2, "big")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The socket of a keeper that serves until the test has ended."""
    socket_path, ended, client = tmp_path / keeper.SOCKET, threading.Event(), Counting()
    sign: Callable[[int, int], bytes] = lambda run, node: f"{run}/{node}".encode()  # noqa: E731
    arguments: tuple[Any, ...] = (socket_path, client, sign, lambda: not ended.is_set())
    thread = threading.Thread(target=keeper.serve, args=arguments, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not socket_path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # between bind and listen
    yield socket_path
    ended.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert not socket_path.exists()


def test_bytes_go_through_and_the_round_in_progress_with_them(path: Path) -> None:
    big = bytes(range(256)) * 20_000
    suspended, answer = keeper.ask(path, keeper.ANSWER, (7).to_bytes(2, "big"), big)
    assert answer == big[::-1]
    assert suspended == (8).to_bytes(2, "big")
    assert keeper.ask(path, keeper.ANSWER, suspended, b"") == [(9).to_bytes(2, "big"), b""]
    where = ((2**63 + 5).to_bytes(8, "big"), (77).to_bytes(8, "big"))
    assert keeper.ask(path, keeper.GREET, *where) == [b"client-3", f"{2**63 + 5}/77".encode()]


def test_an_error_has_a_name_and_no_text(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(FederationError) as refused:
        keeper.ask(path, keeper.ANSWER, b"", b"fail")
    assert "ValueError" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert keeper.ask(path, keeper.ANSWER, b"", b"ab") == [(1).to_bytes(2, "big"), b"ba"]  # it goes on


@pytest.mark.parametrize(
    "asked",
    [
        (b"X", b"", b""),
        (keeper.ANSWER, b""),
        (keeper.GREET, b""),
        (keeper.ANSWER, b"", b"", b"", b""),
        (b"",),
    ],
)
def test_what_no_app_asks_for_is_refused(path: Path, asked: tuple[bytes, ...]) -> None:
    with pytest.raises((FederationError, EnvironmentProblem)):
        keeper.ask(path, *asked)
    assert keeper.ask(path, keeper.ANSWER, b"", b"ab")[1] == b"ba"


@pytest.mark.parametrize(
    "raw", [b"", bytes(7), (2**60).to_bytes(8, "big"), (1).to_bytes(8, "big") + b"\xff" * 8]
)
def test_broken_frames_neither_stop_it_nor_make_it_allocate(path: Path, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        connection.recv(64)
    assert keeper.ask(path, keeper.ANSWER, b"", b"ab")[1] == b"ba"


def test_only_the_owner_may_ask(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_keeper_it_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="fedlora node start"):
        keeper.ask(tmp_path / keeper.SOCKET, keeper.GREET, b"", b"")
