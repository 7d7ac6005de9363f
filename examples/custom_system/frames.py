"""Messages on a TCP stream: four bytes of length, then that many bytes, never more than the reader allows."""

from __future__ import annotations

import asyncio

from examples.custom_system.agreement import MAX_MESSAGE


class FrameError(Exception):
    """The peer claims a length that nobody may send; its stream cannot be read any further."""


async def write_frame(writer: asyncio.StreamWriter, message: bytes) -> None:
    """Send one message."""
    writer.write(len(message).to_bytes(4, "big") + message)
    await writer.drain()


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_MESSAGE) -> bytes:
    """Return one message of at most `limit` bytes; nothing is allocated before the length was checked.

    Raises:
        FrameError: the length is above the limit.
        asyncio.IncompleteReadError: the peer is gone.
    """
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > limit:
        raise FrameError(f"a frame of {length} bytes; {limit} are allowed")
    return await reader.readexactly(length)
