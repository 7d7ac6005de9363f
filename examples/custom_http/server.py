"""The server of one session behind Starlette and uvicorn: ``python -m examples.custom_http.server FOLDER``.

GET  /clients/NAME/request   200 what NAME is to answer now, 204 nothing yet (ask again), 410 nothing any more
POST /clients/NAME/answer    204 taken, 400 refused for good, 409 not waited for, 413 too long
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from examples.custom_system.agreement import MAX_MESSAGE, parameters
from examples.custom_system.outcome import write_outcome
from protocols.errors import RemoteProtocolError, SessionAborted
from protocols.secagg.identity import Roster
from protocols.secagg.interface import SecAggResult
from protocols.secagg.server import SecAggServer

POLL_S = 10.0
"""Seconds that a request for work stays open before it is answered with "nothing yet"."""
LEAVE_S = 5
"""Seconds that open requests have to end when the session is over. A stranger may never end its own."""


class SessionOverHttp:
    """One session: what each client is asked now, and who has still to answer.

    Args:
        start_s: seconds that clients have to come and answer the proposal.
        phase_s: seconds that they have in every later phase.
    """

    def __init__(self, server: SecAggServer, start_s: float, phase_s: float) -> None:
        self._server, self._start_s, self._phase_s = server, start_s, phase_s
        self._asked: dict[str, bytes] = {}
        self._missing: set[str] = set()
        self._over = False
        self._changed = asyncio.Condition()
        self.app = Starlette(
            routes=[
                Route("/clients/{name}/request", self._request),
                Route("/clients/{name}/answer", self._answer, methods=["POST"]),
            ]
        )

    async def run(self) -> SecAggResult:
        """Return the sum over the clients that stay.

        Raises:
            SessionAborted: too few did.
        """
        inbox, wait_s = self._server.start(), self._start_s
        try:
            while inbox:
                async with self._changed:
                    self._asked, self._missing = inbox, set(inbox)
                    self._changed.notify_all()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait_for(lambda: not self._missing), wait_s)
                    inbox, wait_s = self._server.advance(), self._phase_s
        finally:
            async with self._changed:
                self._over = True
                self._changed.notify_all()
        return self._server.result()

    async def _request(self, request: Request) -> Response:
        """Hand out what a client is to answer, as soon as there is something."""
        name = request.path_params["name"]
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._concerns(name)), POLL_S)
            if name in self._missing and not self._over:
                return Response(self._asked[name], media_type="application/octet-stream")
            return Response(status_code=410 if self._is_out(name) else 204)

    async def _answer(self, request: Request) -> Response:
        """Take a client's answer."""
        name = request.path_params["name"]
        body = bytearray()
        async for chunk in request.stream():  # Content-Length is not believed
            body += chunk
            if len(body) > MAX_MESSAGE:
                return Response(status_code=413)
        async with self._changed:
            if name not in self._missing or self._over:
                return Response(status_code=409)
            self._missing.discard(name)
            self._changed.notify_all()
            try:
                self._server.receive(name, bytes(body))
            except RemoteProtocolError as error:
                return Response(str(error), status_code=400)
            return Response(status_code=204)

    def _concerns(self, name: str) -> bool:
        """Whether there is anything to tell a client."""
        return name in self._missing or self._is_out(name)

    def _is_out(self, name: str) -> bool:
        """Whether a client has nothing to do any more: the session is over, or it is not in it."""
        return self._over or (bool(self._asked) and name not in self._asked) or name in self._server.lost


async def main() -> None:
    """Serve one session on a free port of the loopback interface, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start-s", type=float, default=60.0)
    parser.add_argument("--phase-s", type=float, default=5.0)
    options = parser.parse_args()
    roster = Roster.load(options.folder / "roster.json")
    server = SecAggServer(parameters=parameters(os.urandom(32)), roster=roster)
    session = SessionOverHttp(server, options.start_s, options.phase_s)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            session.app, log_level="warning", lifespan="off", timeout_graceful_shutdown=LEAVE_S
        )
        web = uvicorn.Server(config)
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        print(f"port {listener.getsockname()[1]}", flush=True)
        try:
            write_outcome(options.folder, await session.run())
        except SessionAborted as aborted:
            raise SystemExit(str(aborted)) from None
        finally:
            web.should_exit = True
            await serving


if __name__ == "__main__":
    asyncio.run(main())
