"""What a `fleet`'s app processes tell the test, and where they wait for it: nothing else of them is changed.

A line of `events.jsonl` is appended when something begins or ends. A process that finds the file of that name beside
it (`hold_path`) waits until the file is gone, or until it is killed: so a test can kill it exactly there.

    party       what        when
    server      asking      a step's messages are about to go to the nodes
    server      asked       its answers are there, or its time is over
    client-k    called      Flower has handed a message over; nothing of it was read yet
    client-k    handled     ledger, guard and home have all of it; the answer is made, but nowhere yet
    client-k    answered    Flower's state has the answer; it was not sent yet

The step is "<round>.<phase>"; phases of an exchange after the first are named as `Step.name` names them at the server,
and alike for all exchanges at the nodes. A node knows the round from the last message that began one; what asks which
client is at a node is "0.hello", what ends a run "<last round>.close".
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TRACE, PARTY, WATCH, KNOWN = "FLEET_TRACE", "FLEET_PARTY", "FLEET_WATCH", "FLEET_KNOWN_RANDOMNESS"
"""Environment: the folder of events and sums; what the process is part of; what folder's files are noted when opened;
whether noise, batches and rounding are those of the experiment's seed, whatever the experiment says."""

MEDDLE = "FLEET_MEDDLE"
"""Environment: whether the server meddles with what it passes on, as `tests.flower.meddling` says."""

HELD_POLL_S = 0.05


def hold_path(folder: Path, party: str, what: str, step: str) -> Path:
    """The file that makes a process wait."""
    return folder / f"hold {party} {what} {step}"


def install(command: str) -> None:
    """Trace this process, which is about to become one of Flower's app processes."""
    folder = Path(os.environ[TRACE])
    if os.environ.get(KNOWN):
        know_randomness()
    if command == "flwr-clientapp":
        _trace_node(folder, os.environ[PARTY])
    elif command == "flwr-serverapp":
        if os.environ.get(MEDDLE):
            from tests.flower.meddling import meddle

            meddle(folder)
        _trace_server(folder)
        _keep_sums(folder)


def know_randomness() -> None:
    """Give this process's clients the randomness that `deterministic_noise` would: two federations then compare.

    Call it before `fedlora_priv.federation.seats` is imported. Report and ledger are not told, so they can be audited
    like any other's.
    """
    from fedlora_priv.federation import randomness

    real = randomness.stream_factory

    def known(experiment: Any, client_id: str) -> Any:
        training = experiment.training.model_copy(update={"deterministic_noise": True})
        return real(experiment.model_copy(update={"training": training}), client_id)

    randomness.stream_factory = known


@contextlib.contextmanager
def randomness_known() -> Iterator[None]:
    """Do the same in a process that has imported everything, for the length of a block."""
    from fedlora_priv.federation import randomness, seats, standby

    real = randomness.stream_factory
    know_randomness()
    seats.stream_factory = standby.stream_factory = randomness.stream_factory
    try:
        yield
    finally:
        randomness.stream_factory = seats.stream_factory = standby.stream_factory = real


@contextlib.contextmanager
def sums_kept(folder: Path) -> Iterator[None]:
    """Write every masked session's sum into a folder, in this process, for the length of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    undo = _keep_sums(folder)
    try:
        yield
    finally:
        undo()


class KeptSum(NamedTuple):
    """Ring elements as the server had them before it made anything of them; whose sum they are; bits of each."""

    total: NDArray[np.uint32]
    survivors: list[str]
    modulus_bits: int


def sums(folder: Path) -> dict[str, KeptSum]:
    """The sums that were kept, by "<round>.<exchange>"."""
    found = {}
    for path in sorted(folder.glob("sum-*.npz")):
        with np.load(path) as kept:
            name = path.name.removeprefix("sum-").removesuffix(".npz")
            found[name] = KeptSum(kept["total"], kept["survivors"].tolist(), int(kept["modulus_bits"]))
    return found


def _keep_sums(folder: Path) -> Callable[[], None]:
    """Have every conductor of this process write its sums; return what undoes it."""
    from fedlora_priv.federation.rounds import RoundConductor

    real = RoundConductor._secure_sum

    def keeping(self: Any, running: Any, exchange: Any, *rest: Any) -> Any:
        total, survivors = real(self, running, exchange, *rest)
        path = folder / f"sum-{running.task.round}.{exchange.number}.npz"
        bits = exchange.channel.form.modulus_bits
        np.savez(path, total=total, survivors=np.array(survivors), modulus_bits=bits)
        return total, survivors

    RoundConductor._secure_sum = keeping  # type: ignore[method-assign] # to be traced

    def undo() -> None:
        RoundConductor._secure_sum = real  # type: ignore[method-assign] # to be traced

    return undo


def _trace_server(folder: Path) -> None:
    """Say what the server's engine asks."""
    from fedlora_priv.engines.flower.engine import FlowerEngine

    real = FlowerEngine.exchange

    def exchange(self: Any, messages: Any, step: Any) -> Any:
        name = f"{step.round}.{step.name}"
        _event(folder, "server", "asking", name)
        answers = real(self, messages, step)
        _event(folder, "server", "asked", name, answers=sorted(answers))
        return answers

    FlowerEngine.exchange = exchange  # type: ignore[method-assign] # to be traced


def _trace_node(folder: Path, party: str) -> None:
    """Say what a node's app is asked, and when it has done which part of it."""
    from fedlora_priv.engines.flower import client_app
    from fedlora_priv.engines.flower.records import from_record
    from fedlora_priv.federation.client import FederationClient

    step = ["0.hello"]
    answered, handle = client_app._answered, FederationClient.handle
    guarded = client_app._guarded

    def _answered(node: Any, message: Any, context: Any) -> bytes:
        step[0] = _step_of(folder, party, from_record(message.content, "message"))
        _event(folder, party, "called", step[0])
        return answered(node, message, context)

    def _handle(self: Any, data: bytes) -> bytes:
        answer = handle(self, data)
        _event(folder, party, "handled", step[0])
        return answer

    def _guarded(message: Any, answer: Any) -> Any:
        reply = guarded(message, answer)
        _event(folder, party, "answered", step[0])
        return reply

    client_app._answered, client_app._guarded = _answered, _guarded
    FederationClient.handle = _handle  # type: ignore[method-assign] # to be traced


def _step_of(folder: Path, party: str, data: bytes) -> str:
    """Name the step of a message to a node; remember the round if one begins with it."""
    from fedlora_priv.errors import FederationError
    from fedlora_priv.federation import wire

    at = folder / f"round {party}"
    try:
        message = wire.decode(data)
    except FederationError:
        return "0.nonsense"
    if message.kind == wire.TRAIN:
        at.write_text(str(message.fields.get("round")))
    number = at.read_text() if at.exists() else "0"
    return f"{number}.{message.fields.get('phase', message.kind)}"


def _event(folder: Path, party: str, what: str, step: str, **more: Any) -> None:
    """Append a line, then wait as long as the test says."""
    line = {"at": time.time(), "party": party, "what": what, "step": step, "pid": os.getpid(), **more}
    with (folder / "events.jsonl").open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")
    held = hold_path(folder, party, what, step)
    while held.exists():
        time.sleep(HELD_POLL_S)
