"""What Flower makes of a message of 1, 10 and 100 MB: ``python benchmarks/flower_payloads.py``.

Flower's own code packs a message, stores it in the SuperLink's database and reads it back, as its SuperLink and
SuperNode do; no network. Beside it stand the bytes that `communication.meter` counts for the same message. Times are
CPU time of one run.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.task_identity import TaskIdentity

from fedlora_priv.communication.meter import sort
from fedlora_priv.engines.flower.records import MESSAGE, from_record, to_record
from fedlora_priv.federation import wire

MB = 10**6
SIZES = (1, 10, 100)
RUN = 77
TIMES = 3
"""How many messages of a size, one after the other, as in a round."""


@contextmanager
def timed(times: dict[str, float], what: str) -> Iterator[None]:
    """Add the block's CPU seconds to `times`."""
    began = time.process_time()
    yield
    times[what] = times.get(what, 0.0) + time.process_time() - began


def passed_on(store: SqlObjectStore, data: bytes, times: dict[str, float]) -> tuple[int, int]:
    """Pass a message on through a store; return the bytes of its objects, and how many objects it is."""
    with timed(times, "pack"):
        message = Message(to_record(message=data), 1, MESSAGE)
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
        tree = get_object_tree(message)
    with timed(times, "store"):
        store.preregister(RUN, tree)
        for name, content in objects.items():
            store.put(name, content)
    with timed(times, "read"):
        found = {name: store.get(name) or b"" for name in objects}
        again = inflate_object_from_contents(tree.object_id, found)
    if not isinstance(again, Message) or from_record(again.content, "message") != data:
        raise AssertionError("Flower gave other bytes back")
    with timed(times, "delete"):
        store.delete(tree.object_id)
    return sum(map(len, objects.values())), len(objects)


def rows() -> Iterator[str]:
    """Yield the table line by line, as Markdown."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 5
    yield "| payload | the meter's bytes | Flower's bytes | objects | pack | store | read | delete | database after |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for size in SIZES:
        data = wire.encode(wire.Message(wire.TRAIN, {}, {"state/values": os.urandom(size * MB)}))
        times: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "superlink.db"
            store = SqlObjectStore(str(file))
            store.initialize()
            for _ in range(TIMES):
                total, count = passed_on(store, data, times)
            kept = sum(path.stat().st_size for path in file.parent.iterdir())
        counted = sort(data, "down").total()
        seconds = " | ".join(f"{times[what] / TIMES:.2f} s" for what in ("pack", "store", "read", "delete"))
        yield f"| {size} MB | {counted:,} | {total:,} | {count} | {seconds} | {kept / MB:,.1f} MB |"


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
