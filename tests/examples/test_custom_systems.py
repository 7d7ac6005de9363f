"""The two example federations run in processes of their own on the loopback interface, with clients killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examples.custom_system.agreement import CLIENTS, MAX_MESSAGE, parameters
from examples.custom_system.frames import FrameError, read_frame, write_frame
from examples.custom_system.launch import prepare
from examples.custom_system.participant import Participant
from examples.custom_system.server import Transport
from protocols.errors import GuardViolation, PolicyViolation, ProtocolError, SessionAborted
from protocols.secagg.codec import encode
from protocols.secagg.identity import Roster
from protocols.secagg.messages import Proposal
from protocols.secagg.server import SecAggServer

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


def run(system: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end, or end it and all that it started."""
    command = [sys.executable, "-m", f"examples.{system}.run", str(folder), *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


def outcome(folder: Path) -> dict[str, object]:
    """What the server wrote."""
    written: dict[str, object] = json.loads((folder / "server" / "outcome.json").read_text(encoding="utf-8"))
    return written


@pytest.mark.long
@pytest.mark.parametrize(("system", "wait_s"), [("custom_system", "0.5"), ("custom_http", "12")])
def test_a_killed_client_is_lost_and_the_sum_is_that_of_the_others(
    system: str, wait_s: str, tmp_path: Path
) -> None:
    if system == "custom_http":
        pytest.importorskip("starlette", reason="the extra [examples] is not installed")
        pytest.importorskip("uvicorn", reason="the extra [examples] is not installed")
    folder = tmp_path / "federation"
    done = run(system, folder, "--kill", "client-2:mask", "--restart", "", "--wait-s", wait_s)
    assert done.returncode == 0, done.stderr
    assert "killed client-2 when it was about to mask" in done.stdout
    assert "exact" in done.stdout
    assert outcome(folder)["survivors"] == [name for name in CLIENTS if name != "client-2"]
    assert outcome(folder)["lost"] == {"client-2": "mask"}


@pytest.mark.long
@pytest.mark.parametrize(("system", "phase"), [("custom_system", "confirm"), ("custom_http", "mask")])
def test_a_restarted_client_goes_on_where_it_was(system: str, phase: str, tmp_path: Path) -> None:
    if system == "custom_http":
        pytest.importorskip("starlette", reason="the extra [examples] is not installed")
        pytest.importorskip("uvicorn", reason="the extra [examples] is not installed")
    folder = tmp_path / "federation"
    done = run(system, folder, "--kill", "", "--restart", f"client-4:{phase}", "--wait-s", "60")
    assert done.returncode == 0, done.stderr
    assert outcome(folder)["survivors"] == list(CLIENTS)
    assert outcome(folder)["lost"] == {}


def test_a_run_that_loses_too_many_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    prepare(folder)
    command = [
        sys.executable,
        "-m",
        "examples.custom_system.server",
        str(folder / "server"),
        "--phase-s",
        "0.1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "aborted in phase advertise" in done.stderr


@pytest.mark.parametrize(
    "options", [["--kill", "client-9:mask"], ["--restart", "client-1:lunch"], ["--kill", "x"]]
)
def test_a_turn_that_does_not_exist_is_refused(options: list[str], tmp_path: Path) -> None:
    done = run("custom_system", tmp_path / "federation", *options)
    assert done.returncode == 2
    assert "is no turn" in done.stderr
    assert not (tmp_path / "federation").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    done = run("custom_system", tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_neither_torch_nor_the_rest_of_this_project_is_loaded() -> None:
    code = (
        "import sys, examples.custom_system.client, examples.custom_system.server\n"
        "sys.exit(', '.join({'torch', 'fedlora_priv', 'accounting', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# frames and connections


def frame(data: bytes, limit: int = MAX_MESSAGE) -> bytes:
    """What a reader makes of a stream that ends after `data`."""

    async def read() -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_frame(reader, limit)

    return asyncio.run(read())


def test_a_frame_is_a_length_and_so_many_bytes() -> None:
    assert frame(b"\x00\x00\x00\x03abcdef") == b"abc"
    assert frame(b"\x00\x00\x00\x00") == b""
    for cut in (b"", b"\x00\x00", b"\x00\x00\x00\x03ab"):
        with pytest.raises(asyncio.IncompleteReadError):
            frame(cut)


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 2**31, 2**32 - 1])
def test_a_frame_that_claims_too_much_is_not_read(length: int) -> None:
    with pytest.raises(FrameError):
        frame(length.to_bytes(4, "big") + bytes(10))


def test_strangers_and_liars_get_nowhere_and_a_later_connection_counts() -> None:
    async def scenario() -> None:
        transport = Transport(phase_s=20.0, grace_s=0.2)
        listener = await asyncio.start_server(transport.join, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]

        async def connect(hello: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello)
            await writer.drain()
            return reader, writer

        for hello in (b"\x00\x00\x00\x07mallory", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\xff\xfe"):
            reader, writer = await connect(hello)
            assert await reader.read() == b""  # closed on it
            writer.close()
        old_reader, old_writer = await connect(b"\x00\x00\x00\x08client-1")
        reader, writer = await connect(b"\x00\x00\x00\x08client-1")
        assert await old_reader.read() == b""  # replaced
        old_writer.close()
        asked = asyncio.create_task(transport.ask("client-1", b"question"))
        assert await read_frame(reader) == b"question"
        await write_frame(writer, b"answer")
        assert await asked == b"answer"
        asked = asyncio.create_task(transport.ask("client-1", b"again"))
        assert await read_frame(reader) == b"again"
        writer.write(b"\xff\xff\xff\xff")  # a length that nobody may send
        assert await asked is None
        writer.close()
        assert await transport.ask("client-1", b"too late") is None  # nobody came back in time
        listener.close()
        await listener.wait_closed()

    asyncio.run(scenario())


def test_a_stranger_that_says_nothing_leaves_nothing_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        transport = Transport(phase_s=60.0, grace_s=60.0)
        listener = await asyncio.start_server(transport.join, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x00\x00")
        await writer.drain()
        await asyncio.sleep(0.05)  # until it is waited for; then the session ends
        listener.close()
        writer.close()

    asyncio.run(scenario())
    assert caplog.records == []


# the client that outlives its process


@pytest.fixture
def federation(tmp_path: Path) -> tuple[Path, SecAggServer]:
    """Folders, and a server that has made its proposal."""
    prepare(tmp_path / "f")
    roster = Roster.load(tmp_path / "f" / "server" / "roster.json")
    return tmp_path / "f", SecAggServer(parameters=parameters(bytes(32)), roster=roster)


def test_the_same_request_is_answered_with_the_same_bytes_after_a_restart(
    federation: tuple[Path, SecAggServer],
) -> None:
    folder, server = federation
    inbox = server.start()
    while inbox:
        for name, request in inbox.items():
            answer = Participant(folder / name).answer(request)  # a new process for every message
            assert Participant(folder / name).answer(request) == answer
            server.receive(name, answer)
        inbox = server.advance()
    assert list(server.result().survivors) == list(CLIENTS)
    assert {Participant(folder / name).phase for name in CLIENTS} == {"done"}
    state = folder / "client-1" / "state"
    assert state.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("changes", [{"round": 2}, {"exchange": 1}, {"bound": 5}])
def test_the_round_and_the_bound_are_the_clients_own(
    federation: tuple[Path, SecAggServer], changes: dict[str, int]
) -> None:
    folder, _ = federation
    proposal = encode(Proposal(replace(parameters(bytes(32)), **changes)))
    with pytest.raises(PolicyViolation, match="than this client's"):
        Participant(folder / "client-1").answer(proposal)


def test_a_refusal_outlives_a_restart(federation: tuple[Path, SecAggServer]) -> None:
    folder, server = federation
    proposal = server.start()["client-1"]
    home = folder / "client-1"
    with pytest.raises(ProtocolError):
        Participant(home).answer(proposal[:-1])
    assert Participant(home).phase == "refused"
    with pytest.raises(ProtocolError):
        Participant(home).answer(proposal)


def test_a_state_that_was_rolled_back_is_stopped_by_the_guard(
    federation: tuple[Path, SecAggServer],
) -> None:
    folder, server = federation
    proposal = server.start()["client-1"]
    home = folder / "client-1"
    Participant(home).answer(proposal)
    (home / "state").unlink()  # as if a disk image of earlier had come back, but for the guard
    with pytest.raises(GuardViolation):
        Participant(home).answer(proposal)


def test_http_says_what_became_of_an_answer(federation: tuple[Path, SecAggServer]) -> None:
    pytest.importorskip("starlette", reason="the extra [examples] is not installed")
    pytest.importorskip("uvicorn", reason="the extra [examples] is not installed")
    import httpx2

    from examples.custom_http.server import SessionOverHttp

    folder, server = federation

    async def scenario() -> None:
        session = SessionOverHttp(server, start_s=60.0, phase_s=0.1)
        running = asyncio.create_task(session.run())
        await asyncio.sleep(0)
        transport = httpx2.ASGITransport(app=session.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://session") as http:
            asked = await http.get("/clients/client-1/request")
            assert asked.status_code == 200
            answer = Participant(folder / "client-1").answer(asked.content)
            answered = "/clients/client-1/answer"
            assert (await http.post(answered, content=bytes(MAX_MESSAGE + 1))).status_code == 413
            assert (await http.post(answered, content=answer)).status_code == 204
            assert (await http.post(answered, content=answer)).status_code == 409
            bad = await http.post("/clients/client-2/answer", content=answer)
            assert (bad.status_code, bad.text[:9]) == (400, "client-2:")
            assert (await http.get("/clients/client-2/request")).status_code == 410
            assert (await http.get("/clients/mallory/request")).status_code == 410
            assert (await http.post("/clients/mallory/answer", content=b"x")).status_code == 409
            for name in CLIENTS[2:5]:
                proposal = (await http.get(f"/clients/{name}/request")).content
                await http.post(
                    f"/clients/{name}/answer", content=Participant(folder / name).answer(proposal)
                )
            garbage = await http.post("/clients/client-6/answer", content=b"")
            assert garbage.status_code == 400
            with pytest.raises(SessionAborted, match="aborted in phase share"):
                await running  # four are left, and nobody shares within 0.1 s
            assert (await http.get("/clients/client-1/request")).status_code == 410

    asyncio.run(scenario())


def test_an_http_server_that_sends_too_much_is_not_read_to_its_end() -> None:
    import httpx2

    from examples.custom_http.client import exchange

    def serve(size: int) -> httpx2.Client:
        transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=bytes(size)))
        return httpx2.Client(transport=transport, base_url="http://session")

    with serve(MAX_MESSAGE) as http:
        assert exchange(http, "GET", "/clients/client-1/request") == (200, bytes(MAX_MESSAGE))
    with serve(MAX_MESSAGE + 1) as http, pytest.raises(httpx2.HTTPError, match="more than anybody may"):
        exchange(http, "GET", "/clients/client-1/request")


def test_what_an_http_server_says_to_an_answer_is_not_read_to_its_end(
    federation: tuple[Path, SecAggServer],
) -> None:
    import httpx2

    from examples.custom_http.client import take_part

    folder, server = federation
    proposal = server.start()["client-1"]
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += MAX_MESSAGE
            yield bytes(MAX_MESSAGE)

    def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=proposal if request.method == "GET" else endless())

    with (
        httpx2.Client(transport=httpx2.MockTransport(handle), base_url="http://session") as http,
        pytest.raises(httpx2.HTTPError, match="more than anybody may"),
    ):
        take_part(Participant(folder / "client-1"), http, step=False)
    assert sent <= 4 * MAX_MESSAGE


def test_an_http_server_cannot_keep_a_client_busy(
    federation: tuple[Path, SecAggServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2

    from examples.custom_http import client

    folder, _ = federation
    pauses: list[float] = []
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    for last, said in ((500, "status 500"), (302, "status 302"), (410, "went on without it")):
        statuses = iter((204, 204, last))
        transport = httpx2.MockTransport(lambda request, statuses=statuses: httpx2.Response(next(statuses)))
        with (
            httpx2.Client(transport=transport, base_url="http://session") as http,
            pytest.raises(SystemExit, match=said),
        ):
            client.take_part(Participant(folder / "client-1"), http, step=False)
    assert pauses == [client.PAUSE_S] * 6


@pytest.mark.long
def test_a_stranger_that_never_ends_its_request_does_not_keep_the_http_server(tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra [examples] is not installed")
    pytest.importorskip("uvicorn", reason="the extra [examples] is not installed")
    prepare(tmp_path / "f")
    command = [sys.executable, "-m", "examples.custom_http.server", str(tmp_path / "f" / "server")]
    process = subprocess.Popen(
        [*command, "--start-s", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = int(process.stdout.readline().removeprefix("port "))
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"POST /clients/x/answer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 1
    assert "aborted in phase advertise" in errors
