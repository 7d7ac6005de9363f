"""A federation on paper: real clients, ledgers, guards, masks and server, and training that is a few random steps.

No model and no torch, so a round takes a fraction of a second, and any method can be run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from accounting.ledger import Ledger
from accounting.planning import Plan
from accounting.private_audit import StepRecord
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Metered, Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import ClientSetup, FederationClient, LocalResult
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.randomness import stream_factory
from fedlora_priv.federation.rounds import RoundConductor, RoundResult
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.trained import Marked
from fedlora_priv.methods import Layout, LoraModule, Method, Role, Shared, State
from fedlora_priv.methods.optimizers import ServerOptimizer
from protocols.prg import SecretStream
from protocols.secagg.codec import decode, encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Roster
from protocols.secagg.messages import Proposal
from protocols.secagg.session import SessionParameters

LAYOUT = Layout(
    (LoraModule("layer.0.query", 14, 12, 2, 2.0), LoraModule("layer.1.value", 11, 16, 3, 0.5)),
    {"classifier.bias": (2,), "classifier.weight": (2, 6)},
)
RUN = bytes(range(16))
PLAN = Plan(
    client_id="client-1", declared_examples=400, planned_batch_size=20, sample_rate=0.05, rounds=4, retry_rounds=1,
    steps_per_round=1, clip_norm=1.0, noise_multiplier=2.0, target_epsilon=8.0, delta=1e-4,
)  # fmt: skip
DENSE = {"support": "dense", "density": 1.0, "value_bits": 16}
"""A file's `[communication]` with which sums are as exact as they get."""
STEP = 0.05
"""How far a coordinate moves in a round, about as far as is planned for."""


def initial_state() -> State:
    rng = np.random.default_rng(5)
    return {
        name: np.zeros(shape, np.float32)
        if LAYOUT.role(name) == "B"
        else rng.normal(size=shape).astype(np.float32) / 3
        for name, shape in LAYOUT.shapes().items()
    }


def trained(client_id: str, start: State, trains: frozenset[Role], support: Marked | None = None) -> State:
    """What a client makes of a start: Gaussian steps that client and start decide, so always the same."""
    rng = np.random.default_rng(
        zlib.crc32(client_id.encode() + b"".join(start[n].tobytes() for n in sorted(start)))
    )
    moved = {n: (a + STEP * rng.normal(size=a.shape)).astype(np.float32) for n, a in start.items()}
    if support is not None:
        moved |= {n: np.where(mask, moved[n], start[n]) for n, mask in support.items()}
    return {
        n: moved[n] if LAYOUT.role(n) in trains else a for n, a in start.items() if LAYOUT.role(n) != "base"
    }


class Paper:
    """A federation whose clients can be lost, interfered with, and killed."""

    def __init__(
        self,
        experiment: Experiment,
        method: Method,
        folder: Path,
        *,
        optimizer: ServerOptimizer | None = None,
        dropouts: Sequence[Dropout] = (),
        own: Mapping[str, Method] | None = None,
    ) -> None:
        self.experiment, self.method, self.folder = experiment, method, folder
        # Guards outlive processes, as files would, without the thousand flushes of a file.
        self.guards = {client_id: MemoryGuard() for client_id in experiment.client_ids}
        self.own, self.dropouts, self.trainings = own or {}, dropouts, 0
        self.server = FederationServer(experiment, LAYOUT, method, initial_state(), 1.0, optimizer)
        self.state = self.begun = self.server.begin()
        self.clients: list[FederationClient] = []
        self.live()

    def live(self) -> None:
        """Start the clients' processes, of which nothing was left but their disks."""
        self.close()
        homes = {client_id: ClientHome(self.folder / client_id) for client_id in self.experiment.client_ids}
        keys = {client_id: home.identity() for client_id, home in homes.items()}
        self.roster = Roster({client_id: key.public_bytes for client_id, key in keys.items()})
        self.clients = [
            FederationClient(
                ClientSetup(
                    client_id=client_id,
                    experiment=self.experiment,
                    layout=LAYOUT,
                    method=self.own.get(client_id, self.method),
                    initial=initial_state(),
                    plan=replace(PLAN, client_id=client_id),
                    lifetime_epsilon=self.experiment.privacy.ledger_limit,
                    run=RUN,
                    identity=keys[client_id],
                    roster=self.roster,
                    guard=self.guards[client_id],
                    ledger=Ledger.open(
                        home.ledger_path, client_id=client_id, dataset_id="d", partition_id="p", public=True
                    ),
                    home=home,
                    lock=home.lock(),
                    accept=lambda state, support: None,
                    stream=stream_factory(self.experiment, client_id),
                    train=partial(self.train, client_id),
                )
            )
            for client_id, home in homes.items()
        ]
        self.use(LocalEngine(self.clients, self.dropouts))

    def use(self, engine: LocalEngine) -> None:
        """Send everything through this engine from now on."""
        self.engine = Metered(engine)
        self.conductor = RoundConductor(self.experiment, self.begun.state, self.roster, RUN, self.engine)

    def train(
        self,
        client_id: str,
        start: State,
        plan: Plan,
        trains: frozenset[Role],
        stream: SecretStream,
        clip_norm: float,
        support: Marked | None,
    ) -> LocalResult:
        self.trainings += 1
        step = StepRecord(1, 0, 0, 0.5, 0.5, 1.0, 0.5, "0" * 16)
        return LocalResult(
            trained(client_id, start, trains, support), 100, clip_norm, 10, (step,) * plan.steps_per_round
        )

    def round(self) -> RoundResult:
        """Conduct a round and move on."""
        task = self.server.task(self.state)
        result = self.conductor.conduct(task, partial(self.server.announce, self.state, task))
        if result.summed is None:
            self.state = self.server.skip(self.state, task)
        else:
            self.state = self.server.advance(self.state, task, result.summed)
        self.state = self.server.heard(self.state, task, result.record.faded)
        return result

    def plainly(self, result: RoundResult, state: State) -> State:
        """What the method's functions give of a round from `state`, without a server: sums of float uploads.

        An upload is clipped to the bounds that travelled, and there are as many exchanges as gave a sum.
        """
        assert result.summed is not None
        number, survivors = result.record.round, result.record.survivors
        method, shared = self.method.at(number), Shared(self.experiment.experiment.seed, number)
        trains, gained = (
            method.contract(LAYOUT).trains,
            {n: a for n, a in state.items() if LAYOUT.role(n) == "base"},
        )
        mine = {c: self.own.get(c, self.method).at(number) for c in survivors}
        after = {
            c: trained(c, {**own.start(LAYOUT, state, shared), **gained}, trains) for c, own in mine.items()
        }
        sums: dict[str, np.ndarray] = {}
        for exchange in (part.exchange for part in result.summed.parts):
            if exchange.number:
                announced = method.announce(LAYOUT, state, sums, len(survivors), shared)
                shared = replace(shared, exchange=exchange.number, announced=announced)
            for client_id, own in mine.items():
                for name, array in own.upload(LAYOUT, state, after[client_id], shared).items():
                    bound = exchange.channel.bounds[name]
                    sums[name] = sums.get(name, 0.0) + np.clip(array.astype(np.float64), -bound, bound)
        return method.combine(LAYOUT, state, sums, len(survivors), shared)

    def close(self) -> None:
        for client in self.clients:
            client.close()


def step_of(phase: str, exchange: int = 0) -> str:
    """The name of the step that a client does not answer when it is lost in a phase: Advertise rides on what begins."""
    name = {"advertise": "announce" if exchange else "train"}.get(phase, phase)
    return f"{name} of exchange {exchange}" if exchange else name


def proposed(data: bytes) -> SessionParameters | None:
    """The session that a message to a client proposes."""
    message = wire.decode(data)
    body = message.blobs.get("body") if message.fields.get("phase") == "advertise" else None
    body = message.blobs.get(wire.PROPOSAL, body)
    return None if body is None else decode(Proposal, body, "server", 2**20).parameters


def proposing(
    edit: Callable[[SessionParameters], SessionParameters],
) -> Callable[[wire.Message], wire.Message]:
    """What begins an exchange, with another session proposed in it."""

    def changed(message: wire.Message) -> wire.Message:
        parameters = proposed(wire.encode(message))
        assert parameters is not None
        return message.with_blob(wire.PROPOSAL, encode(Proposal(edit(parameters))))

    return changed


class Killed(Exception):
    """Every process ends here."""


class Meddling(LocalEngine):
    """An engine that may change what is sent, or end every process, and keeps what was answered."""

    def __init__(
        self, clients: Sequence[FederationClient], meddle: Callable[[Step, str, bytes], bytes]
    ) -> None:
        super().__init__(clients)
        self.meddle = meddle

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        answers: dict[str, bytes] = {}
        for client_id, data in messages.items():
            answers |= super().exchange({client_id: self.meddle(step, client_id, data)}, step)
        return answers


def crash(broken: Paper, after: int) -> None:
    """End every process once that many messages of a round have been answered, and start them again."""
    left = after

    def kill(step: Step, client_id: str, data: bytes) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return data

    broken.use(Meddling(broken.clients, kill))
    with pytest.raises(Killed):
        broken.round()
    broken.live()
