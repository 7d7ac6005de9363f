"""A Flower app whose nodes send back what they get, at the sizes of $ECHO_SIZES: what Flower's processes need for it.

Processes of a deployment run it in place of this package's app, started in the same way: their folder of commands
names ``python -m benchmarks.flower_echo`` where `fedlora_priv.deploy.app` stands otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import time

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlora_priv.deploy import app as installed
from fedlora_priv.engines.flower.records import MESSAGE, from_record, to_record

NAME = "benchmarks.flower_echo"
PROJECT = installed.PROJECT.replace("fedlora_priv.engines.flower.server_app:app", f"{NAME}:server").replace(
    f"{installed.NODE_APP}:app", f"{NAME}:app"
)
"""The app's only file, as this package's own app has one."""

SIZES, TIMES = "ECHO_SIZES", "ECHO_TIMES"
"""Environment: the sizes in bytes, and how many messages of each go one after the other."""

LINE = "echo: "
POLL_S = 0.25
TIMEOUT_S = 500.0

app = ClientApp()
server = ServerApp()


@app.train(MESSAGE.partition(".")[2])
def echo(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    """Return what came."""
    return Message(to_record(message=from_record(message.content, "message")), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
    """Ask the first node there is; print a line of JSON for each answer."""
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(POLL_S)
    for size in json.loads(os.environ[SIZES]):
        for _ in range(int(os.environ[TIMES])):
            data = os.urandom(size)
            began = time.time()
            request = Message(to_record(message=data), nodes[0], MESSAGE, ttl=TIMEOUT_S)
            grid.push_messages([request])
            while not (replies := list(grid.pull_messages([request.metadata.message_id]))):
                time.sleep(POLL_S)
            if from_record(replies[0].content, "message") != data:
                raise AssertionError("other bytes came back")
            print(LINE + json.dumps({"size": size, "began": began, "ended": time.time()}), flush=True)


if __name__ == "__main__":
    installed.PROJECT, installed.NODE_APP = PROJECT, NAME
    sys.argv.pop(0)
    installed.run(sys.argv[0], sys.argv[1:])
