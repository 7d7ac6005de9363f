"""Attack both machines in every phase with bytes and messages that nobody honest would send.

    python tests/protocols/fuzz.py --cases 1000000 --seed 1

A case restores a machine from its snapshot, gives it one bad message, and looks at what comes back:

    a client    answers, or raises what its docstring promises and is out of the session
    the server  raises a RemoteProtocolError that names the sender; or, if the sender really signed that message,
                takes it and closes the phase, with messages or with an abort

The messages are honest ones with bits flipped, cut, spliced, extended or with lengths that lie; honest ones of
another phase, client or session; random bytes; and decoded ones with fields changed, signed anew by the client
that is said to send them. Some of those the server may take: then now and then the whole session is run to its
end, which must be the exact sum or an abort. Every so often a case is run under tracemalloc.

The same seed gives the same mutations of the same fields, under fresh keys in each run.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from protocols.errors import (
    SERVER,
    GuardViolation,
    PolicyViolation,
    ProtocolError,
    RemoteProtocolError,
    SessionAborted,
)
from protocols.secagg import messages, statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.interface import PHASES
from protocols.secagg.limits import most_bytes
from protocols.secagg.server import SecAggServer
from protocols.secagg.transcript import MerkleTree

CHEAT = "client-2"  # it has neighbours of lower and of higher index
ASKED = dict(
    zip(
        PHASES,
        (
            messages.Proposal,
            messages.Advertisements,
            messages.SharesIn,
            messages.Survivors,
            messages.Confirmations,
        ),
        strict=True,
    )
)
ANSWERED = dict(
    zip(
        PHASES,
        (
            messages.Advertisement,
            messages.SharesOut,
            messages.MaskedVector,
            messages.Confirmation,
            messages.Reveal,
        ),
        strict=True,
    )
)
MEMORY_EVERY = 500
FINISH_EVERY = 20
BYTES_PER_BYTE, BYTES_BESIDE = 10, 100_000
"""A message of at most m bytes may cost this many bytes for each, and this many beside: keys, ciphers, vectors."""


class Finding(AssertionError):
    """A machine did what it must not do."""


@dataclass
class Scene:
    """One phase of one session: what CHEAT is asked, what it would answer, and both machines just before."""

    federation: Any
    phase: str
    asked: bytes
    answer: bytes
    clients: dict[str, bytes]
    server: bytes
    t1: bytes
    set_digests: tuple[bytes, ...]
    standing: SecAggServer | None = None

    def restored_server(self) -> SecAggServer:
        """Return the server as it was just before CHEAT's answer."""
        federation = self.federation
        return SecAggServer.restore(self.server, parameters=federation.parameters, roster=federation.roster)


def scenes(federation: Any) -> dict[str, Scene]:
    """Run a session, and stop in every phase after everybody but CHEAT has answered."""
    found = {}
    inbox = federation.server.start()
    for phase in PHASES:
        before = {name: client.snapshot() for name, client in federation.clients.items()}
        answers = {name: federation.answer(name, phase, inbox[name]) for name in federation.names}
        for name in federation.names:
            if name != CHEAT:
                federation.server.receive(name, answers[name])
        at, server = PHASES.index(phase), federation.server
        t1 = server._tree.root if at > 0 else b""
        digests = (
            (server._u2_digest,) if at == 2 else (server._u2_digest, server._u3_digest) if at > 2 else ()
        )
        state = server.snapshot()
        found[phase] = Scene(federation, phase, inbox[CHEAT], answers[CHEAT], before, state, t1, digests)
        found[phase].clients |= {
            f"after {name}": client.snapshot() for name, client in federation.clients.items()
        }
        federation.server.receive(CHEAT, answers[CHEAT])
        inbox = federation.server.advance()
    return found


class Fuzzer:
    """Counts what happens; `run` raises a Finding at the first thing that must not happen."""

    def __init__(self, make_federation: Callable[..., Any], seed: int) -> None:
        self.rng = random.Random(seed)
        shapes = [{"n": 4}, {"n": 9, "degree": 6}]
        self.sessions = [scenes(make_federation(**shape)) for shape in shapes]
        others = [scenes(make_federation(**shape, session_id=bytes(32))) for shape in shapes]
        stages = [stage for session in (*self.sessions, *others) for stage in session.values()]
        self.pool = [message for stage in stages for message in (stage.asked, stage.answer)]
        self.outcomes: Counter[str] = Counter()
        self.meter = Meter()
        self.weighed, self.heaviest = 0, 0.0

    def run(self, cases: int) -> None:
        """Try that many cases."""
        for number in range(cases):
            scene = self.rng.choice(self.sessions)[self.rng.choice(PHASES)]
            at_client = self.rng.random() < 0.5
            honest, kind = (scene.asked, ASKED) if at_client else (scene.answer, ANSWERED)
            signed = self.rng.random() < 0.3
            bad = self.forged(scene, at_client) if signed else self.mutated(honest)
            if bad == honest:
                continue
            self.meter.on = number % MEMORY_EVERY == 0
            try:
                self.at_client(scene, bad) if at_client else self.at_server(scene, bad, signed)
                if self.meter.on:
                    self.weigh(scene, bad, kind[scene.phase])
            except Exception as error:
                where = "client" if at_client else "server"
                traceback.print_exc()
                raise Finding(
                    f"case {number}, {where}, {scene.phase}, signed={signed}: {bad[:99].hex()}"
                ) from error

    def weigh(self, scene: Scene, bad: bytes, kind: Any) -> None:
        """Compare the memory that a message took with what one of its length may take."""
        federation = scene.federation
        proposed = federation.policy.max_proposal_bytes
        limit = proposed if kind is messages.Proposal else most_bytes(kind, federation.parameters)
        allowed = BYTES_PER_BYTE * min(len(bad), limit) + BYTES_BESIDE
        self.weighed += 1
        self.heaviest = max(self.heaviest, self.meter.peak / allowed)
        check(self.meter.peak <= allowed, f"{self.meter.peak} bytes for a message of {len(bad)}")

    def at_client(self, scene: Scene, bad: bytes) -> None:
        """Give a bad message to CHEAT, who is honest here."""
        federation, phase = scene.federation, scene.phase
        client = federation.restore(CHEAT, scene.clients[CHEAT], guard=MemoryGuard())
        arguments = (federation.vectors[CHEAT],) if phase == "mask" else ()
        try:
            with self.meter:
                answer = getattr(client, phase)(bad, *arguments)
        except (RemoteProtocolError, PolicyViolation, GuardViolation) as error:
            check(client.phase == "refused", "a client that raised is not out")
            named = error.client_id if isinstance(error, RemoteProtocolError) else SERVER
            check(named == SERVER or named in federation.names, "the error names somebody unknown")
            self.outcomes[f"client, {phase}: {type(error).__name__}"] += 1
        else:
            check(isinstance(answer, bytes) and client.phase != phase, "an answer, but no other phase")
            check(phase != "reveal" or answer == scene.answer, "a bad message changed what is revealed")
            self.outcomes[f"client, {phase}: answer"] += 1

    def at_server(self, scene: Scene, bad: bytes, signed: bool) -> None:
        """Give the server a bad message in the name of CHEAT."""
        server = scene.standing or scene.restored_server()
        scene.standing = None
        try:
            with self.meter:
                server.receive(CHEAT, bad)
        except RemoteProtocolError as error:
            check(error.client_id == CHEAT, "the error names somebody else")
            check(server.lost == {CHEAT: scene.phase}, "somebody else is lost")
            # Nothing else may have changed: so this server, without that loss, is good for the next case too.
            server._state.lost.clear()
            check(
                self.rng.randrange(100) > 0 or server.snapshot() == scene.server, "a refusal left something"
            )
            scene.standing = server
            self.outcomes[f"server, {scene.phase}: RemoteProtocolError"] += 1
            return
        check(signed, "the server took what nobody signed")
        self.outcomes[f"server, {scene.phase}: taken"] += 1
        try:
            inbox = server.advance()
        except SessionAborted:
            self.outcomes[f"server, {scene.phase}: SessionAborted"] += 1
            return
        if self.rng.randrange(FINISH_EVERY) == 0:
            self.finish(scene, server, inbox, bad)

    def finish(self, scene: Scene, server: SecAggServer, inbox: dict[str, bytes], bad: bytes) -> None:
        """Run the session to its end. CHEAT goes on honestly, or is lost."""
        federation = scene.federation
        clients = {
            name: federation.restore(name, scene.clients[f"after {name}"], guard=MemoryGuard())
            for name in federation.names
            if name != CHEAT or self.rng.random() < 0.5
        }
        try:
            for phase in PHASES[PHASES.index(scene.phase) + 1 :]:
                for name in [name for name in inbox if name in clients]:
                    arguments = (federation.vectors[name],) if phase == "mask" else ()
                    try:
                        answer = getattr(clients[name], phase)(inbox[name], *arguments)
                        server.receive(name, answer)
                    except ProtocolError:
                        continue
                inbox = server.advance()
        except SessionAborted:
            self.outcomes["to the end: SessionAborted"] += 1
            return
        result = server.result()
        spoilt = encapsulated(scene, bad) or (scene.phase == "mask" and CHEAT in result.survivors)
        exact = np.array_equal(result.sum, federation.plain_sum(result.survivors))
        check(exact or spoilt, "a wrong sum")
        self.outcomes["to the end: " + ("the sum" if exact else "a sum that CHEAT spoilt")] += 1

    def mutated(self, honest: bytes) -> bytes:
        """Return bytes that are wrong somewhere."""
        rng, size = self.rng, len(honest)
        match rng.randrange(10):
            case 0 | 1:  # flipped bits
                data = bytearray(honest)
                for _ in range(rng.choice((1, 1, 1, 2, 8))):
                    data[rng.randrange(size)] ^= 1 << rng.randrange(8)
                return bytes(data)
            case 2:  # cut
                return honest[: rng.randrange(size)]
            case 3:  # extended
                return honest + rng.randbytes(rng.choice((1, 4, 40, 4 * size)))
            case 4:  # spliced with another message
                other = rng.choice(self.pool)
                return honest[: rng.randrange(size)] + other[rng.randrange(len(other)) :]
            case 5:  # a piece taken out or doubled
                start, stop = sorted((rng.randrange(size), rng.randrange(size)))
                return honest[:stop] + honest[start if rng.random() < 0.5 else stop :][: 2 * size]
            case 6:  # a length or count that lies
                lie = rng.choice((0, 1, 2**16, 2**31, 2**32 - 1, size, rng.randrange(2**32))).to_bytes(
                    4, "little"
                )
                start = rng.randrange(2, min(size, 200)) if rng.random() < 0.7 else rng.randrange(size)
                return honest[:start] + lie + honest[start + 4 :]
            case 7:  # another message of this or another client, phase or session
                return rng.choice(self.pool)
            case 8:  # the right header, then noise
                return honest[:2] + rng.randbytes(rng.choice((0, 1, 7, 100, size)))
            case _:
                return rng.randbytes(rng.randrange(200))

    def forged(self, scene: Scene, at_client: bool) -> bytes:
        """Return a well-formed message with some field changed, signed anew where CHEAT or a peer can sign."""
        kind, honest = (ASKED, scene.asked) if at_client else (ANSWERED, scene.answer)
        while True:
            message = decode(kind[scene.phase], honest, "fuzz")
            try:
                if at_client and scene.phase == "share" and self.rng.random() < 0.5:
                    message = self.other_keys(scene)
                else:
                    for _ in range(self.rng.choice((1, 1, 2))):
                        message = self.changed(message)
                return encode(message if at_client else self.signed(scene, message))
            except ProtocolError:
                continue  # it does not fit its width: no message at all

    def other_keys(self, scene: Scene) -> messages.Advertisements:
        """Return what a server shows CHEAT when a colluding client advertises keys of its choice."""
        federation = scene.federation
        n, t0 = federation.parameters.n, statements.parameters_digest(federation.parameters)
        leaves = {leaf.index: leaf for leaf in decode(messages.Advertisements, scene.asked, "fuzz").leaves}
        index = self.rng.choice([i for i in leaves if federation.names[i] != CHEAT])
        advertisement = self.changed(leaves[index].advertisement)
        statement = statements.advertise(t0, federation.names[index], advertisement)
        signature = federation.clients[federation.names[index]]._identity.sign(*statement)
        leaves[index] = replace(leaves[index], advertisement=replace(advertisement, signature=signature))
        tree = MerkleTree(t0, {i: encode(leaf.advertisement) for i, leaf in leaves.items()}, n)
        holders = MaskGraph(n, federation.parameters.degree, tree.root).holders(federation.names.index(CHEAT))
        shown = tuple(replace(leaves[i], path=tree.path(i)) for i in holders if i in leaves)
        return messages.Advertisements(tree.root, shown)

    def signed(self, scene: Scene, message: Any) -> Any:
        """Return CHEAT's message with a signature that verifies."""
        federation = scene.federation
        t1 = scene.t1
        match scene.phase:
            case "advertise":
                t0 = statements.parameters_digest(federation.parameters)
                statement = statements.advertise(t0, CHEAT, message)
            case "share":
                statement = statements.share(t1, CHEAT, message)
            case "mask":
                masked = statements.vector_digest(message.packed)
                statement = statements.mask(t1, *scene.set_digests, CHEAT, masked)
            case "confirm":
                attached = statements.attachment_digest(message.attachment)
                statement = statements.confirm(t1, *scene.set_digests, CHEAT, attached)
            case _:
                statement = statements.reveal(t1, CHEAT, message)
        return replace(message, signature=federation.clients[CHEAT]._identity.sign(*statement))

    def changed(self, value: Any) -> Any:
        """Return a value of the same type that differs somewhere inside."""
        rng = self.rng
        if dataclasses.is_dataclass(value):
            name = rng.choice(
                [field.name for field in dataclasses.fields(value) if field.name != "signature"]
            )
            return replace(value, **{name: self.changed(getattr(value, name))})
        if isinstance(value, int):
            return rng.choice(
                (0, 1, value + 1, max(value - 1, 0), 2**16 - 1, 2**32 - 1, rng.randrange(2**16))
            )
        if isinstance(value, str):
            return rng.choice(("", SERVER, value + "x", value[::-1], "\0", "client-1", "ü" * 32))
        if isinstance(value, bytes):
            same = len(value)
            return rng.choice(
                (
                    bytes(same),
                    b"\xff" * same,
                    rng.randbytes(same),
                    b"",
                    value + b"\0",
                    value[:-1],
                    self.flipped(value),
                )
            )
        return self.changed_tuple(value)

    def changed_tuple(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return other items: fewer, more, in another order, or one of them changed."""
        rng = self.rng
        if not items:
            return items
        at = rng.randrange(len(items))
        match rng.randrange(6):
            case 0:
                return items[:at] + items[at + 1 :]
            case 1:
                return (*items, items[at])
            case 2:
                return items[::-1]
            case _:
                return (*items[:at], self.changed(items[at]), *items[at + 1 :])

    def flipped(self, value: bytes) -> bytes:
        """Return the bytes with one bit flipped."""
        if not value:
            return value
        at = self.rng.randrange(len(value))
        return value[:at] + bytes((value[at] ^ 1 << self.rng.randrange(8),)) + value[at + 1 :]


def encapsulated(scene: Scene, bad: bytes) -> bool:
    """Whether CHEAT signed another half of a mask key than it has: a client may spoil a sum, so also like this."""
    if scene.phase != "share":
        return False
    dealt = [decode(messages.SharesOut, data, CHEAT).parcels for data in (bad, scene.answer)]
    halves = [[parcel.mask_encapsulation for parcel in parcels] for parcels in dealt]
    return halves[0] != halves[1]


class Meter:
    """The peak of what Python and numpy allocate inside, in bytes, while it is on."""

    def __init__(self) -> None:
        self.on, self.peak = False, 0

    def __enter__(self) -> None:
        if self.on:
            tracemalloc.start()

    def __exit__(self, *exception: object) -> None:
        if self.on:
            self.peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()


def check(holds: bool, otherwise: str) -> None:
    """Raise a finding unless the condition holds."""
    if not holds:
        raise Finding(otherwise)


def main() -> None:
    """Fuzz from the command line, and print what happened."""
    from conftest import Federation

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started, fuzzer = time.monotonic(), Fuzzer(Federation, arguments.seed)
    fuzzer.run(arguments.cases)
    took = time.monotonic() - started
    print(
        f"{arguments.cases} cases, seed {arguments.seed}, {took:.0f} s, Python {sys.version.split()[0]}: no finding"
    )
    print(f"memory of {fuzzer.weighed} cases: at most {fuzzer.heaviest:.0%} of what is allowed")
    for outcome, count in sorted(fuzzer.outcomes.items()):
        print(f"{count:9}  {outcome}")


if __name__ == "__main__":
    main()
