"""What a client verifies before it answers: one function for each phase, and every one raises."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocols.errors import SERVER, LocalProtocolError, PolicyViolation, RemoteProtocolError
from protocols.secagg import statements
from protocols.secagg.client_state import Advertised, Confirmed, Masked, Shared
from protocols.secagg.codec import encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.identity import Roster
from protocols.secagg.keys import ENCAPSULATION_BYTES
from protocols.secagg.messages import Advertisements, Confirmations, SharesIn, Survivors
from protocols.secagg.session import ClientPolicy, SessionParameters
from protocols.secagg.transcript import from_bitmap, path_root, set_digest

_BLOCK = 64 * 1024  # entries looked at together: they and their temporary stay in the cache


def check_proposal(
    parameters: SessionParameters, policy: ClientPolicy, client_id: str, roster: Roster, context: bytes
) -> None:
    """Return if this client takes part in the proposed session.

    Raises:
        PolicyViolation: says why not.
    """
    policy.check(parameters)
    if client_id not in parameters.roster:
        raise PolicyViolation("the session's roster does not have this client")
    if unknown := sorted(set(parameters.roster) - set(roster)):
        raise PolicyViolation(f"the session's roster has clients that are not pinned: {', '.join(unknown)}")
    if parameters.context != context:
        raise PolicyViolation(
            "the session is about another model, experiment, quantiser or support than this client loaded"
        )


def check_advertisements(received: Advertisements, state: Advertised, client_id: str, roster: Roster) -> None:
    """Return if the leaves are signed advertisements of neighbours under T1, this client's own among them.

    Raises:
        RemoteProtocolError: blames the server, or the client whose signature or key is bad.
    """
    parameters = state.parameters
    me = parameters.roster.index(client_id)
    indices = [leaf.index for leaf in received.leaves]
    holders = MaskGraph(parameters.n, parameters.degree, received.t1).holders(me)
    _require(_increasing(indices) and set(indices) <= set(holders), "advertisements of no neighbours")
    _require(len(indices) >= parameters.threshold, "too few neighbours advertised to hold the shares")
    t0 = statements.parameters_digest(parameters)
    height = (parameters.n - 1).bit_length()
    for leaf in received.leaves:
        owner = parameters.roster[leaf.index]
        _require(
            len(leaf.path) == height
            and path_root(t0, leaf.index, encode(leaf.advertisement), leaf.path) == received.t1,
            f"the advertisement of {owner} is not in the tree",
        )
        statement = statements.advertise(t0, owner, leaf.advertisement)
        roster.verify(owner, *statement, leaf.advertisement.signature)
    own = [leaf.advertisement for leaf in received.leaves if leaf.index == me]
    _require(own == [state.advertisement], "this client's own advertisement is missing or altered")


def check_vector(vector: NDArray[np.uint32], parameters: SessionParameters, client_id: str) -> None:
    """Return if the caller's vector may be masked: its form, its bound, zeros where it may not contribute.

    Raises:
        LocalProtocolError: says what is wrong; never a value.
    """
    if not isinstance(vector, np.ndarray) or vector.dtype != np.uint32:
        raise LocalProtocolError(
            f"{client_id}: the vector must be a uint32 array of ring elements, as Quantiser.quantise gives"
        )
    if vector.shape != (parameters.vector_length,):
        raise LocalProtocolError(f"{client_id}: the vector must have shape ({parameters.vector_length},)")
    if not _is_bounded(vector, parameters.modulus_bits, parameters.bound):
        raise LocalProtocolError(
            f"{client_id}: the vector has an entry beyond the session's bound: sums could overflow"
        )
    me = parameters.roster.index(client_id)
    for group in parameters.groups:
        if me not in group.contributors and vector[group.start : group.stop].any():
            raise LocalProtocolError(
                f"{client_id}: the vector must be zero in the groups this client does not contribute to"
            )


def _is_bounded(vector: NDArray[np.uint32], modulus_bits: int, bound: int) -> bool:
    """Whether every entry is the residue of an integer in [-bound, bound]; block by block, without copies."""
    modulus = 2**modulus_bits
    for start in range(0, vector.size, _BLOCK):
        block = vector[start : start + _BLOCK]
        above_least = block + np.uint32(bound)  # 2^b divides 2^32, so wrapping around does no harm
        above_least &= np.uint32(modulus - 1)
        if int(block.max()) >= modulus or int(above_least.max()) > 2 * bound:
            return False
    return True


def check_shares(received: SharesIn, state: Shared, client_id: str) -> frozenset[int]:
    """Return U2, if this client's masks hide its vector under it.

    Every neighbour in U2 must have a parcel, because half of the pair's key may be in it. Whether the box in
    the parcel opens does not matter here.

    Raises:
        RemoteProtocolError: blames the server.
    """
    parameters = state.parameters
    me = parameters.roster.index(client_id)
    u2 = _members(received.u2, parameters)
    graph = MaskGraph(parameters.n, parameters.degree, state.t1)
    neighbours = u2 & set(graph.neighbours(me))
    _require(me in u2, "U2 does not have this client")
    _require(len(u2) >= parameters.least, "U2 is smaller than the quorum or than min_survivors")
    _require(len(u2 & set(graph.holders(me))) >= parameters.threshold, "U2 has too few neighbours")
    _require(neighbours <= {edge.peer for edge in state.edges}, "U2 has a neighbour that never advertised")
    senders = [parcel.sender for parcel in received.parcels]
    _require(senders == sorted(neighbours), "the parcels are not those of this client's neighbours in U2")
    for parcel in received.parcels:
        expected = ENCAPSULATION_BYTES if parcel.sender < me else 0
        _require(parcel.recipient == me, "a parcel is for somebody else")
        _require(len(parcel.mask_encapsulation) == expected, "a parcel lacks its half of the mask key")
    return u2


def check_survivors(
    received: Survivors, state: Masked, client_id: str, roster: Roster
) -> tuple[frozenset[int], frozenset[int]]:
    """Return U2 and U3, if the sum over U3 hides this client and its neighbours saw the same U2.

    Raises:
        RemoteProtocolError: blames the server, or the client whose mask statement is bad.
    """
    parameters = state.parameters
    me = parameters.roster.index(client_id)
    u2, u3 = _members(state.u2, parameters), _members(received.u3, parameters)
    graph = MaskGraph(parameters.n, parameters.degree, state.t1)
    _require(me in u3 and u3 <= u2, "U3 does not have this client, or has one outside U2")
    _require(len(u3) >= parameters.least, "U3 is smaller than the quorum or than min_survivors")
    for group in parameters.groups:
        present = len(u3.intersection(group.contributors))
        _require(present >= parameters.min_contributors, "a coordinate group has too few contributors in U3")
    _require(
        graph.weakest_cut(u3) > parameters.max_colluders,
        "U3 leaves two windows of the ring to colluders, which would split the sum",
    )
    indices = [statement.index for statement in received.statements]
    expected = sorted(u3 & set(graph.neighbours(me)))
    _require(indices == expected, "the mask statements are not those of this client's neighbours in U3")
    u2_digest = set_digest(u2, parameters.n)
    for mask in received.statements:
        sender = parameters.roster[mask.index]
        roster.verify(sender, *statements.mask(state.t1, u2_digest, sender, mask.digest), mask.signature)
    return u2, u3


def check_confirmations(received: Confirmations, state: Confirmed, roster: Roster) -> None:
    """Return if a quorum of U3 confirmed what this client confirmed. Two quorums share an honest client.

    Raises:
        RemoteProtocolError: blames the server, or the client whose confirmation is bad.
    """
    parameters = state.parameters
    u2 = _members(state.u2, parameters)
    survivors = frozenset(state.survivors)
    u3 = frozenset(i for i, client_id in enumerate(parameters.roster) if client_id in survivors)
    indices = [statement.index for statement in received.statements]
    _require(_increasing(indices) and u3.issuperset(indices), "confirmations of clients that are not in U3")
    _require(len(indices) >= parameters.quorum, "fewer confirmations than the quorum")
    u2_digest, u3_digest = set_digest(u2, parameters.n), set_digest(u3, parameters.n)
    for confirmation in received.statements:
        sender = parameters.roster[confirmation.index]
        statement = statements.confirm(state.t1, u2_digest, u3_digest, sender, confirmation.attachment_digest)
        roster.verify(sender, *statement, confirmation.signature)


def _members(bitmap: bytes, parameters: SessionParameters) -> frozenset[int]:
    """Return the set in a bitmap of the server's."""
    try:
        return from_bitmap(bitmap, parameters.n)
    except ValueError as error:
        raise RemoteProtocolError(SERVER, str(error)) from None


def _increasing(indices: Iterable[int]) -> bool:
    """Whether the indices increase, and so are distinct."""
    return all(a < b for a, b in itertools.pairwise(indices))


def _require(holds: bool, otherwise: str) -> None:
    """Blame the server unless the condition holds."""
    if not holds:
        raise RemoteProtocolError(SERVER, otherwise)
