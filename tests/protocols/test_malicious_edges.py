"""What the other suites of malicious peers leave out: sizes, counts, and what every derivation is bound to."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.errors import (
    LocalProtocolError,
    PolicyViolation,
    RemoteProtocolError,
    SessionAborted,
    SignatureError,
)
from protocols.packing import unpack
from protocols.secagg import dealing, keys, limits, shamir, statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster, verify
from protocols.secagg.interface import PHASES
from protocols.secagg.mask import Mask, add_masks
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    ConfirmStatement,
    MaskedVector,
    MaskStatement,
    Proposal,
    Reveal,
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.session import CoordinateGroup, VectorForm
from protocols.secagg.transcript import set_digest, to_bitmap
from protocols.voting import value_policy

VICTIM = "client-1"
REQUESTS = dict(zip(PHASES[1:], (Advertisements, SharesIn, Survivors, Confirmations), strict=True))
ANSWERS = dict(zip(PHASES, (Advertisement, SharesOut, MaskedVector, Confirmation, Reveal), strict=True))


# Sizes.


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_reads_no_message_beyond_its_limit(federation: Any, phase: str) -> None:
    if phase == "advertise":
        most = 100
        policy = replace(federation.policy, max_proposal_bytes=most)
        federation.clients[VICTIM] = federation.client(VICTIM, policy=policy)
    else:
        federation.drive(until=phase)
        most = limits.most_bytes(REQUESTS[phase], federation.parameters)
    federation.refuses(phase, bytes(most + 1), f"here it has at most {most}")


@pytest.mark.parametrize("phase", PHASES)
def test_the_server_reads_no_message_beyond_its_limit(federation: Any, phase: str) -> None:
    federation.drive(until=phase)
    most = limits.most_bytes(ANSWERS[phase], federation.parameters)
    with pytest.raises(RemoteProtocolError, match=f"client-1: .* here it has at most {most}"):
        federation.server.receive(VICTIM, bytes(most + 1))


@pytest.mark.parametrize("phase", PHASES)
def test_every_honest_message_is_within_its_limit(make_federation: Any, phase: str) -> None:
    for federation in (make_federation(), make_federation(n=15, degree=6)):
        inbox = federation.drive(until=phase)
        longest = limits.longest(ANSWERS[phase], federation.parameters)
        assert len(federation.answer(VICTIM, phase, inbox[VICTIM])) <= longest
        if phase != "advertise":
            assert len(inbox[VICTIM]) <= limits.longest(REQUESTS[phase], federation.parameters)


def test_a_count_is_refused_before_its_items(federation: Any) -> None:
    message = federation.drive(until="confirm")[VICTIM]
    count_at = 2 + 4 + 1  # after version and kind, and the bitmap
    lying = message[:count_at] + (2**32 - 1).to_bytes(4, "little") + message[count_at + 4 :]
    federation.refuses("confirm", lying, "a claimed length exceeds")


# Who is there.


def test_u2_of_one_neighbourhood_alone_is_refused(make_federation: Any) -> None:
    # Every holder of the victim's secrets is there, and nobody else: its masks would do, the quorum does not.
    federation = make_federation(n=15, max_colluders=1, degree=6)
    message = federation.drive(until="mask")[VICTIM]
    holders = MaskGraph(15, 6, federation.clients[VICTIM].transcript).holders(0)
    federation.refuses(
        "mask", federation.edited(message, SharesIn, u2=to_bitmap(holders, 15)), "smaller than the quorum"
    )


def test_a_degree_beyond_the_roster_is_refused(federation: Any) -> None:
    parameters = replace(federation.parameters, degree=6)
    federation.refuses("advertise", encode(Proposal(parameters)), "degree")


def test_a_ring_that_no_survivors_could_keep_whole_is_refused(make_federation: Any) -> None:
    """Two windows of such a ring hold at most max_colluders clients: `confirm` would refuse every U3."""
    federation = make_federation(n=12, max_colluders=4, degree=6)
    parameters = replace(federation.parameters, degree=4, threshold=5)
    federation.refuses("advertise", encode(Proposal(parameters)), "degree > max_colluders")


def test_a_second_exchange_has_exactly_the_survivors(federation: Any) -> None:
    everybody = frozenset(federation.names)
    for exact, changes in (
        (everybody - {"client-5"}, {"quorum": 5, "min_survivors": 5}),
        (everybody | {"client-6"}, {"quorum": 5, "min_survivors": 5}),
        (everybody, {}),  # four of five would do: one could be lost
    ):
        policy = replace(federation.policy, exact_roster=exact)
        federation.clients[VICTIM] = federation.client(VICTIM, policy=policy)
        proposal = encode(Proposal(replace(federation.parameters, **changes)))
        federation.refuses("advertise", proposal, "exactly the earlier survivors")
    exact = replace(federation.policy, exact_roster=everybody)
    proposal = encode(Proposal(replace(federation.parameters, quorum=5, min_survivors=5)))
    assert federation.client(VICTIM, policy=exact).advertise(proposal)


def test_the_policy_of_a_second_exchange_names_it(federation: Any) -> None:
    policy = value_policy(replace(federation.policy, exact_round=(1, 0)), federation.names)
    assert policy.exact_round == (1, 1)
    strict = replace(federation.parameters, quorum=5, min_survivors=5)
    policy.check(replace(strict, exchange=1))
    with pytest.raises(PolicyViolation, match="another round or exchange"):
        policy.check(strict)
    assert value_policy(federation.policy, federation.names).exact_round is None


FORM = VectorForm(vector_length=7, modulus_bits=11, bound=204)


def test_the_form_of_the_vector_is_the_clients_own(federation: Any) -> None:
    policy = replace(federation.policy, exact_form=FORM)
    proposal = encode(Proposal(federation.parameters))
    assert federation.client(VICTIM, policy=policy).advertise(proposal)
    values = value_policy(replace(policy, exact_form=None), federation.names, FORM)
    assert values.exact_form == FORM
    assert value_policy(policy, federation.names).exact_form is None  # that of the votes does not hold here


@pytest.mark.parametrize(
    "changes",
    [
        {"bound": 5},
        {"modulus_bits": 12},
        {"vector_length": 6},
        {"groups": (CoordinateGroup(0, 1, (1, 2, 3, 4)), CoordinateGroup(1, 7, (0, 1, 2, 3, 4)))},
    ],
)
def test_whether_a_client_refuses_says_nothing_of_its_vector(
    make_federation: Any, changes: dict[str, object]
) -> None:
    """Under a bound of 5, or as no contributor to a group, `mask` would refuse or not as the vector is."""
    federation = make_federation(**changes)
    policy = replace(federation.policy, exact_form=FORM)
    federation.clients[VICTIM] = federation.client(VICTIM, policy=policy)
    federation.refuses("advertise", encode(Proposal(federation.parameters)), "another length, modulus, bound")


def test_a_client_restored_for_another_round_is_refused(federation: Any) -> None:
    """Else the vector of this round goes into a session that the server left open in the last one."""
    federation.drive(until="mask")
    snapshot = federation.clients[VICTIM].snapshot()
    later = replace(federation.policy, exact_round=(2, 0))
    with pytest.raises(PolicyViolation, match="another round"):
        federation.restore(VICTIM, snapshot, policy=later)
    revoked = Roster({name: key for name, key in federation.roster.items() if name != "client-5"})
    with pytest.raises(PolicyViolation, match="not pinned: client-5"):
        federation.restore(VICTIM, snapshot, roster=revoked)
    assert federation.restore(VICTIM, snapshot).phase == "mask"


def test_a_vector_is_zero_where_its_client_does_not_contribute(make_federation: Any) -> None:
    groups = (CoordinateGroup(0, 3, (0, 1, 2, 3, 4)), CoordinateGroup(3, 7, (0, 1, 2)))
    federation = make_federation(groups=groups, min_contributors=3)
    message = federation.drive(until="mask")["client-4"]
    vector = np.zeros(7, dtype=np.uint32)
    vector[5] = 1
    client = federation.clients["client-4"]
    with pytest.raises(LocalProtocolError, match="must be zero in the groups"):
        client.mask(message, vector)
    assert client.phase == "mask"


@pytest.mark.parametrize(
    ("phase", "did"), [("mask", "masked"), ("confirm", "confirmed"), ("reveal", "hold shares of client-1")]
)
def test_too_few_in_a_phase_abort_in_it_and_blame_nobody(federation: Any, phase: str, did: str) -> None:
    inbox = federation.drive(until=phase)
    for name in federation.names[:3]:
        federation.server.receive(name, federation.answer(name, phase, inbox[name]))
    with pytest.raises(SessionAborted, match=f"only 3 of at least 4 clients {did} [(]lost") as caught:
        federation.server.advance()
    assert caught.value.phase == phase
    assert caught.value.lost == ("client-4", "client-5")
    # Nothing of the three vectors, or of the shares, is kept.
    assert federation.server._sum.size == 0
    assert not federation.server._state.revealed


def test_who_is_not_pinned_is_said_to_be(federation: Any) -> None:
    identity = Identity.generate()
    roster = Roster({"ada": identity.public_bytes})
    with pytest.raises(RemoteProtocolError, match="eve: its identity is not pinned"):
        roster.verify("eve", b"label", b"payload", identity.sign(b"label", b"payload"))


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_leaves_that_the_guard_did_not_record(federation: Any, phase: str) -> None:
    class FullDisk(MemoryGuard):
        """A guard that cannot write outputs."""

        def record(self, session_id: bytes, phase: str, digest: bytes) -> None:
            raise OSError("no space left")

    message = federation.drive(until=phase)[VICTIM]
    snapshot = federation.clients[VICTIM].snapshot()
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot, guard=FullDisk())
    with pytest.raises(OSError, match="no space"):
        federation.answer(VICTIM, phase, message)
    assert federation.clients[VICTIM].snapshot() == snapshot  # it has not moved on, and can try again
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    assert federation.answer(VICTIM, phase, message)


# What is bound to what.


def test_t1_enters_every_derivation() -> None:
    secret, content = bytes(range(32)), b"content"

    def box(t1: bytes) -> bytes:
        """A box without the associated data, so that only its key can depend on T1."""
        return keys.BoxAddress(t1, "a", "b", b"").key(secret, secret, b"c").encrypt(bytes(12), content, None)

    derivations = {
        "self-mask": lambda t1: keys.self_mask_key(secret, t1, "a"),
        "pair mask": lambda t1: keys.pair_mask_key(secret, secret, t1, "a", "b", b"c"),
        "seed commitment": lambda t1: keys.commitment(secret, b"seed", t1, "a"),
        "master commitment": lambda t1: keys.commitment(secret, b"master", t1, "a"),
        "escrow": lambda t1: keys.seal_escrow(content, secret, t1, "a"),
        "box": box,
    }
    for name, derived in derivations.items():
        assert derived(bytes(32)) != derived(b"\x01" * 32), name
        assert derived(bytes(32)) == derived(bytes(32)), name


def test_a_box_says_where_it_goes() -> None:
    fields = {"t1": bytes(32), "sender": "a", "recipient": "b", "bound": b"c"}
    others = {"t1": b"\x01" * 32, "sender": "x", "recipient": "x", "bound": b"x"}
    said = {keys.BoxAddress(**fields).associated_data}
    for name, other in others.items():
        said.add(keys.BoxAddress(**{**fields, name: other}).associated_data)
    assert len(said) == 5
    assert all(b"share" in data for data in said)  # the phase


def test_a_confirmation_is_for_one_u2(federation: Any) -> None:
    # Two U2 with the same U3: a client that counted confirmations of the other would reveal master shares of
    # clients that the others hold to be outside of the session.
    inbox = federation.drive(until="reveal", lost=[("client-5", "mask")])
    t1, u3 = federation.server._tree.root, set_digest(range(4), 5)
    attached = statements.attachment_digest(b"")
    votes = []
    for index, name in enumerate(federation.names[:4]):
        other = statements.confirm(t1, set_digest(range(4), 5), u3, name, attached)
        votes.append(ConfirmStatement(index, attached, federation.clients[name]._identity.sign(*other)))
    federation.refuses("reveal", encode(Confirmations(tuple(votes))), "client-1: the signature for 'confirm'")
    assert federation.answer("client-2", "reveal", inbox["client-2"])


def test_a_survivor_who_never_masked_hides_more_not_less(make_federation: Any) -> None:
    # On a ring, only its neighbours notice that client-1 is named in U3 without having masked. The others are a
    # quorum, so all self-masks may come off. But nobody gives client-1's master away: the masks with it stay on.
    federation = make_federation(n=15, max_colluders=1, degree=4)  # a quorum of 9
    inbox = federation.drive(until="mask")
    t1 = federation.server._tree.root
    graph = MaskGraph(15, 4, t1)
    total, said, self_masks, masks_with_client_1 = np.zeros(7, dtype=np.uint32), {}, [], []
    for index, name in enumerate(federation.names[1:], 1):
        state = federation.clients[name]._state
        self_masks.append(Mask(keys.self_mask_key(state.seed, t1, name), subtract=True))
        parcels = [p for p in decode(SharesIn, inbox[name], "test").parcels if p.sender == 0]
        masks_with_client_1 += dealing.pair_masks(parcels, state, name)
        message = decode(MaskedVector, federation.answer(name, "mask", inbox[name]), name)
        said[index] = MaskStatement(index, statements.vector_digest(message.packed), message.signature)
        total += unpack(message.packed, 11, 7)
    confirmed = 0
    for index, name in enumerate(federation.names[1:], 1):
        shown = tuple(said[i] for i in graph.neighbours(index) if i in said)
        request = encode(Survivors(to_bitmap(range(15), 15), shown))
        if index in graph.neighbours(0):
            federation.refuses("confirm", request, "the mask statements are not those", by=name)
        else:
            confirmed += bool(federation.answer(name, "confirm", request))
    assert confirmed == 10
    add_masks(total, self_masks, 11)
    plain = federation.plain_sum(federation.names[1:])
    assert not np.array_equal(total, plain)
    assert len(masks_with_client_1) == 4
    add_masks(total, [mask.inverse for mask in masks_with_client_1], 11)
    np.testing.assert_array_equal(total, plain)


def test_a_reveal_is_for_one_transcript(federation: Any) -> None:
    inbox = federation.drive(until="reveal")
    honest = decode(Reveal, federation.answer(VICTIM, "reveal", inbox[VICTIM]), "test")
    identity = federation.clients[VICTIM]._identity
    elsewhere = identity.sign(*statements.reveal(bytes(32), VICTIM, honest))
    with pytest.raises(RemoteProtocolError, match="client-1: the signature for 'reveal'"):
        federation.server.receive(VICTIM, encode(replace(honest, signature=elsewhere)))


def test_a_signature_of_one_phase_is_none_of_another() -> None:
    identity = Identity.generate()
    for label, other in itertools.permutations([phase.encode() for phase in PHASES], 2):
        with pytest.raises(SignatureError):
            verify(identity.public_bytes, other, b"payload", identity.sign(label, b"payload"))


def test_fewer_shares_than_the_threshold_say_nothing(federation: Any) -> None:
    federation.drive(until="share")
    state = federation.clients[VICTIM]._state
    dealt = dealing._split(state, list(range(5)), 0, os.urandom)
    shares = {holder + 1: held.seed_share for holder, held in dealt.items()}
    for some in itertools.combinations(shares, 4):
        assert shamir.combine({point: shares[point] for point in some}, 4, 32) == state.seed
    for size in (1, 2, 3):  # of a polynomial of degree 3: a word out of range, but for a chance of 2^-256
        for some in itertools.combinations(shares, size):
            with pytest.raises(LocalProtocolError, match="do not determine a secret"):
                shamir.combine({point: shares[point] for point in some}, size, 32)


def test_salts_and_coefficients_are_fresh_for_every_holder(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    state = federation.clients[VICTIM]._state
    dealt = dealing._split(state, list(range(5)), 0, os.urandom)
    salts = [salt for held in dealt.values() for salt in (held.seed_salt, held.master_salt)]
    assert len(set(salts)) == 10
    once = decode(SharesOut, federation.answer(VICTIM, "share", message), "test")
    digests = [digest for p in once.parcels for digest in (p.seed_digest, p.master_digest)]
    assert len({*digests, once.seed_digest, once.master_digest}) == 10
