"""One client over TCP: ``python -m examples.custom_system.client FOLDER PORT``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from examples.custom_system.frames import FrameError, read_frame, write_frame
from examples.custom_system.participant import Participant
from protocols.errors import ProtocolError

SERVER_S = 60.0
"""Seconds of silence after which a client gives the server up."""


async def take_part(participant: Participant, port: int, step: bool) -> None:
    """Answer the server until it closes the connection; with `step`, each answer waits for a line of input."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await write_frame(writer, participant.name.encode())
    while True:
        try:
            async with asyncio.timeout(SERVER_S):
                request = await read_frame(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            if participant.phase == "done":
                return
            raise
        if step:
            print(participant.phase, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        await write_frame(writer, participant.answer(request))


def main() -> None:
    """Take part in one session."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--step", action="store_true", help="wait for a line of input before each answer")
    options = parser.parse_args()
    participant = Participant(options.folder)
    try:
        asyncio.run(take_part(participant, options.port, options.step))
    except (ProtocolError, FrameError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        raise SystemExit(f"{participant.name}: {type(error).__name__}: {error}") from None


if __name__ == "__main__":
    main()
