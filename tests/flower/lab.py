"""A SuperLink in this process: real Flower messages, real ClientApps, one state for each node, and room to meddle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict

from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.flower import greeting
from fedlora_priv.engines.flower.client_app import ANSWER, make_app
from fedlora_priv.engines.flower.engine import FlowerEngine, Timing
from fedlora_priv.engines.flower.records import HELLO, from_record
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import ClientSetup, FederationClient
from fedlora_priv.federation.node import open_node_file, open_server
from fedlora_priv.federation.run import Outcome, conduct
from protocols.secagg.interface import PHASES
from tests.federation.paper import RUN, Paper

from .traced import KeptSum, sums, sums_kept

FLOWER_RUN = 77
VICTIM = 102
"""client-2's node."""
STEPS = ("train", *PHASES[1:])
"""What a round's messages are for; Advertise rides on the first."""
SOON = Timing(train_s=1.0, phase_s=1.0, join_s=1.0, poll_s=0.01)
Meddle = Callable[[Message], Sequence[Message]]
"""What reaches the other side in place of a message: itself, another, none, or more than one."""


def told(message: Message) -> bytes:
    """What is in a message or a reply."""
    return from_record(message.content, ANSWER if message.metadata.reply_to_message_id else "message")


def step_of(message: Message) -> str:
    """Which step a message to a node belongs to."""
    if message.metadata.message_type == HELLO:
        return "hello"
    read = wire.decode(told(message))
    return str(read.fields.get("phase", read.kind))


class PaperNode:
    """A node whose client is a `Paper`'s: a new `FederationClient` for every message."""

    def __init__(self, setup: ClientSetup) -> None:
        self.setup = setup

    def open(self, context: Context, data: bytes) -> FederationClient:
        client = FederationClient(self.setup)
        client.close = lambda: None  # type: ignore[method-assign] # the paper's ledger stays open
        return client

    def greeting(self, context: Context) -> tuple[str, bytes]:
        setup = self.setup
        signature = greeting.sign(setup.identity, setup.client_id, setup.run, context.run_id, context.node_id)
        return setup.client_id, signature


class Link:
    """A `Grid` over ClientApps of this process.

    Args:
        nodes: by node id.
        down, up: what happens to messages to nodes, and to replies.
    """

    def __init__(
        self,
        nodes: dict[int, Any],
        down: Meddle = lambda message: [message],
        up: Meddle = lambda reply: [reply],
    ) -> None:
        self.nodes, self.down, self.up = nodes, down, up
        self.contexts = {
            node: Context(run_id=FLOWER_RUN, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in nodes
        }
        self.replies: list[Message] = []
        self.sent: list[Message] = []

    @property
    def run(self) -> Any:
        return type("Run", (), {"run_id": FLOWER_RUN})

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            message.metadata.__dict__["_run_id"] = FLOWER_RUN
            self.sent.append(message)
            for arriving in self.down(message):
                reply = self.handled(copy.deepcopy(arriving), message.metadata.dst_node_id)
                if reply is not None:
                    reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
                    self.replies.extend(self.up(reply))
        return [message.metadata.message_id for message in messages]

    def handled(self, message: Message, node: int) -> Message | None:
        """What a node's ClientApp answers; None if it never does."""
        return make_app(self.nodes[node])(message, self.contexts[node])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in wanted]
        self.replies = [reply for reply in self.replies if reply not in found]
        return found


def failed(reply: Message) -> Message:
    """Flower's own error in place of a reply."""
    error = Message(Error(code=1, reason="the node is gone"), reply_to=reply)
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error


def connect(
    paper: Paper, *, down: Meddle | None = None, up: Meddle | None = None, timing: Timing = SOON
) -> Link:
    """Send everything of a paper federation through Flower from now on; node 100 + i is client-i's."""
    nodes = {100 + i: PaperNode(client._setup) for i, client in enumerate(paper.clients, start=1)}
    same: Meddle = lambda message: [message]  # noqa: E731
    return attach(paper, Link(nodes, down or same, up or same), timing)


def attach(paper: Paper, link: Link, timing: Timing = SOON) -> Link:
    """Send everything of a paper federation over this link from now on."""
    engine = FlowerEngine(link, paper.roster, RUN, timing)  # type: ignore[arg-type] # a Link has what it uses of a Grid
    paper.use(engine)  # type: ignore[arg-type] # a Paper is used to LocalEngine
    return link


def in_one_process(
    deployment: Path, folder: Path, silent: Any, lost: Sequence[Dropout] = ()
) -> tuple[dict[str, KeptSum], Outcome]:
    """Run a deployment's parties side by side, each client alive from first to last; the sums, and what comes of it."""
    with ExitStack() as opened, sums_kept(folder):
        clients = [open_node_file(file) for file in sorted(deployment.glob("nodes/*/node.toml"))]
        for client in clients:
            opened.callback(client.close)
        server = open_server(deployment / "server" / "server.toml")
        opened.callback(server.folder.close)
        outcome = conduct(server.parts, server.folder, server.roster, LocalEngine(clients, lost), silent)
    return sums(folder), outcome
