"""The server of one session over TCP: ``python -m examples.custom_system.server FOLDER``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from pathlib import Path

from examples.custom_system.agreement import CLIENTS, parameters
from examples.custom_system.frames import FrameError, read_frame, write_frame
from examples.custom_system.outcome import write_outcome
from protocols.errors import RemoteProtocolError, SessionAborted
from protocols.secagg.identity import MAX_ID_BYTES, Roster
from protocols.secagg.interface import SecAggResult
from protocols.secagg.server import SecAggServer

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Transport:
    """The newest connection of each client. A client that comes back replaces its old connection.

    Args:
        phase_s: seconds that a client has to answer in any phase; until the first one, to come at all.
        grace_s: seconds that a client has to come back after its connection broke.
    """

    def __init__(self, phase_s: float, grace_s: float) -> None:
        self._phase_s, self._grace_s = phase_s, grace_s
        self._waiting: dict[str, asyncio.Queue[Connection]] = {name: asyncio.Queue(1) for name in CLIENTS}
        self._seen: set[str] = set()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a new connection: its first frame says whose it is."""
        try:
            async with asyncio.timeout(self._phase_s):
                name = (await read_frame(reader, MAX_ID_BYTES)).decode(errors="replace")
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, FrameError):
            name = ""
        except asyncio.CancelledError:  # the session is over; asyncio would print where every stranger stood
            name = ""
        if name not in self._waiting:
            writer.close()
            return
        self._seen.add(name)
        if self._waiting[name].full():
            self._waiting[name].get_nowait()[1].close()
        self._waiting[name].put_nowait((reader, writer))

    async def ask(self, name: str, message: bytes) -> bytes | None:
        """Return a client's answer to a message, or None if there is none in time."""
        try:
            async with asyncio.timeout(self._phase_s):
                while True:
                    wait_s = self._grace_s if name in self._seen else self._phase_s
                    connection = await asyncio.wait_for(self._waiting[name].get(), wait_s)
                    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                        return await self._exchange(name, connection, message)
        except (TimeoutError, FrameError):
            return None

    async def _exchange(self, name: str, connection: Connection, message: bytes) -> bytes:
        """Send a message on a connection and return what comes back; keep the connection only if that went well."""
        reader, writer = connection
        try:
            await write_frame(writer, message)
            answer = await read_frame(reader)
        except BaseException:  # being cancelled by the timeout included
            writer.close()
            raise
        if self._waiting[name].full():  # the client has come back on another one
            writer.close()
        else:
            self._waiting[name].put_nowait(connection)
        return answer


async def run_session(server: SecAggServer, transport: Transport) -> SecAggResult:
    """Return the sum over the clients that stay.

    Raises:
        SessionAborted: too few did.
    """

    async def ask(name: str, message: bytes) -> None:
        """Hand a client's answer on as it comes, so that no vector waits for the others."""
        answer = await transport.ask(name, message)
        try:
            if answer is not None:
                server.receive(name, answer)
        except RemoteProtocolError as error:
            print(f"lost {error}", flush=True)

    inbox = server.start()
    while inbox:
        await asyncio.gather(*(ask(name, message) for name, message in inbox.items()))
        inbox = server.advance()
    return server.result()


async def main() -> None:
    """Serve one session on a free port of the loopback interface, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phase-s", type=float, default=20.0)
    parser.add_argument("--grace-s", type=float, default=2.0)
    options = parser.parse_args()
    transport = Transport(options.phase_s, options.grace_s)
    listener = await asyncio.start_server(transport.join, "127.0.0.1", 0)
    print(f"port {listener.sockets[0].getsockname()[1]}", flush=True)
    session = SecAggServer(
        parameters=parameters(os.urandom(32)),
        roster=Roster.load(options.folder / "roster.json"),
    )
    try:
        result = await run_session(session, transport)
    except SessionAborted as aborted:
        raise SystemExit(str(aborted)) from None
    finally:
        listener.close()
    write_outcome(options.folder, result)


if __name__ == "__main__":
    asyncio.run(main())
