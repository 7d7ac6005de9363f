"""What leaves a client in one round, once it has its finished update: exchange after exchange, each in a session.

Every upload is made from the one update of the round, which is noised before it is stored, so each of them is
post-processing of what the ledger has charged: mode `local`, and only that. The rules that hold all the same:

- An exchange begins only when the one before it was confirmed, by its number, and never twice; its upload leaves
  once. So within a round as this client has begun it, nothing is uploaded twice, nor for two announcements.
- A round may be begun again from its first exchange (a crash loses what was only in memory, and the server may then
  have another cohort and announce something else). The client uploads other maps of the same stored update then; the
  ledger shows every one with its announcement. Where updates are private only together, that would be a second
  release, so a client refuses a second exchange in any mode but `local`.
- A later exchange is over exactly the first one's survivors, and all of them: this client's policy says so. Not so a
  band, which only some of them send: it is on coordinates that no other sum has.
- What was announced is in the context of the masks. Clients that were told different things do not sum.

What leaves goes through one function, `_ring_elements`: the method's contract says which arrays, the ledger says which
event covers them.

With error feedback an upload is what is owed (`feedback`), of which this round's update is the last part; every part
was charged before, so the ledger's record of what leaves is as true as without.

A round may move from one process to the next between any two messages: `snapshot` and `resume`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.exchange import Exchange, Planned
from fedlora_priv.federation.feedback import Feedback
from fedlora_priv.federation.home import FinishedUpdate
from fedlora_priv.federation.session import client_policy
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.federation.vectors import flatten
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.layout import State
from protocols.packing import pack
from protocols.private import PrivateAtClient
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import Guard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.session import ClientPolicy

if TYPE_CHECKING:
    from fedlora_priv.federation.client import ClientSetup


class _SessionArguments(TypedDict):
    """The arguments of a `SecAggClient`, the same for a fresh one and for one that is restored."""

    client_id: str
    identity: Identity
    roster: Roster
    policy: ClientPolicy
    guard: Guard
    context: bytes


class RoundRelease:
    """One round of a client that has its finished update.

    Args:
        setup: what the client knew before the first message.
        task: the round.
        update: what it has trained from the task's state.
        anchor: the bytes of a fresh signed anchor of its ledger.
        feedback: what earlier rounds left out, where clients keep that.
    """

    def __init__(
        self,
        setup: ClientSetup,
        task: RoundTask,
        update: FinishedUpdate,
        anchor: Callable[[], bytes],
        feedback: Feedback | None = None,
    ) -> None:
        self._setup = setup
        self._task = task
        self._update = update
        self._anchor = anchor
        self._feedback = feedback
        self._accounted_as = f"row {update.reservation} of the ledger"
        self._method = setup.method_in(task)
        self._contract = self._method.contract(setup.layout)
        self._planned = Planned(setup.experiment, setup.layout, self._contract, task.round, task.findings)
        self._exchange = task.first
        self._began: wire.Message | None = None
        self._session: SecAggClient | None = None
        self._cohort: frozenset[str] | None = None
        self._left = False
        self._sending: NDArray[np.uint32] | None = None

    @property
    def update(self) -> FinishedUpdate:
        """What everything that leaves in this round is made of."""
        return self._update

    def begin(self, session: SecAggClient | None = None) -> None:
        """Begin the round, for the first time or again, in a session that this client has advertised for."""
        self._session = session
        if self._feedback is not None:
            self._feedback.begin(self._task.round, self._upload(self._task.first), self._accounted_as)

    def snapshot(self) -> wire.Message:
        """Return what of this round is only in memory. Secret: it holds the keys of the session in progress."""
        fields = {"left": self._left, "cohort": None if self._cohort is None else sorted(self._cohort)}
        blobs = {}
        if self._began is not None:
            blobs["exchange"] = wire.encode(self._began)
        if self._session is not None:
            blobs["session"] = self._session.snapshot()
        if self._sending is not None:
            blobs["sending"] = self._sending.astype("<u4").tobytes()
        return wire.Message("release", fields, blobs)

    def resume(self, snapshot: wire.Message) -> None:
        """Continue where another process took `snapshot`, of the round that this one has begun again.

        Raises:
            ProtocolError, FederationError: it was taken of another client, round or state, or is damaged.
        """
        fields, blobs = snapshot.fields, snapshot.blobs
        if "exchange" in blobs:
            self._began = wire.decode(blobs["exchange"])
            self._exchange = self._told(self._began, after=self._began.fields["exchange"] - 1)
        self._cohort = None if fields["cohort"] is None else frozenset(fields["cohort"])
        self._left = fields["left"]
        if "session" in blobs:
            arguments = _session_arguments(self._setup, self._task, self._exchange, self._cohort)
            self._session = SecAggClient.restore(blobs["session"], **arguments)
        if "sending" in blobs:
            self._sending = np.frombuffer(blobs["sending"], "<u4").astype(np.uint32)
        if self._feedback is not None:
            self._feedback.resume(self._task.round)

    def exchange(self, message: wire.Message) -> wire.Message:
        """Begin the round's next exchange, with what the server has announced.

        Raises:
            FederationError: it is not the next one, the one before is not confirmed, or the message does not fit.
        """
        message, proposal = message.without_blob(wire.PROPOSAL)
        experiment = self._setup.experiment
        if experiment.privacy.mode != "local":
            raise FederationError(
                f"in mode {experiment.privacy.mode!r} a second exchange would be a second release",
                "use a method of one exchange",
            )
        begun = self._told(message, after=self._exchange.number)
        if not self._exchange.leg.is_band:  # a band that was lost costs its coordinates only
            self._confirm()
        self._exchange, self._session, self._left, self._sending = begun, None, False, None
        self._began, answer = message, wire.Message(wire.READY)
        return answer if proposal is None else answer.with_blob(wire.ADVERTISEMENT, self._advertise(proposal))

    def _advertise(self, proposal: bytes) -> bytes:
        """Accept a session of the exchange in progress, in place of any earlier one."""
        self._session = open_session(self._setup, self._task, self._exchange, self._cohort)
        return self._session.advertise(proposal)

    def _told(self, message: wire.Message, *, after: int) -> Exchange:
        """Return the exchange that a message begins after another, which this client has a part in."""
        number = self._planned.next(message, after)
        band = next((band for band in self._task.bands if band.number == number), None)
        if band is not None and self._setup.client_id not in (band.leg.senders or ()):
            raise FederationError(f"the server asked for coordinates of exchange {number}, which others send")
        return band or Exchange.from_message(message, number, self._planned)

    def _confirm(self) -> None:
        """Note whose sum the exchange that has just ended was; nobody knows without masks.

        Raises:
            FederationError: it has not ended.
        """
        if self._setup.experiment.secure_aggregation.mode == "insecure":
            if not self._left:
                raise FederationError("an exchange began before this client's upload for the last one")
            return
        survivors = self._session.survivors if self._session is not None else ()
        if not survivors:
            raise FederationError("an exchange began before this client has confirmed the last one")
        self._cohort = frozenset(survivors)

    def phase(self, message: wire.Message) -> wire.Message:
        """Answer one phase of secure aggregation."""
        phase, body = message.fields.get("phase"), message.blobs.get("body", b"")
        if phase == "advertise":  # a session proposed by itself: others have not answered the first proposal
            return wire.Message(wire.PHASE, {"phase": phase}, {"body": self._advertise(body)})
        session = self._session
        if session is None:
            raise FederationError("a phase of secure aggregation came before its proposal")
        answers: dict[str, Callable[[], bytes]] = {
            "share": lambda: session.share(body),
            "mask": lambda: session.mask(body, self._ring_elements(_hex(session.session_id))),
            "confirm": lambda: self._confirmed(session, body),
            "reveal": lambda: session.reveal(body),
        }
        answer = answers.get(session.phase)  # none once the session is done
        if answer is None or phase != session.phase:
            raise FederationError(f"it is the turn of {session.phase!r}, not of {phase!r}")
        return wire.Message(wire.PHASE, {"phase": phase}, {"body": answer()})

    def upload(self) -> wire.Message:
        """Send the quantised upload unmasked: only where the experiment itself asks for `insecure`."""
        if self._setup.experiment.secure_aggregation.mode != "insecure":
            raise FederationError("the server asked for an unmasked upload; this experiment is secure")
        body = pack(self._ring_elements(session_id=None), self._exchange.channel.form.modulus_bits)
        self._count_sent()
        return wire.Message(wire.UPLOAD, {}, {"body": body})

    def _confirmed(self, session: SecAggClient, body: bytes) -> bytes:
        """Confirm whose sum it is; what this client has in it counts as sent before anybody hears that."""
        answer = session.confirm(body, attachment=self._anchored(session))
        self._count_sent()
        return answer

    def _count_sent(self) -> None:
        """Owe less by what has left in this exchange."""
        if self._feedback is not None and self._sending is not None:
            self._feedback.sent(self._exchange.values.sums(self._sending, 1), self._accounted_as)
            self._sending = None

    def _anchored(self, session: SecAggClient) -> bytes:
        """Record the session's transcript, and return the ledger's signed anchor to ride on Confirm."""
        self._record(_hex(session.session_id), _hex(session.transcript))
        return self._anchor()

    def _ring_elements(self, session_id: str | None) -> NDArray[np.uint32]:
        """Return what leaves, as ring elements, after the ledger has recorded that it does."""
        setup, task, exchange = self._setup, self._task, self._exchange
        if self._left:
            raise FederationError(
                "this exchange's upload has left: only the round can begin again, as a whole"
            )
        update = self._outgoing()
        self._record(session_id)
        self._left = True
        if isinstance(exchange.channel, BallotChannel):
            return exchange.channel.votes(update)
        stream = setup.stream(f"exchange-{exchange.number}", task.round)
        self._sending = exchange.channel.encode(np.asarray(update.values, np.float32), stream)
        return self._sending

    def _outgoing(self) -> PrivateAtClient:
        """Return what this exchange is of, before coordinates are left out: shape (d,), private by itself."""
        feedback = self._feedback
        upload = self._upload(self._exchange) if feedback is None else feedback.owed(self._accounted_as)
        values = flatten(self._contract.exchange(self._exchange.leg.upload), upload)
        return PrivateAtClient(values, self._accounted_as)

    def _upload(self, exchange: Exchange) -> State:
        """Return what the method uploads of this round's update in an exchange."""
        setup, task = self._setup, self._task
        seed = setup.experiment.experiment.seed
        shared = Shared(seed, task.round, exchange.leg.upload, exchange.announced)
        return self._method.upload(setup.layout, task.state, self._update.state, shared)

    def _record(self, session: str | None, transcript: str | None = None) -> None:
        """Have the ledger record that the update goes into a session of this exchange."""
        exchange = self._exchange
        self._setup.ledger.release(
            self._update.reservation,
            session=session,
            transcript=transcript,
            exchange=exchange.number,
            announced=exchange.recorded,
        )


def open_session(
    setup: ClientSetup, task: RoundTask, exchange: Exchange, cohort: frozenset[str] | None = None
) -> SecAggClient:
    """Return this client's side of a new session of an exchange, bound to what it has loaded itself.

    Args:
        cohort: who confirmed the first exchange, once that is known.
    """
    return SecAggClient(**_session_arguments(setup, task, exchange, cohort))


def _session_arguments(
    setup: ClientSetup, task: RoundTask, exchange: Exchange, cohort: frozenset[str] | None
) -> _SessionArguments:
    """Return what the client side of a session is bound to: what this client itself has loaded."""
    leg, contract = exchange.leg, setup.method.at(task.round).contract(setup.layout)
    policy = client_policy(
        setup.experiment,
        contract.size(leg.upload),
        round=task.round,
        exchange=exchange.number,
        senders=None if leg.senders is None else len(leg.senders),
        cohort=cohort if exchange.answers else None,
        form=exchange.channel.form_on,
        max_proposal_bytes=exchange.most_proposal_bytes,
    )
    return _SessionArguments(
        client_id=setup.client_id,
        identity=setup.identity,
        roster=setup.roster,
        policy=policy,
        guard=setup.guard,
        context=task.context(bytes.fromhex(setup.experiment.digest()), setup.run, exchange),
    )


def _hex(value: bytes | None) -> str:
    """Return an id of the running session as hex."""
    if value is None:
        raise FederationError("a phase of secure aggregation came out of turn")
    return value.hex()
