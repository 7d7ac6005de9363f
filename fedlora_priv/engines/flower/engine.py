"""The server's side of Flower: an `Engine` over the grid of a SuperLink, or of a simulation.

Messages of one step go out together and are waited for together, each step with its own time-out. A client whose
node is gone, answers with an error or answers too late has no answer: it is lost for the rest of the round, as
everywhere. Before each round nodes that are nobody yet are asked who they are, so a client that was restarted, or whose
node was mended, is back in the next round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora_priv.engines.base import Step
from fedlora_priv.engines.flower import greeting
from fedlora_priv.engines.flower.client_app import ANSWER
from fedlora_priv.engines.flower.records import HELLO, MESSAGE, from_record, to_record
from fedlora_priv.errors import FederationError
from protocols.errors import ProtocolError
from protocols.secagg.identity import Roster

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """How long the server waits, in seconds.

    Args:
        train_s: for the answers to a message that makes clients train or evaluate.
        phase_s: for those to every other message.
        join_s: for all nodes to be there before the first round.
        poll_s: between two looks for answers.
    """

    train_s: float
    phase_s: float
    join_s: float
    poll_s: float = 0.25

    def of(self, step: Step) -> float:
        """Return how long a step's answers are waited for."""
        return self.train_s if step.phase in ("train", "personal", "keep") else self.phase_s


class FlowerEngine:
    """Delivers messages to the nodes where the clients of a roster are.

    Args:
        grid: Flower's.
        roster: everybody's pinned keys; its order is the clients'.
        run: the federation's run, 16 bytes.
        timing: how long to wait.
        on_answer: called with (client_id, step) for each answer, as it comes.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        run: bytes,
        timing: Timing,
        on_answer: Callable[[str, Step], None] = lambda client_id, step: None,
    ) -> None:
        self._grid = grid
        self._roster = roster
        self._run = run
        self._timing = timing
        self._on_answer = on_answer
        self._nodes: dict[str, int] = {}
        self._asked: set[int] = set()
        self._waited_for: tuple[str, ...] = ()

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients on the roster."""
        return tuple(self._roster)

    @property
    def absent(self) -> tuple[str, ...]:
        """Those whose nodes `join` has waited for in vain, and that have not come since."""
        return tuple(client_id for client_id in self._waited_for if client_id not in self._nodes)

    def join(self) -> tuple[str, ...]:
        """Wait until every client's node is there, or for `join_s`; return the clients that are missing.

        A node that is there and does not answer may be busy: with the training that a server asked for before it was
        killed. Its answer is waited for as long as that may take.
        """
        began, self._waited_for = time.monotonic(), tuple(self._roster)
        while True:
            busy = self._look_for_nodes()
            most = max(self._timing.join_s, self._timing.train_s) if busy else self._timing.join_s
            if not self.absent or time.monotonic() - began >= most:
                return self.absent
            time.sleep(self._timing.poll_s)

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        """Deliver to every client whose node is known, and return the answers that came in time."""
        if step.phase == "train":
            # A node whose greeting was not good may have been mended since, and has the same id: it is its key's.
            self._asked.intersection_update(self._nodes.values())
            self._look_for_nodes()
        timeout = self._timing.of(step)
        nodes = {self._nodes[client_id]: client_id for client_id in messages if client_id in self._nodes}
        requests = [
            Message(
                to_record(message=messages[client_id]),
                node,
                MESSAGE,
                ttl=timeout,
                group_id=f"{step.round} {step.name}",
            )
            for node, client_id in nodes.items()
        ]
        answers: dict[str, bytes] = {}

        def received(node: int, reply: Message) -> None:
            client_id = nodes[node]
            try:
                answers[client_id] = from_record(reply.content, ANSWER)
                self._on_answer(client_id, step)
            except FederationError as error:
                logger.warning("%s: %s", client_id, error)

        self._send_and_receive(requests, timeout, received)
        return answers

    def _look_for_nodes(self) -> bool:
        """Ask every node that has not said so yet which client is there; return whether some still do not say."""
        new = [node for node in self._grid.get_node_ids() if node not in self._asked]
        requests = [Message(to_record(), node, HELLO, ttl=self._timing.phase_s) for node in new]
        self._send_and_receive(requests, self._timing.phase_s, self._greeted)
        return not self._asked.issuperset(new)

    def _greeted(self, node: int, reply: Message) -> None:
        """Remember which client is at a node, if the client has signed that it is."""
        self._asked.add(node)
        client_id = "nobody"
        try:
            client_id = from_record(reply.content, "client_id").decode()
            signature = from_record(reply.content, "signature")
            greeting.check(self._roster, client_id, self._run, self._grid.run.run_id, node, signature)
        except (FederationError, ProtocolError, KeyError, UnicodeDecodeError):
            logger.warning(
                "node %d, which calls itself %s, has not signed for this run with a key of the roster; "
                "its agreement or its home is another: let 'fedlora node check' there show the fingerprint",
                node,
                client_id if client_id in self._roster else "nobody of the roster",
            )
            return
        self._nodes[client_id] = node

    def _send_and_receive(
        self, requests: Iterable[Message], timeout: float, received: Callable[[int, Message], None]
    ) -> None:
        """Send requests and hand each first good reply of the node that was asked to `received`, until `timeout`.

        Flower's own `send_and_receive` looks for replies every three seconds.
        """
        requests = list(requests)
        if not requests:
            return
        self._grid.push_messages(requests)
        waiting = {request.metadata.message_id: request.metadata.dst_node_id for request in requests}
        deadline = time.monotonic() + timeout
        while waiting and time.monotonic() < deadline:
            for reply in self._grid.pull_messages(list(waiting)):
                node = waiting.get(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    waiting.pop(reply.metadata.reply_to_message_id, None)
                    logger.warning("node %s: Flower's error %s", node, reply.error.code)
                elif node is not None and reply.metadata.src_node_id == node:
                    del waiting[reply.metadata.reply_to_message_id]
                    received(node, reply)
            if waiting:
                time.sleep(self._timing.poll_s)
