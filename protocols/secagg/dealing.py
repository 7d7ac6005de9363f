"""The client's computations between its checks: dealing shares, deriving pair masks, opening boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protocols.errors import RemoteProtocolError
from protocols.prg import SecretStream
from protocols.secagg import keys, shamir, statements
from protocols.secagg.client_state import Advertised, Edge, HeldShares, Shared
from protocols.secagg.mask import Mask
from protocols.secagg.messages import SALT_BYTES, SHARE_BYTES, Advertisements, Leaf, Parcel, SharesOut
from protocols.secagg.transcript import statement

Entropy = Callable[[int], bytes]


def deal(
    received: Advertisements, state: Advertised, client_id: str, entropy: Entropy
) -> tuple[Shared, SharesOut]:
    """Return the state after dealing shares to everybody in `received`, and the message, not yet signed.

    Raises:
        RemoteProtocolError: a neighbour's public key is invalid.
    """
    me = state.parameters.roster.index(client_id)
    t1 = received.t1
    held = _split(state, [leaf.index for leaf in received.leaves], me, entropy)
    peers = [leaf for leaf in received.leaves if leaf.index != me]
    edges = tuple(_edge(leaf, me, state.parameters.roster[leaf.index]) for leaf in peers)
    box_pair = keys.KeyPair.from_secret(state.box_secret)
    parcels = tuple(
        _parcel(edge, held[edge.peer], box_pair, t1, state.parameters.roster, me) for edge in edges
    )
    shared = Shared(state.parameters, t1, state.seed, state.master, state.box_secret, edges, held[me])
    seed_digest, master_digest = share_digests(held[me])
    message = SharesOut(
        seed_commitment=keys.commitment(state.seed, b"seed", t1, client_id),
        master_commitment=keys.commitment(state.master, b"master", t1, client_id),
        seed_digest=seed_digest,
        master_digest=master_digest,
        escrow=keys.seal_escrow(b"".join(edge.shared_secret for edge in edges), state.master, t1, client_id),
        parcels=parcels,
        signature=statements.UNSIGNED,
    )
    return shared, message


def pair_masks(parcels: Iterable[Parcel], state: Shared, client_id: str) -> list[Mask]:
    """Return the mask with every sender of a parcel. The lower roster index adds, the higher subtracts.

    Raises:
        RemoteProtocolError: a neighbour's public key is invalid.
    """
    roster = state.parameters.roster
    me = roster.index(client_id)
    pair = keys.mask_key_pair(state.master, statements.parameters_digest(state.parameters), client_id)
    edges = {edge.peer: edge for edge in state.edges}
    masks = []
    for parcel in parcels:
        edge = edges[parcel.sender]
        peer_id = roster[edge.peer]
        exchanged = pair.exchange(edge.mask_key, peer_id)
        if me < edge.peer:
            key = keys.pair_mask_key(
                exchanged, edge.shared_secret, state.t1, client_id, peer_id, edge.ciphertext
            )
        else:
            ciphertext = parcel.mask_encapsulation
            shared_secret = pair.decapsulate(ciphertext)
            key = keys.pair_mask_key(exchanged, shared_secret, state.t1, peer_id, client_id, ciphertext)
        masks.append(Mask(key, subtract=me > edge.peer))
    return masks


def open_parcels(parcels: Iterable[Parcel], state: Shared, client_id: str) -> list[HeldShares]:
    """Return the shares in those boxes that open and hold what their digests say."""
    pair = keys.KeyPair.from_secret(state.box_secret)
    edges = {edge.peer: edge for edge in state.edges}
    held = []
    for parcel in parcels:
        sender = state.parameters.roster[parcel.sender]
        address = keys.BoxAddress(state.t1, sender, client_id, _bound(parcel))
        sender_key = edges[parcel.sender].box_key
        try:
            content = keys.open_box(parcel.box, parcel.box_encapsulation, pair, sender_key, address)
        except RemoteProtocolError:
            continue  # the client then holds no share of that sender, and reveals none
        shares = _from_content(parcel.sender, content)
        # A dealer who boxes other shares than it signed would have this client blamed for them later.
        if share_digests(shares) == (parcel.seed_digest, parcel.master_digest):
            held.append(shares)
    return held


def share_digests(held: HeldShares) -> tuple[bytes, bytes]:
    """Return the dealer's digests of a seed share and a master share."""
    return (
        statements.share_digest(held.seed_salt, held.seed_share),
        statements.share_digest(held.master_salt, held.master_share),
    )


def _split(state: Advertised, holders: list[int], me: int, entropy: Entropy) -> dict[int, HeldShares]:
    """Return what each holder gets of this client's two secrets, with fresh salts."""
    threshold = state.parameters.threshold
    points = [holder + 1 for holder in holders]
    seed = shamir.split(state.seed, threshold, points, SecretStream(entropy(32)))
    master = shamir.split(state.master, threshold, points, SecretStream(entropy(32)))
    return {
        holder: HeldShares(me, seed[point], entropy(SALT_BYTES), master[point], entropy(SALT_BYTES))
        for holder, point in zip(holders, points, strict=True)
    }


def _edge(leaf: Leaf, me: int, peer_id: str) -> Edge:
    """Return what is kept of a neighbour; the lower roster index encapsulates the pair's mask secret."""
    advertisement = leaf.advertisement
    shared_secret, ciphertext = b"", b""
    if me < leaf.index:
        shared_secret, ciphertext = keys.encapsulate(advertisement.mask_key, peer_id)
    return Edge(leaf.index, advertisement.box_key, advertisement.mask_key, shared_secret, ciphertext)


def _parcel(
    edge: Edge, held: HeldShares, pair: keys.KeyPair, t1: bytes, roster: tuple[str, ...], me: int
) -> Parcel:
    """Return the parcel for one neighbour."""
    seed_digest, master_digest = share_digests(held)
    parcel = Parcel(me, edge.peer, edge.ciphertext, seed_digest, master_digest, b"", b"")
    address = keys.BoxAddress(t1, roster[me], roster[edge.peer], _bound(parcel))
    content = held.seed_share + held.seed_salt + held.master_share + held.master_salt
    encapsulation, box = keys.seal_box(content, pair, edge.box_key, address)
    return Parcel(me, edge.peer, edge.ciphertext, seed_digest, master_digest, encapsulation, box)


def _bound(parcel: Parcel) -> bytes:
    """Return what else of a parcel its box authenticates."""
    return statement(parcel.mask_encapsulation, parcel.seed_digest, parcel.master_digest)


def _from_content(owner: int, content: bytes) -> HeldShares:
    """Return the shares in an opened box; the codec fixed its length."""
    half = SHARE_BYTES + SALT_BYTES
    seed, master = content[:half], content[half:]
    return HeldShares(
        owner, seed[:SHARE_BYTES], seed[SHARE_BYTES:], master[:SHARE_BYTES], master[SHARE_BYTES:]
    )
