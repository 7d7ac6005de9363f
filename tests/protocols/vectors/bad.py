"""The bad messages of session_bad.json, each with the error that must meet it.

A case replaces one recorded message of `session`: in `phase`, client-1's answer (`to` is "server") or the server's
request (`to` is "client-1"). All earlier ones are as recorded. Of the recorded message the bytes from `start` to
`stop` are replaced by `insert`, and then the last 64 bytes by `signature`, if there is one: what its sender could
sign is well signed.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from protocols.secagg import statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.identity import Identity
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    MaskedVector,
    Proposal,
    Reveal,
    RevealedShare,
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.transcript import set_digest

Case = dict[str, Any]
ANSWERS = {
    "advertise": Advertisement,
    "share": SharesOut,
    "mask": MaskedVector,
    "confirm": Confirmation,
    "reveal": Reveal,
}
REQUESTS = {
    "advertise": Proposal,
    "share": Advertisements,
    "mask": SharesIn,
    "confirm": Survivors,
    "reveal": Confirmations,
}
Change = Callable[[Any], Any]


class Session:
    """A recorded session, and what its clients could have signed instead."""

    def __init__(self, name: str, recorded: dict[str, Any]) -> None:
        self.name = name
        self.recorded = recorded
        self.steps = {step["phase"]: step for step in recorded["steps"]}
        self.t0, self.t1 = bytes.fromhex(recorded["t0"]), bytes.fromhex(recorded["t1"])
        self.n = len(recorded["private_keys"])

    def sent(self, phase: str, way: str, client: str = "client-1") -> bytes:
        """A recorded message."""
        return b64decode(self.steps[phase][way][client])

    def sign(self, client: str, statement: statements.Statement) -> bytes:
        """A client's valid signature."""
        identity = Identity.from_private_bytes(bytes.fromhex(self.recorded["private_keys"][client]))
        return identity.sign(*statement)

    def answer(self, name: str, phase: str, error: str, change: Change | bytes) -> Case:
        """A bad answer of client-1: changed and then signed, or bytes as they are."""
        data = change
        if not isinstance(change, bytes):
            message = change(decode(ANSWERS[phase], self.sent(phase, "answers"), "test"))
            data = encode(replace(message, signature=self.sign("client-1", self.said(phase, message))))
        return self.case(name, phase, "server", error, data)

    def request(self, name: str, phase: str, error: str, change: Change | bytes) -> Case:
        """A bad request to client-1."""
        data = change
        if not isinstance(change, bytes):
            data = encode(change(decode(REQUESTS[phase], self.sent(phase, "requests"), "test")))
        return self.case(name, phase, "client-1", error, data)

    def case(self, name: str, phase: str, to: str, error: str, data: Any) -> Case:
        """A row of the file."""
        recorded = self.sent(phase, "answers" if to == "server" else "requests")
        row = {"name": name, "session": self.name, "phase": phase, "to": to}
        return {**row, **_difference(recorded, data), "error": error}

    def said(self, phase: str, message: Any, t1: bytes = b"", u3: bytes = b"") -> statements.Statement:
        """What client-1 signs of such a message; everybody masked unless another H(U3) is given."""
        t1 = t1 or self.t1
        everybody = set_digest(range(self.n), self.n)
        match phase:
            case "advertise":
                return statements.advertise(self.t0, "client-1", message)
            case "share":
                return statements.share(t1, "client-1", message)
            case "mask":
                return statements.mask(t1, everybody, "client-1", statements.vector_digest(message.packed))
            case "confirm":
                attached = statements.attachment_digest(message.attachment)
                return statements.confirm(t1, everybody, u3 or everybody, "client-1", attached)
        return statements.reveal(t1, "client-1", message)


def _difference(good: bytes, bad: bytes) -> Case:
    """Return the edit that makes `bad` of `good`."""
    signature = {}
    if len(bad) >= 64 and bad[-64:] != good[-64:] and bad[:-64] != good[: len(bad) - 64]:
        signature = {"signature": bad[-64:].hex()}
        bad = bad[:-64] + good[-64:]
    start = _alike(good, bad)
    same_end = _alike(good[start:][::-1], bad[start:][::-1])
    stop = len(good) - same_end
    return {"start": start, "stop": stop, "insert": bad[start : len(bad) - same_end].hex(), **signature}


def _alike(one: bytes, other: bytes) -> int:
    """Return how many bytes two strings begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def bad_cases(sessions: dict[str, dict[str, Any]]) -> list[Case]:
    """Return every case: those for the server first, each in the order of the phases."""
    from tests.protocols.vectors.bad_requests import proposals, requests

    by_name = {name: Session(name, recorded) for name, recorded in sessions.items()}
    parts = (_bytes, _advertise, _share, _mask, _confirm, _reveal)
    cases = [case for part in parts for case in part(by_name)]
    return [*cases, *proposals(by_name["session"]), *requests(by_name)]


def flipped(data: bytes, position: int) -> bytes:
    """One bit turned."""
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def _bytes(sessions: dict[str, Session]) -> Iterator[Case]:
    """What is no message."""
    late = sessions["session_late"]
    for phase, kind in ANSWERS.items():
        good = late.sent(phase, "answers")
        other = late.sent("confirm" if phase != "confirm" else "mask", "answers")
        wrong_kind = f"not a {kind.__name__} message of version 1"
        yield late.answer(f"{phase}: version 2", phase, wrong_kind, b"\x02" + good[1:])
        yield late.answer(f"{phase}: another phase's message", phase, wrong_kind, other)
        yield late.answer(f"{phase}: truncated", phase, "the message ends too early", good[:-1])
        yield late.answer(f"{phase}: a byte after it", phase, "1 bytes are left over", good + b"\0")
        refusal = f"client-1: the signature for '{phase}' does not verify"
        yield late.answer(f"{phase}: a flipped signature", phase, refusal, flipped(good, -1))
        stolen = late.sent(phase, "answers", "client-5")
        yield late.answer(f"{phase}: sent by client-5", phase, refusal, stolen)
        stale = sessions["session_ring"].sent(phase, "answers")
        yield late.answer(f"{phase}: of a stale session", phase, refusal, stale)
    for phase, kind in REQUESTS.items():
        good = late.sent(phase, "requests")
        wrong_kind = f"not a {kind.__name__} message of version 1"
        yield late.request(f"{phase}: the request of version 2", phase, wrong_kind, b"\x02" + good[1:])
        yield late.request(f"{phase}: the request truncated", phase, "server: ", good[:-1])
        yield late.request(f"{phase}: a byte after the request", phase, "1 bytes are left over", good + b"\0")


def _advertise(sessions: dict[str, Session]) -> Iterator[Case]:
    """Keys that cannot be used."""
    late = sessions["session_late"]
    for which in ("box_key", "mask_key"):
        yield late.answer(
            f"a low-order point in the {which}",
            "advertise",
            "client-1: its X25519 key is of low order",
            lambda m, which=which: replace(m, **{which: bytes(32) + getattr(m, which)[32:]}),
        )
        yield late.answer(
            f"an invalid ML-KEM key in the {which}",
            "advertise",
            "client-1: its ML-KEM key is invalid",
            lambda m, which=which: replace(m, **{which: getattr(m, which)[:32] + b"\xff" * 1184}),
        )


def _share(sessions: dict[str, Session]) -> Iterator[Case]:
    """Dealings that are not to the neighbours, or not complete."""
    late = sessions["session_late"]

    def first(**changes: Any) -> Change:
        """Change the first parcel."""
        return lambda m: replace(m, parcels=(replace(m.parcels[0], **changes), *m.parcels[1:]))

    others, halves = "it dealt to others", "a parcel has another sender or another half of the mask key"
    for name, error, change in (
        ("unsorted parcels", others, lambda m: replace(m, parcels=m.parcels[::-1])),
        ("a parcel missing", others, lambda m: replace(m, parcels=m.parcels[1:])),
        ("a parcel twice", others, lambda m: replace(m, parcels=(m.parcels[0], *m.parcels))),
        ("a parcel to itself", others, first(recipient=0)),
        ("a parcel of another sender", halves, first(sender=3)),
        ("no half of the mask key", halves, first(mask_encapsulation=b"")),
        ("an escrow that is too long", "its escrow has another length", _longer_escrow),
    ):
        yield late.answer(name, "share", error, change)
    message = decode(SharesOut, late.sent("share", "answers"), "test")
    elsewhere = replace(message, signature=late.sign("client-1", late.said("share", message, t1=bytes(32))))
    refusal = "client-1: the signature for 'share' does not verify"
    yield late.answer("a dealing signed for another transcript", "share", refusal, encode(elsewhere))


def _longer_escrow(message: SharesOut) -> SharesOut:
    """One byte more."""
    return replace(message, escrow=message.escrow + b"\0")


def _mask(sessions: dict[str, Session]) -> Iterator[Case]:
    """Vectors of another form, or for another U2."""
    late = sessions["session_late"]  # 6 values of 7 bits: 42 bits, 6 unused
    take = "6 values of 7 bits take 6 bytes"
    yield late.answer("a vector too long", "mask", take, lambda m: replace(m, packed=m.packed + b"\0"))
    yield late.answer("a vector too short", "mask", take, lambda m: replace(m, packed=m.packed[:-1]))
    yield late.answer(
        "unused bits that are set",
        "mask",
        "the unused last bits of a packed vector must be zero",
        lambda m: replace(m, packed=m.packed[:-1] + bytes([m.packed[-1] | 0x80])),
    )
    good = decode(MaskedVector, late.sent("mask", "answers"), "test")
    said = statements.mask(
        late.t1, set_digest(range(4), 5), "client-1", statements.vector_digest(good.packed)
    )
    other_u2 = encode(replace(good, signature=late.sign("client-1", said)))
    refusal = "client-1: the signature for 'mask' does not verify"
    yield late.answer("a vector signed for another U2", "mask", refusal, other_u2)


def _confirm(sessions: dict[str, Session]) -> Iterator[Case]:
    """Confirmations of something else."""
    late = sessions["session_late"]
    good = decode(Confirmation, late.sent("confirm", "answers"), "test")
    refusal = "client-1: the signature for 'confirm' does not verify"
    other_u3 = late.said("confirm", good, u3=set_digest(range(4), 5))
    data = encode(replace(good, signature=late.sign("client-1", other_u3)))
    yield late.answer("a confirmation of another U3", "confirm", refusal, data)
    data = encode(replace(good, attachment=b"forged"))
    yield late.answer("another attachment", "confirm", refusal, data)
    long = b"\x01\x08" + (1025).to_bytes(4, "little") + bytes(1025 + 64)
    yield late.answer("an attachment of 1025 bytes", "confirm", "a claimed length exceeds its limit", long)


def _reveal(sessions: dict[str, Session]) -> Iterator[Case]:
    """Shares that are not those dealt, or more than one of a client."""
    late, masks = sessions["session_late"], sessions["session_ring"]
    not_dealt, order = "it reveals a share that is not the one dealt to it", "it reveals shares out of order"

    def first(**changes: Any) -> Change:
        """Change the first share."""
        return lambda m: replace(m, shares=(replace(m.shares[0], **changes), *m.shares[1:]))

    for name, error, change in (
        ("a share of zeros", not_dealt, first(share=bytes(64))),
        ("another salt", not_dealt, first(salt=bytes(16))),
        (
            "a share of an owner that does not exist",
            not_dealt,
            _appended(RevealedShare(9, bytes(64), bytes(16))),
        ),
        ("a share twice", order, lambda m: replace(m, shares=(m.shares[0], *m.shares))),
        ("unsorted shares", order, lambda m: replace(m, shares=m.shares[::-1])),
    ):
        yield late.answer(name, "reveal", error, change)
    other = _share_of_the_other_secret(late)
    yield late.answer(
        "a second reveal: the master of a survivor",
        "reveal",
        not_dealt,
        lambda m: replace(m, shares=(other, *m.shares[1:])),
    )
    message = decode(Reveal, late.sent("reveal", "answers"), "test")
    elsewhere = replace(message, signature=late.sign("client-1", late.said("reveal", message, t1=masks.t1)))
    refusal = "client-1: the signature for 'reveal' does not verify"
    yield late.answer("a reveal signed for another transcript", "reveal", refusal, encode(elsewhere))


def _appended(share: RevealedShare) -> Change:
    """One share more."""
    return lambda m: replace(m, shares=(*m.shares, share))


def _share_of_the_other_secret(session: Session) -> RevealedShare:
    """What client-1 holds of client-1's master, out of its snapshot before it reveals."""
    from protocols.secagg.client_state import Confirmed
    from protocols.secagg.snapshot import from_snapshot
    from protocols.secagg.transcript import digest

    context = bytes.fromhex(session.recorded["context"])
    snapshot = b64decode(session.steps["reveal"]["snapshot_of_client_1"])
    state = from_snapshot((Confirmed,), snapshot, digest(b"client-snapshot", b"client-1", context), of="test")
    return RevealedShare(state.held[0].owner, state.held[0].master_share, state.held[0].master_salt)
