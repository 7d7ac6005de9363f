"""The bad requests of session_bad.json: what a server must not get out of client-1. See `bad` for their form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from protocols.secagg import keys
from protocols.secagg.graph import MaskGraph
from protocols.secagg.messages import Proposal
from protocols.secagg.transcript import to_bitmap
from tests.protocols.vectors.bad import Case, Change, Session, flipped


def proposals(session: Session) -> Iterator[Case]:
    """Proposals that a client refuses; its policy asks for two of everything."""

    def change(**changes: Any) -> Change:
        """Change parameters."""
        return lambda m: replace(m, parameters=replace(m.parameters, **changes))

    def left_out(name: str, value: Any) -> Change:
        """Leave a parameter to its default, which the constructor would fill in."""

        def changed(message: Proposal) -> Proposal:
            object.__setattr__(message.parameters, name, value)
            return message

        return changed

    for name, error, changed in (
        ("another context", "another model", change(context=bytes(32))),
        ("a quorum of one", "2*quorum > n + max_colluders", change(quorum=1)),
        ("a quorum above min_survivors", "quorum <= min_survivors <= n", change(quorum=3)),
        ("more survivors than clients", "quorum <= min_survivors <= n", change(min_survivors=4)),
        ("a threshold of nobody", "max_colluders < threshold", change(threshold=0)),
        ("a threshold beyond the holders", "threshold <= degree + 1", change(threshold=4)),
        ("an odd ring", "degree n-1, or even and below", change(degree=1)),
        ("sums that overflow", "n*bound < 2^(modulus_bits-1)", change(bound=342)),
        ("no entry", "vector_length >= 1", change(vector_length=0)),
        ("one bit", "modulus_bits 2 to 32", change(modulus_bits=1)),
        ("one name twice", "distinct names", change(roster=("client-1", "client-1", "client-3"))),
        ("an empty name", "a client_id is 1 to 64 bytes", change(roster=("client-1", "", "client-3"))),
        ("a reserved name", "no client may be called", change(roster=("client-1", "server", "client-3"))),
        ("somebody not pinned", "not pinned: mallory", change(roster=("client-1", "client-2", "mallory"))),
        (
            "without client-1",
            "does not have this client",
            change(roster=("client-3", "client-2", "client-4")),
        ),
        ("a thin group", "fewer contributors than 2", _thin_group),
        ("no group", "leaves something out", left_out("groups", ())),
        ("no min_contributors", "leaves something out", left_out("min_contributors", 0)),
    ):
        yield session.request(f"a proposal with {name}", "advertise", error, changed)
    good = session.sent("advertise", "requests")
    data = good.replace(b"client-2", b"client-\xff")
    yield session.request("a name that is not UTF-8", "advertise", "a text is not UTF-8", data)


def _thin_group(message: Proposal) -> Proposal:
    """A group of one."""
    (group,) = message.parameters.groups
    thin = replace(group, contributors=(0,))
    return replace(message, parameters=replace(message.parameters, groups=(thin,)))


def requests(sessions: dict[str, Session]) -> Iterator[Case]:
    """Requests of the later phases that client-1 refuses."""
    late, setup, ring = sessions["session_late"], sessions["session_setup"], sessions["session_ring"]
    yield from _advertisements(late)
    yield from _boxes(late, setup)
    yield from _survivors(late, setup, ring)
    yield from _confirmations(late)


def _advertisements(late: Session) -> Iterator[Case]:
    """Odd keys of others, or of its own."""
    mallory = keys.KeyPair.from_secret(bytes(96)).public_bytes

    def leaves(pick: Change) -> Change:
        """Change the list of leaves."""
        return lambda m: replace(m, leaves=pick(m.leaves))

    def swapped(found: Any) -> Any:
        """client-2's box key replaced."""
        advertisement = replace(found[1].advertisement, box_key=mallory)
        return (found[0], replace(found[1], advertisement=advertisement), *found[2:])

    not_in = "the advertisement of client-{} is not in the tree"
    for name, error, change in (
        ("another T1", not_in.format(1), lambda m: replace(m, t1=bytes(32))),
        ("a swapped key", not_in.format(2), leaves(swapped)),
        ("a short path", not_in.format(1), leaves(lambda f: (replace(f[0], path=f[0].path[1:]), *f[1:]))),
        ("unsorted leaves", "advertisements of no neighbours", leaves(lambda f: f[::-1])),
        ("a leaf twice", "advertisements of no neighbours", leaves(lambda f: (f[0], *f))),
        ("its own leaf missing", "own advertisement is missing", leaves(lambda f: f[1:])),
        ("two leaves only", "too few neighbours advertised", leaves(lambda f: f[:2])),
    ):
        yield late.request(f"advertisements: {name}", "share", error, change)


def _boxes(late: Session, setup: Session) -> Iterator[Case]:
    """Odd sets U2, and parcels that do not go with them."""
    whole = to_bitmap(range(5), 5)

    def parcels(pick: Change) -> Change:
        """Change the list of parcels."""
        return lambda m: replace(m, parcels=pick(m.parcels))

    bitmap, odd = "not a bitmap of the roster", "the parcels are not those of this client's neighbours in U2"
    for name, error, change in (
        ("a bit beyond the roster", bitmap, lambda m: replace(m, u2=b"\x3f")),
        ("a bitmap too long", bitmap, lambda m: replace(m, u2=whole + b"\0")),
        ("a U2 without client-1", "U2 does not have this client", lambda m: replace(m, u2=b"\x1e")),
        ("a U2 of two", "U2 is smaller than the quorum", lambda m: replace(m, u2=b"\x03")),
        ("a parcel missing", odd, parcels(lambda f: f[1:])),
        ("unsorted parcels", odd, parcels(lambda f: f[::-1])),
        ("a parcel twice", odd, parcels(lambda f: (f[0], *f))),
        (
            "a parcel for client-2",
            "for somebody else",
            parcels(lambda f: (replace(f[0], recipient=1), *f[1:])),
        ),
        (
            "half of a mask key too much",
            "lacks its half of the mask key",
            parcels(lambda f: (replace(f[0], mask_encapsulation=bytes(1088)), *f[1:])),
        ),
    ):
        yield late.request(f"boxes: {name}", "mask", error, change)
    yield setup.request(
        "boxes: a U2 with client-2, who never advertised",
        "mask",
        "U2 has a neighbour that never advertised",
        lambda m: replace(m, u2=to_bitmap((0, 1, 2, 4), 5)),
    )


def _said(pick: Change) -> Change:
    """Change the list of statements."""
    return lambda m: replace(m, statements=pick(m.statements))


def _survivors(late: Session, setup: Session, ring: Session) -> Iterator[Case]:
    """Odd sets U3, and statements that do not go with them."""
    odd = "the mask statements are not those of this client's neighbours in U3"
    for name, error, change in (
        ("a U3 without client-1", "U3 does not have this client", lambda m: replace(m, u3=b"\x1e")),
        ("a U3 of two", "U3 is smaller than the quorum", lambda m: replace(m, u3=b"\x03")),
        ("a group left with two", "too few contributors in U3", lambda m: replace(m, u3=b"\x0f")),
        ("a statement missing", odd, _said(lambda f: f[1:])),
        ("unsorted statements", odd, _said(lambda f: f[::-1])),
        (
            "a flipped statement",
            "client-2: the signature for 'mask' does not verify",
            _said(lambda f: (replace(f[0], signature=flipped(f[0].signature, 0)), *f[1:])),
        ),
        (
            "two statements swapped",
            "client-2: the signature for 'mask' does not verify",
            _said(lambda f: (replace(f[1], index=f[0].index), replace(f[0], index=f[1].index), *f[2:])),
        ),
    ):
        yield late.request(f"survivors: {name}", "confirm", error, change)
    yield setup.request(
        "survivors: a U3 outside U2",
        "confirm",
        "U3 does not have this client, or has one outside U2",
        lambda m: replace(m, u3=to_bitmap((0, 2, 3, 4), 5)),
    )
    yield ring.request(
        "survivors: a ring cut in two", "confirm", "U3 leaves two windows of the ring", _cut(ring)
    )


def _confirmations(late: Session) -> Iterator[Case]:
    """Too few confirmations, or of others."""
    few, outside = "fewer confirmations than the quorum", "confirmations of clients that are not in U3"
    for name, error, change in (
        ("one too few", few, _said(lambda f: f[:-1])),
        ("one twice", outside, _said(lambda f: (f[0], *f[:-1]))),
        ("unsorted", outside, _said(lambda f: f[::-1])),
        ("one of nobody", outside, _said(lambda f: (*f[:-1], replace(f[-1], index=9)))),
        (
            "another attachment",
            "client-1: the signature for 'confirm' does not verify",
            _said(lambda f: (replace(f[0], attachment_digest=bytes(32)), *f[1:])),
        ),
    ):
        yield late.request(f"confirmations: {name}", "reveal", error, change)


def _cut(ring: Session) -> Change:
    """Two clients out of U3 who sit apart on the ring: with degree 2, windows of one place."""
    order = MaskGraph(7, 2, ring.t1)._order
    start = order.index(0)
    out = {order[(start + 2) % 7], order[(start + 4) % 7]}
    kept = set(range(7)) - out
    return lambda m: replace(
        m, u3=to_bitmap(kept, 7), statements=tuple(s for s in m.statements if s.index in kept)
    )
