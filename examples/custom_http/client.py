"""One client over HTTP: ``python -m examples.custom_http.client FOLDER PORT``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import httpx2

from examples.custom_system.agreement import MAX_MESSAGE
from examples.custom_system.participant import Participant
from protocols.errors import ProtocolError

SERVER_S = 60.0
"""Seconds of silence after which a client gives the server up."""
PAUSE_S = 0.1
"""Seconds before a client asks again, whatever a server does that should have kept the request open."""


def exchange(http: httpx2.Client, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Return the status and the body of a response, which is read up to a limit only.

    Raises:
        httpx2.HTTPError: the server is gone, or sends more than anybody may.
    """
    with http.stream(method, path, content=body) as response:
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_MESSAGE:
                raise httpx2.RequestError("the server sends more than anybody may")
        return response.status_code, content


def take_part(participant: Participant, http: httpx2.Client, step: bool) -> None:
    """Ask for work and answer, until there is none; with `step`, each answer waits for a line of input."""
    while True:
        status, request = exchange(http, "GET", f"/clients/{participant.name}/request")
        if status == 410 and participant.phase != "done":
            raise SystemExit(f"{participant.name}: the session went on without it")
        if status == 410:
            return
        if status == 204:
            time.sleep(PAUSE_S)
            continue
        if status != 200:
            raise SystemExit(f"{participant.name}: the server answers with status {status}")
        if step:
            print(participant.phase, flush=True)
            sys.stdin.readline()
        exchange(http, "POST", f"/clients/{participant.name}/answer", participant.answer(request))


def main() -> None:
    """Take part in one session."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--step", action="store_true", help="wait for a line of input before each answer")
    options = parser.parse_args()
    participant = Participant(options.folder)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{options.port}", timeout=SERVER_S) as http:
            take_part(participant, http, options.step)
    except (ProtocolError, httpx2.HTTPError) as error:
        if participant.phase != "done":
            raise SystemExit(f"{participant.name}: {type(error).__name__}: {error}") from None


if __name__ == "__main__":
    main()
