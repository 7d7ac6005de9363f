"""A client: bytes in, bytes out, and its own mind about what it releases.

The order in a round is always *accept the session → plan → reserve in the ledger → train → store → commit → mask*:
what a client's own policy refuses costs it no budget. The client holds its own experiment file, ledger, budget, policy
and roster; the server's word never changes the noise, the steps, the clip norm or the budget, only where training
starts (the global state), how the already private result travels (support, bounds) and, where allocations follow from
findings, which part of the model is trained: by the client's own reckoning, from findings that it has checked.

What leaves once an update is finished is in `fedlora_priv.federation.release`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from accounting import contract, private_audit
from accounting.budget import Budget
from accounting.chain import Chain
from accounting.errors import BudgetExceeded, PricingError
from accounting.ledger import Ledger
from accounting.planning import Plan
from accounting.private_audit import AttemptRecord, StepRecord
from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError, RunFolderError, StaleRound
from fedlora_priv.federation import contracts, wire
from fedlora_priv.federation.allocating import method_in_round, pruning
from fedlora_priv.federation.feedback import Feedback
from fedlora_priv.federation.home import ClientHome, FinishedUpdate, UpdateStore
from fedlora_priv.federation.own_rank import Announcements
from fedlora_priv.federation.personal import OwnModel, Personal
from fedlora_priv.federation.release import RoundRelease, open_session
from fedlora_priv.federation.start import moving
from fedlora_priv.federation.suspension import Suspension
from fedlora_priv.federation.task import RoundTask, begin
from fedlora_priv.federation.trained import Marked, part_of, support_of, update_key
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.layout import Layout, Role, State
from protocols.errors import ProtocolError
from protocols.prg import SecretStream
from protocols.secagg.guard import Guard
from protocols.secagg.identity import Identity, Roster


class LocalTraining(Protocol):
    """Private training on this client's rows; the one thing a client does that needs torch."""

    def __call__(
        self,
        start: State,
        plan: Plan,
        trains: frozenset[Role],
        stream: SecretStream,
        clip_norm: float,
        support: Marked | None,
    ) -> LocalResult:
        """Return the result of ``plan.steps_per_round`` steps from `start`, the first of which clips to `clip_norm`.

        Of the roles `trains` all is trained or, if there is one, what is in `support`. `stream` is secret. The clip
        norm of later steps is the same or, if the plan is adaptive, follows counts.
        """
        ...


@dataclass(frozen=True)
class LocalResult:
    """What local training leaves: a noised state, and what only the client's own auditor may see.

    Args:
        state: every trainable array, noised.
        dimension: how many coordinates were noised.
        clip_norm: what the next step would clip to; public, for it follows from noised counts at most.
        examples, steps: how many rows the client holds and what each step did. Private.
    """

    state: State = field(repr=False)
    dimension: int
    clip_norm: float
    examples: int = field(repr=False)
    steps: tuple[StepRecord, ...] = field(repr=False)


@dataclass(frozen=True)
class ClientSetup:
    """Everything a client knows before the first message.

    Args:
        client_id: its name in the roster.
        experiment: its own copy of the experiment file.
        layout, method, initial: the model's trainable arrays, how they are combined, how they were loaded.
        plan: its noise, sampling rate and steps, computed by itself.
        lifetime_epsilon: what its ledger may amount to over all runs; its own word, at most the experiment's.
        run: 16 random bytes of this run, the same for everybody.
        identity, roster, guard, ledger: its signing key, everyone's pinned keys, its two durable records.
        home, lock: where its finished update and private audit file are kept, and the open lock of that folder.
        accept: raises FederationError unless training from a state, of all or of a support, can be private; sees no
            data.
        stream: (purpose, round) → fresh secret randomness.
        train: private training on its own rows.
        own_model: the client's own model, where arrays stay at home; else None.
    """

    client_id: str
    experiment: Experiment
    layout: Layout
    method: Method
    initial: State
    plan: Plan
    lifetime_epsilon: float
    run: bytes
    identity: Identity
    roster: Roster
    guard: Guard
    ledger: Ledger
    home: ClientHome
    lock: TextIO
    accept: Callable[[State, Marked | None], None]
    stream: Callable[[str, int], SecretStream]
    train: LocalTraining
    own_model: OwnModel | None = None

    def method_in(self, task: RoundTask) -> Method:
        """Return the method of a round as this client has it: over what it trains in it."""
        round, findings = task.round, task.findings
        return method_in_round(self.experiment, self.method, self.layout, self.client_id, round, findings)


class FederationClient:
    """One client of a federation; `handle` is its whole interface."""

    def __init__(self, setup: ClientSetup) -> None:
        self._setup = setup
        self._begun = begin(setup.method, setup.layout, setup.initial, setup.experiment)
        self._run_budget = Budget(setup.experiment.privacy.epsilon, setup.plan.delta)
        self._lifetime_budget = Budget(setup.lifetime_epsilon, setup.plan.delta)
        self._updates = UpdateStore(setup.home.path, setup.run.hex())
        self._personal = Personal(setup, self._begun, self._updates, self._require_charged)
        self._suspension = Suspension(setup.home.path, setup.client_id, setup.run.hex())
        self._feedback = _feedback(setup)
        self._announcements = _announcements(setup)
        self._round: RoundRelease | None = None
        self._task: wire.Message | None = None
        self._unusable: FederationError | None = None

    @property
    def client_id(self) -> str:
        """The client's name in the roster."""
        return self._setup.client_id

    def handle(self, data: bytes) -> bytes:
        """Return the answer to a server's message.

        A refusal names its class and nothing else: a text could say what the data are like.
        """
        try:
            return wire.encode(self._answer(wire.decode(data)))
        except (BudgetExceeded, PricingError, ProtocolError, FederationError) as error:
            return wire.encode(wire.Message(wire.REFUSED, {"code": type(error).__name__}))

    def _answer(self, message: wire.Message) -> wire.Message:
        """Return the answer to a message of each kind that a server may send."""
        handlers: dict[str, Callable[[wire.Message], wire.Message]] = {
            wire.TRAIN: self._train,
            wire.EXCHANGE: lambda message: self._current().exchange(message),
            wire.PHASE: lambda message: self._current().phase(message),
            wire.UPLOAD: lambda message: self._current().upload(),
            wire.PERSONAL: self._personal.answer,
            wire.CLOSE: self._close,
        }
        if message.kind not in handlers:
            raise FederationError(f"a client cannot answer a message of kind {message.kind!r}")
        return handlers[message.kind](message)

    def close(self) -> None:
        """Close the ledger and let another process use this client's home; nothing is lost."""
        self._setup.ledger.close()
        self._setup.lock.close()

    # --- from one process to the next ---------------------------------------------------------------

    def suspend(self) -> bytes:
        """Return the round in progress as secret bytes, from which alone another process can go on with it.

        Call it after each message, before the answer leaves: only the latest bytes are good for `resume`.
        """
        if self._round is None or self._task is None:
            return self._suspension.note(None, None)
        return self._suspension.note(self._task, self._round.snapshot())

    def resume(self, suspended: bytes) -> None:
        """Go on where `suspend` was last called. Where that is impossible, the round can only begin again.

        Nothing is raised here: whatever is wrong with the bytes, the client refuses the messages that need them and
        says why, and the next round begins as it should.
        """
        try:
            found = self._suspension.latest(suspended)
            if found is not None:
                self._continue(*found)
        except (ProtocolError, FederationError) as error:
            self._unusable = StaleRound(f"the round in progress cannot be continued: {error}")

    def _continue(self, began: wire.Message, release: wire.Message) -> None:
        """Begin the suspended round as its message says, from the stored update, and go on with it."""
        task = self._task_of(began)
        update = self._stored(task)
        if update is None:
            raise FederationError("its update is not stored any more")
        resumed = RoundRelease(self._setup, task, update, self._anchor, self._feedback)
        resumed.resume(release)
        self._round, self._task = resumed, began

    # --- training ------------------------------------------------------------------------------------

    def _train(self, message: wire.Message) -> wire.Message:
        """Have a finished update for this round: the stored one, or a new one that is charged."""
        message, proposal = message.without_blob(wire.PROPOSAL)
        setup, task, session, advertised = self._setup, self._task_of(message), None, {}
        # What is refused is refused before anything is charged.
        if self._announcements is not None:
            self._announcements.require(task.round, task.findings)
        if proposal is not None:
            session = open_session(setup, task, task.first)
            advertised = {wire.ADVERTISEMENT: session.advertise(proposal)}
        update = self._stored(task) or self._trained(task)
        setup.ledger.commit(update.reservation, private_audit=update.private_audit)
        announced = self._announced(task, update)
        begun = RoundRelease(setup, task, update, self._anchor, self._feedback)
        begun.begin(session)
        self._round, self._task = begun, message
        return wire.Message(wire.TRAINED, announced, advertised)

    def _task_of(self, message: wire.Message) -> RoundTask:
        """Return the task that a server's message begins."""
        setup = self._setup
        return RoundTask.from_message(message, setup.layout, setup.method, self._begun, setup.experiment)

    def _stored(self, task: RoundTask) -> FinishedUpdate | None:
        """Return the finished update of exactly this start and support, if it is stored and was charged."""
        update = self._updates.load(update_key(task, self._support(task)))
        if update is not None:
            self._require_charged(update, round=task.round)
        return update

    def _clip_norm(self) -> float:
        """Return what the next training begins by clipping to: where the last finished one had got to.

        It follows from the noised counts of an update that was charged. A training that a crash cut off stays
        charged, and its counts are forgotten.
        """
        last = self._updates.last()
        if last is None:
            return self._setup.plan.clip_norm
        self._require_charged(last)
        # A crash may have prevented this, and the server need not ask for that round again: an audit could then
        # not tell which counts the clip norm comes from.
        self._setup.ledger.commit(last.reservation, private_audit=last.private_audit)
        return last.clip_norm

    def _require_charged(self, update: FinishedUpdate, *, round: int | None = None) -> None:
        """Raise FederationError unless the ledger has a charge for the update, in that round if one is given."""
        charges = self._setup.ledger.charges(run=self._setup.run.hex(), round=round)
        if update.reservation not in {charge.reservation for charge in charges}:
            raise FederationError("a stored update names a charge that the ledger does not have")

    def _start(self, task: RoundTask) -> State:
        """Return what this client trains from: its part of the global state, what the base has gained, and its own."""
        layout, method = self._setup.layout, self._setup.method_in(task)
        shared = Shared(self._setup.experiment.experiment.seed, task.round)
        gained = {name: array for name, array in task.state.items() if layout.role(name) == "base"}
        return self._personal.own({**method.start(layout, task.state, shared), **gained})

    def _support(self, task: RoundTask) -> Marked | None:
        """Return the coordinates that this client trains in a round; None for all that the method trains."""
        setup = self._setup
        if setup.experiment.allocation.in_parts:
            return part_of(setup.experiment, setup.layout, setup.method_in(task), task, self.client_id)
        return support_of(setup.experiment, task, self.client_id)

    def _trained(self, task: RoundTask) -> FinishedUpdate:
        """Reserve, train, store. A crash in between leaves the reservation, which stays charged."""
        setup, run = self._setup, self._setup.run.hex()
        if any(charge.releases for charge in setup.ledger.charges(run=run, round=task.round)):
            # A second vector of one round, from another start, could be set against the first.
            raise FederationError("an update of this round, from another start, has already been released")
        start = self._start(task)
        support = self._support(task)
        setup.accept(start, support)
        clip_norm = self._clip_norm()
        event = setup.plan.round_event(clip_norm)

        def require(chain: Chain) -> None:
            self._run_budget.require_events(chain.spent(run), event)
            self._lifetime_budget.require_events(chain.spent(), event)

        reservation = setup.ledger.reserve(
            event, round=task.round, run=run, require=require, recorded=self._recorded(task)
        )
        stream = setup.stream("train", task.round)
        trains = setup.method.at(task.round).contract(setup.layout).trains
        result = setup.train(start, setup.plan, trains, stream, clip_norm, support)
        noted = self._keep_private(task.round, reservation, result)
        update = FinishedUpdate(reservation, result.clip_norm, result.state, noted)
        self._updates.save(update_key(task, support), update)
        return update

    def _recorded(self, task: RoundTask) -> dict[str, str]:
        """Return what the reservation says of its round: the digest of all that may leave in it."""
        setup = self._setup
        stated = contracts.stated(setup.experiment, setup.method, setup.layout, {task.round: task.findings})
        return {contract.RECORDED_AS: contract.round_digest(stated, task.round)}

    def _announced(self, task: RoundTask, update: FinishedUpdate) -> dict[str, int]:
        """Return what this client announces with its answer, durably noted; nothing where nobody prunes its rank."""
        if self._announcements is None:
            return {}
        return self._announcements.of(task.round, task.findings, self._start(task), update.state)

    def _keep_private(self, round: int, reservation: int, result: LocalResult) -> str:
        """Note for this client's own auditor what the steps did; return the digest that tells nobody anything.

        Raises:
            RunFolderError: the file cannot be written.
        """
        run = self._setup.run.hex()
        record = AttemptRecord(
            self.client_id, run, round, reservation, result.examples, result.dimension, result.steps
        )
        path = self._setup.home.private_audit_path(run)
        try:
            return private_audit.append(path, record)
        except OSError as error:
            raise RunFolderError(f"cannot write {path} ({error.strerror})", "free some space") from error

    # --- the end -------------------------------------------------------------------------------------

    def _close(self, message: wire.Message) -> wire.Message:  # noqa: ARG002  # as all answers are called
        """Send the ledger's rows, which hold nothing private, and a fresh signed anchor of them; owe nothing more."""
        if self._feedback is not None:
            self._feedback.forget()
        rows = self._setup.ledger.export_jsonl()
        return wire.Message(wire.STATEMENT, {}, {"ledger": rows.encode(), "anchor": self._anchor()})

    def _anchor(self) -> bytes:
        """Return the signed head and length of this client's ledger."""
        identity = self._setup.identity
        return self._setup.ledger.anchor(sign=identity.sign, public_key=identity.public_bytes).to_bytes()

    def _current(self) -> RoundRelease:
        """Return the round in progress."""
        if self._round is None:
            raise self._unusable or FederationError("a message of a round came before the round began")
        return self._round


def _announcements(setup: ClientSetup) -> Announcements | None:
    """Return what a client announces about its rank, where the experiment says that clients prune theirs."""
    experiment, run = setup.experiment, setup.run.hex()
    rule = pruning(experiment)
    if rule is None:
        return None
    return Announcements(setup.home.path, run, setup.client_id, experiment, setup.layout, rule)


def _feedback(setup: ClientSetup) -> Feedback | None:
    """Return what a client remembers of what rounds leave out, where the experiment says that clients do."""
    experiment = setup.experiment
    if not experiment.communication.error_feedback:
        return None
    shapes = moving(setup.method, setup.layout, experiment.federation.rounds)
    return Feedback(setup.home.path, setup.run.hex(), shapes)
