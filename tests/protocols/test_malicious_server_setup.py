"""A server that deviates before anything is masked: in proposing, advertising and delivering shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.secagg import dealing, keys, statements
from protocols.secagg.client_state import Masked, Shared
from protocols.secagg.codec import decode, encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    MaskedVector,
    Proposal,
    SharesIn,
)
from protocols.secagg.session import CoordinateGroup
from protocols.secagg.transcript import MerkleTree, _leaf, path_root, to_bitmap

VICTIM = "client-1"


def members(*indices: int) -> bytes:
    """A bitmap over five clients."""
    return to_bitmap(indices, 5)


# Propose.


def test_another_context_is_refused(federation: Any) -> None:
    message = encode(Proposal(replace(federation.parameters, context=bytes(32))))
    federation.refuses("advertise", message, "another model")


def test_the_context_enters_every_mask_key(make_federation: Any) -> None:
    # Were a client talked into another context, the very same advertisements would give it another T1, from
    # which every key is derived.
    t0 = [statements.parameters_digest(make_federation(context=bytes([i]) * 32).parameters) for i in range(2)]
    roots = {MerkleTree(digest, {0: b"a", 1: b"b"}, 2).root for digest in t0}
    assert len(roots) == 2
    pairs = {keys.pair_mask_key(bytes(32), bytes(32), root, "a", "b", b"") for root in roots}
    assert len(pairs) == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_colluders": 0, "quorum": 3, "threshold": 3, "min_survivors": 3}, "max_colluders 0 is below"),
        ({"min_survivors": 4, "quorum": 4}, "min_survivors 4 is below"),
        ({"quorum": 4, "min_survivors": 5}, "quorum 4 is below"),
        ({"quorum": 5, "min_survivors": 5, "min_contributors": 3}, "min_contributors 3 is below"),
        ({"quorum": 5, "min_survivors": 5, "threshold": 3}, "threshold 3 is below"),
        ({"quorum": 5, "min_survivors": 5, "vector_length": 101}, "vector_length 101 is above"),
        ({"quorum": 5, "min_survivors": 5, "modulus_bits": 21}, "modulus_bits 21 is above"),
    ],
)
def test_what_the_policy_forbids_is_refused(
    make_federation: Any, changes: dict[str, int], match: str
) -> None:
    federation = make_federation(**changes)
    policy = replace(
        federation.policy,
        max_colluders=1,
        min_survivors=5,
        min_quorum=5,
        min_contributors=4,
        min_threshold=4,
        max_vector_length=100,
        max_modulus_bits=20,
    )
    federation.clients[VICTIM] = federation.client(VICTIM, policy=policy)
    federation.refuses("advertise", encode(Proposal(federation.parameters)), match)


def test_a_ring_of_fewer_neighbours_than_the_policy_wants_is_refused(make_federation: Any) -> None:
    """Where there are not so many others, all of them are enough."""
    ring = make_federation(7, degree=4)
    policy = replace(ring.policy, min_degree=5)
    ring.clients[VICTIM] = ring.client(VICTIM, policy=policy)
    ring.refuses("advertise", encode(Proposal(ring.parameters)), "degree 4 is below this client's 5")
    small = make_federation(5)
    assert small.client(VICTIM, policy=replace(small.policy, min_degree=5)).advertise(
        encode(Proposal(small.parameters))
    )


def test_too_many_clients_are_refused(federation: Any) -> None:
    policy = replace(federation.policy, max_clients=4)
    federation.clients[VICTIM] = federation.client(VICTIM, policy=policy)
    federation.refuses("advertise", encode(Proposal(federation.parameters)), "n 5 is above")


EVERYBODY = (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"quorum": 3, "min_survivors": 3}, r"2\*quorum > n"),
        ({"min_survivors": 3}, "quorum <= min_survivors"),
        ({"min_survivors": 6}, "min_survivors <= n"),
        ({"max_colluders": 3, "quorum": 5, "min_survivors": 4}, "quorum <= min_survivors"),
        ({"threshold": 1}, "max_colluders < threshold"),
        ({"threshold": 6}, "threshold <= degree"),
        ({"degree": 5}, "degree"),
        ({"degree": 3}, "degree"),
        ({"max_colluders": 0, "degree": 0, "threshold": 1}, "degree"),  # nobody would mask with anybody
        ({"bound": 205}, "sums overflow"),  # 5·205 ≥ 2^10
        ({"bound": 0}, "bound >= 1"),
        ({"modulus_bits": 1}, "modulus_bits 2 to 32"),
        ({"modulus_bits": 33}, "modulus_bits 2 to 32"),
        ({"vector_length": 0}, "vector_length"),
        ({"min_contributors": 2}, "min_contributors"),
        ({"roster": ("client-1", "client-1", "client-2", "client-3", "client-4")}, "distinct"),
        ({"roster": ("client-1", "server", "client-2", "client-3", "client-4")}, "called"),
        ({"roster": ("client-1", "", "client-2", "client-3", "client-4")}, "client_id"),
        ({"groups": (CoordinateGroup(0, 6, EVERYBODY),)}, "tile"),
        ({"groups": (CoordinateGroup(0, 8, EVERYBODY),)}, "tile"),
        ({"groups": (CoordinateGroup(1, 7, EVERYBODY),)}, "tile"),
        ({"groups": (CoordinateGroup(0, 0, EVERYBODY), CoordinateGroup(0, 7, EVERYBODY))}, "tile"),
        ({"groups": (CoordinateGroup(0, 7, (0, 1, 2)),)}, "fewer contributors"),
        ({"groups": (CoordinateGroup(0, 7, (0, 0, 1, 2, 3)),)}, "increasing"),
        ({"groups": (CoordinateGroup(0, 7, (0, 1, 2, 3, 5)),)}, "increasing"),
    ],
)
def test_unsafe_parameters_are_refused(federation: Any, changes: dict[str, object], match: str) -> None:
    message = encode(Proposal(replace(federation.parameters, **changes)))
    federation.refuses("advertise", message, match)


def test_one_survivor_of_two_parties_is_not_hidden(make_federation: Any) -> None:
    federation = make_federation(n=3, max_colluders=1)
    parameters = replace(federation.parameters, max_colluders=2)
    federation.refuses("advertise", encode(Proposal(parameters)), "min_survivors >= max_colluders [+] 2")


@pytest.mark.parametrize("left_out", [{"groups": ()}, {"min_contributors": 0}])
def test_a_proposal_that_leaves_a_default_out_is_refused(
    federation: Any, left_out: dict[str, object]
) -> None:
    # Two encodings of one proposal would be two T0, depending on who filled the default in.
    parameters = replace(federation.parameters)
    for name, value in left_out.items():
        object.__setattr__(parameters, name, value)
    federation.refuses("advertise", encode(Proposal(parameters)), "leaves something out")


def test_the_round_is_the_clients_own(federation: Any) -> None:
    for exact_round in ((2, 0), (1, 1)):
        policy = replace(federation.policy, exact_round=exact_round)
        federation.clients[VICTIM] = federation.client(VICTIM, policy=policy)
        message = encode(Proposal(federation.parameters))
        federation.refuses("advertise", message, "another round or exchange")
    own = replace(federation.policy, exact_round=(1, 0))
    assert federation.client(VICTIM, policy=own).advertise(message)


def test_a_session_with_somebody_not_pinned_is_refused(federation: Any) -> None:
    roster = ("client-1", "client-2", "client-3", "client-4", "mallory")
    message = encode(Proposal(replace(federation.parameters, roster=roster)))
    federation.refuses("advertise", message, "not pinned: mallory")


def test_a_session_without_this_client_is_refused(make_federation: Any) -> None:
    federation, larger = make_federation(), make_federation(n=6)
    parameters = replace(federation.parameters, roster=larger.names[1:])
    larger.clients[VICTIM] = larger.client(VICTIM)
    larger.refuses("advertise", encode(Proposal(parameters)), "does not have this client")


def test_a_session_id_is_accepted_once(federation: Any) -> None:
    federation.drive(until="share")
    federation.clients[VICTIM] = federation.client(VICTIM)
    federation.refuses("advertise", encode(Proposal(federation.parameters)), "begun before")


# Advertise.


def with_leaves(federation: Any, data: bytes, changed: dict[int, Advertisement]) -> bytes:
    """Replace advertisements and build an honest tree over the result: only signatures can tell."""
    received = decode(Advertisements, data, "test")
    adverts = {leaf.index: changed.get(leaf.index, leaf.advertisement) for leaf in received.leaves}
    t0 = statements.parameters_digest(federation.parameters)
    encoded = {index: encode(advert) for index, advert in adverts.items()}
    tree = MerkleTree(t0, encoded, federation.parameters.n)
    leaves = tuple(
        replace(leaf, advertisement=adverts[leaf.index], path=tree.path(leaf.index))
        for leaf in received.leaves
    )
    return encode(Advertisements(tree.root, leaves))


def advertisement_by(
    signer: Identity, federation: Any, name: str, session: bytes | None = None
) -> Advertisement:
    """A well-formed advertisement in the name of somebody."""
    parameters = replace(federation.parameters, session_id=session or federation.parameters.session_id)
    t0 = statements.parameters_digest(parameters)
    public = [keys.KeyPair.from_secret(bytes([i]) * 96).public_bytes for i in (1, 2)]
    message = Advertisement(*public, statements.UNSIGNED)
    return replace(message, signature=signer.sign(*statements.advertise(t0, name, message)))


def test_keys_the_server_made_up_are_refused(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    forged = advertisement_by(Identity.generate(), federation, "client-2")
    federation.refuses("share", with_leaves(federation, message, {1: forged}), "client-2: the signature")


def test_keys_of_another_client_are_refused(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    third = decode(Advertisements, message, "test").leaves[2].advertisement
    federation.refuses("share", with_leaves(federation, message, {1: third}), "client-2: the signature")


def test_keys_of_an_earlier_session_are_refused(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    own = federation.clients["client-2"]._identity
    replayed = advertisement_by(own, federation, "client-2", session=bytes([9]) * 32)
    federation.refuses("share", with_leaves(federation, message, {1: replayed}), "client-2: the signature")


def test_a_key_signed_by_a_colluder_must_still_be_valid(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    own = federation.clients["client-2"]._identity
    advert = advertisement_by(own, federation, "client-2")
    t0 = statements.parameters_digest(federation.parameters)
    for field, bad, match in (
        ("box_key", bytes(32) + advert.box_key[32:], "low order"),
        ("mask_key", advert.mask_key[:32] + b"\xff" * 1184, "ML-KEM key is invalid"),
    ):
        snapshot = federation.clients[VICTIM].snapshot()
        broken = replace(advert, **{field: bad})
        broken = replace(broken, signature=own.sign(*statements.advertise(t0, "client-2", broken)))
        federation.refuses("share", with_leaves(federation, message, {1: broken}), match)
        federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)


def test_its_own_advertisement_must_be_there_unaltered(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    received = decode(Advertisements, message, "test")
    snapshot = federation.clients[VICTIM].snapshot()
    federation.refuses(
        "share", federation.edited(message, Advertisements, leaves=received.leaves[1:]), "own advert"
    )
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    own = advertisement_by(federation.clients[VICTIM]._identity, federation, VICTIM)
    federation.refuses("share", with_leaves(federation, message, {0: own}), "own advert")


def test_an_advertisement_outside_the_tree_is_refused(federation: Any) -> None:
    message = federation.drive(until="share")[VICTIM]
    received = decode(Advertisements, message, "test")
    first = received.leaves[0]
    bad_paths = [first.path[1:], (*first.path, bytes(32)), (bytes(32), *first.path[1:])]
    snapshot = federation.clients[VICTIM].snapshot()
    for path in bad_paths:
        federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
        leaves = (replace(first, path=path), *received.leaves[1:])
        federation.refuses(
            "share", federation.edited(message, Advertisements, leaves=leaves), "not in the tree"
        )


def test_two_advertisements_of_one_client_do_not_fit_under_one_root(federation: Any) -> None:
    # client-2 colludes and signs two. A tree of another shape would have the one where everybody's paths say it is,
    # and the other as a child of the root: only the length of the path tells.
    message = federation.drive(until="share")[VICTIM]
    received = decode(Advertisements, message, "test")
    t0 = statements.parameters_digest(federation.parameters)
    other = advertisement_by(federation.clients["client-2"]._identity, federation, "client-2")
    planted = _leaf(t0, 1, encode(other))
    first, second, *rest = received.leaves[:4]
    left = path_root(t0, 0, encode(first.advertisement), first.path[:2])
    t1 = path_root(t0, 0, encode(first.advertisement), (*first.path[:2], planted))
    leaves = (
        replace(first, path=(*first.path[:2], planted)),
        replace(second, advertisement=other, path=(left,)),
        *(replace(leaf, path=(*leaf.path[:2], planted)) for leaf in rest),
    )
    federation.refuses("share", encode(Advertisements(t1, leaves)), "client-2 is not in the tree")


def test_odd_sets_of_advertisements_are_refused(make_federation: Any) -> None:
    federation = make_federation()
    message = federation.drive(until="share")[VICTIM]
    leaves = decode(Advertisements, message, "test").leaves
    snapshot = federation.clients[VICTIM].snapshot()
    for odd in (leaves[:3], (leaves[0], *leaves), leaves[::-1], ()):
        federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
        federation.refuses("share", federation.edited(message, Advertisements, leaves=odd), "neighbours")


def test_who_is_no_neighbour_on_the_ring_is_refused(make_federation: Any) -> None:
    federation = make_federation(n=9, max_colluders=1, degree=4)
    inbox = federation.drive(until="share")
    leaves = {
        leaf.index: leaf
        for message in inbox.values()
        for leaf in decode(Advertisements, message, "test").leaves
    }
    everybody = tuple(leaves[index] for index in sorted(leaves))
    federation.refuses(
        "share", federation.edited(inbox[VICTIM], Advertisements, leaves=everybody), "no neighbours"
    )


# Share.


def test_boxes_that_do_not_open_change_nothing_of_the_masks(federation: Any) -> None:
    # The starving attack: with its boxes corrupted, a client must not fall back to fewer masks.
    message = federation.drive(until="mask")[VICTIM]
    snapshot = federation.clients[VICTIM].snapshot()
    honest = federation.answer(VICTIM, "mask", message)
    parcels = decode(SharesIn, message, "test").parcels
    starved = tuple(replace(p, box=bytes(len(p.box))) for p in parcels)
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    assert federation.answer(VICTIM, "mask", federation.edited(message, SharesIn, parcels=starved)) == honest
    state = federation.clients[VICTIM]._state
    assert isinstance(state, Masked)
    assert [held.owner for held in state.held] == [0]


def test_a_vector_is_masked_by_every_neighbour(federation: Any) -> None:
    # Removing the self-mask alone (what the server can learn when the client survives) must not show the vector,
    # and neither must removing all pair masks but one.
    message = federation.drive(until="mask")[VICTIM]
    state = federation.clients[VICTIM]._state
    assert isinstance(state, Shared)
    from protocols.packing import unpack
    from protocols.secagg.dealing import pair_masks
    from protocols.secagg.mask import Mask, add_masks

    answer = decode(MaskedVector, federation.answer(VICTIM, "mask", message), "test")
    all_masks = [Mask(keys.self_mask_key(state.seed, state.t1, VICTIM))]
    all_masks += pair_masks(decode(SharesIn, message, "test").parcels, state, VICTIM)
    assert len(all_masks) == 5
    for left_out in (*range(5), None):
        ring = unpack(answer.packed, 11, 7)
        add_masks(ring, [m.inverse for i, m in enumerate(all_masks) if i != left_out], 11)
        assert np.array_equal(ring, federation.vectors[VICTIM]) == (left_out is None)


def test_a_missing_parcel_is_refused(federation: Any) -> None:
    message = federation.drive(until="mask")[VICTIM]
    parcels = decode(SharesIn, message, "test").parcels
    snapshot = federation.clients[VICTIM].snapshot()
    for odd in (parcels[1:], (), (*parcels, parcels[-1]), parcels[::-1]):
        federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
        federation.refuses("mask", federation.edited(message, SharesIn, parcels=odd), "parcels")


def test_a_parcel_must_be_complete_and_for_this_client(federation: Any) -> None:
    message = federation.drive(until="mask")["client-3"]
    parcels = decode(SharesIn, message, "test").parcels
    snapshot = federation.clients["client-3"].snapshot()
    for change, match in (
        ({"recipient": 4}, "somebody else"),
        ({"mask_encapsulation": b""}, "half of the mask key"),
    ):
        federation.clients["client-3"] = federation.restore("client-3", snapshot)
        odd = (replace(parcels[0], **change), *parcels[1:])
        federation.refuses("mask", federation.edited(message, SharesIn, parcels=odd), match, by="client-3")
    federation.clients["client-3"] = federation.restore("client-3", snapshot)
    odd = (*parcels[:3], replace(parcels[3], mask_encapsulation=parcels[0].mask_encapsulation))
    federation.refuses(
        "mask", federation.edited(message, SharesIn, parcels=odd), "half of the mask", by="client-3"
    )


@pytest.mark.parametrize(
    ("u2", "match"),
    [
        (members(1, 2, 3, 4), "does not have this client"),
        (members(0, 1, 2), "smaller than the quorum"),
        (b"\x1f\x00", "bitmap"),
        (b"\x3f", "bitmap"),
        (b"", "bitmap"),
    ],
)
def test_an_odd_u2_is_refused(federation: Any, u2: bytes, match: str) -> None:
    message = federation.drive(until="mask")[VICTIM]
    parcels = decode(SharesIn, message, "test").parcels
    fitting = tuple(p for p in parcels if u2[:1] and u2[0] >> p.sender & 1)
    federation.refuses("mask", federation.edited(message, SharesIn, u2=u2, parcels=fitting), match)


def test_u2_with_a_neighbour_that_never_advertised_is_refused(federation: Any) -> None:
    message = federation.drive(until="mask", lost=[("client-5", "advertise")])[VICTIM]
    federation.refuses(
        "mask", federation.edited(message, SharesIn, u2=members(0, 1, 2, 3, 4)), "never advertised"
    )


def test_u2_that_starves_one_neighbourhood_is_refused(make_federation: Any) -> None:
    federation = make_federation(n=15, max_colluders=1, degree=6)  # threshold 5 of 7 holders, quorum 9
    message = federation.drive(until="mask")[VICTIM]
    received = decode(SharesIn, message, "test")
    starved = {parcel.sender for parcel in received.parcels[:3]}
    u2 = to_bitmap(set(range(15)) - starved, 15)
    federation.refuses("mask", encode(SharesIn(u2, received.parcels[3:])), "U2 has too few neighbours")


def test_a_box_vouches_for_the_rest_of_its_parcel(federation: Any) -> None:
    message = federation.drive(until="mask")["client-2"]
    first, *rest = decode(SharesIn, message, "test").parcels
    snapshot = federation.clients["client-2"].snapshot()
    for change in (
        {"mask_encapsulation": bytes(1088)},
        {"seed_digest": bytes(32)},
        {"master_digest": bytes(32)},
        {"box_encapsulation": bytes(1088)},
    ):
        client = federation.restore("client-2", snapshot, guard=MemoryGuard())
        odd = federation.edited(message, SharesIn, parcels=(replace(first, **change), *rest))
        client.mask(odd, federation.vectors["client-2"])
        assert [held.owner for held in client._state.held] == [1, 2, 3, 4]


def test_the_server_cannot_pass_its_own_digests_for_the_dealers(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the final comparison gone, the box alone must still notice digests that its dealer did not bind.
    message = federation.drive(until="mask")["client-2"]
    parcels = decode(SharesIn, message, "test").parcels
    state = federation.clients["client-2"]._state
    monkeypatch.setattr(dealing, "share_digests", lambda held: (bytes(32), bytes(32)))
    odd = [replace(parcel, seed_digest=bytes(32), master_digest=bytes(32)) for parcel in parcels]
    assert dealing.open_parcels(odd, state, "client-2") == []


def test_a_corrupted_half_of_a_mask_key_only_spoils_the_sum(federation: Any) -> None:
    def tamper(name: str, phase: str, message: bytes) -> bytes:
        if (name, phase) != ("client-2", "mask"):
            return message
        first, *rest = decode(SharesIn, message, "test").parcels
        odd = replace(first, mask_encapsulation=bytes(len(first.mask_encapsulation)))
        return federation.edited(message, SharesIn, parcels=(odd, *rest))

    federation.drive(tamper=tamper)
    result = federation.server.result()
    assert not np.array_equal(result.sum, federation.plain_sum(federation.names))
