"""The server's computations: from revealed shares to the masks that are still in the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.secagg import keys, shamir
from protocols.secagg.mask import Mask
from protocols.secagg.messages import Advertisement, Encapsulation, Escrow, SharesOut
from protocols.secagg.session import Digest, Index


@dataclass(frozen=True)
class Dealt:
    """What the server keeps of a client's dealing, once the boxes are delivered.

    The digests are by holder: of its share of the seed, and of its share of the master.
    """

    seed_commitment: Digest = field(repr=False)
    master_commitment: Digest = field(repr=False)
    escrow: Escrow = field(repr=False)
    seed_digests: dict[Index, Digest] = field(repr=False)
    master_digests: dict[Index, Digest] = field(repr=False)
    mask_encapsulations: dict[Index, Encapsulation] = field(repr=False)

    @staticmethod
    def of(message: SharesOut, owner: int) -> Dealt:
        """Return what is kept of a message of `owner`."""
        parcels = message.parcels
        return Dealt(
            seed_commitment=message.seed_commitment,
            master_commitment=message.master_commitment,
            escrow=message.escrow,
            seed_digests={owner: message.seed_digest, **{p.recipient: p.seed_digest for p in parcels}},
            master_digests={owner: message.master_digest, **{p.recipient: p.master_digest for p in parcels}},
            mask_encapsulations={p.recipient: p.mask_encapsulation for p in parcels if p.mask_encapsulation},
        )


@dataclass(frozen=True)
class Recovery:
    """What is fixed while masks are recovered: the transcript, who is who, and what everybody dealt."""

    t0: bytes
    t1: bytes
    threshold: int
    roster: tuple[str, ...]
    advertisements: Mapping[int, Advertisement]
    dealt: Mapping[int, Dealt]

    def self_mask(self, owner: int, shares: Mapping[int, bytes]) -> Mask:
        """Return the self-mask of a survivor from shares of its seed, by holder.

        Raises:
            RemoteProtocolError: the owner dealt shares of something else than it committed to.
        """
        seed = self._recover(owner, shares, b"seed", self.dealt[owner].seed_commitment)
        return Mask(keys.self_mask_key(seed, self.t1, self.roster[owner]))

    def pair_masks(self, owner: int, shares: Mapping[int, bytes], others: frozenset[int]) -> list[Mask]:
        """Return the masks that `others` added for a lost client, from shares of its master, by holder.

        Raises:
            RemoteProtocolError: the owner dealt shares of something else than it committed to, or its master
                does not belong to its keys.
        """
        client_id, dealt = self.roster[owner], self.dealt[owner]
        master = self._recover(owner, shares, b"master", dealt.master_commitment)
        pair = keys.mask_key_pair(master, self.t0, client_id)
        if pair.public_bytes != self.advertisements[owner].mask_key:
            raise RemoteProtocolError(client_id, "the master it shared does not belong to its mask key")
        secrets = self._escrowed(owner, master)
        masks = []
        for other in sorted(others.intersection(dealt.seed_digests)):
            exchanged = pair.exchange(self.advertisements[other].mask_key, self.roster[other])
            low, high = min(owner, other), max(owner, other)
            ciphertext = self.dealt[low].mask_encapsulations[high]
            shared_secret = secrets[other] if owner == low else pair.decapsulate(ciphertext)
            ids = (self.roster[low], self.roster[high])
            key = keys.pair_mask_key(exchanged, shared_secret, self.t1, *ids, ciphertext)
            masks.append(Mask(key, subtract=other == high))
        return masks

    def _escrowed(self, owner: int, master: bytes) -> dict[int, bytes]:
        """Return the secrets that a client encapsulated to its higher neighbours."""
        client_id, dealt = self.roster[owner], self.dealt[owner]
        opened = keys.open_escrow(dealt.escrow, master, self.t1, client_id)
        size = keys.SECRET_BYTES
        return {
            other: opened[size * i : size * (i + 1)]
            for i, other in enumerate(sorted(dealt.mask_encapsulations))
        }

    def _recover(self, owner: int, shares: Mapping[int, bytes], kind: bytes, committed: bytes) -> bytes:
        """Return a secret from shares that all match their digests: if it is wrong, its dealer lied."""
        chosen = {holder + 1: shares[holder] for holder in sorted(shares)[: self.threshold]}
        client_id = self.roster[owner]
        try:
            secret = shamir.combine(chosen, self.threshold, keys.SECRET_BYTES)
        except LocalProtocolError:
            secret = b""
        if not secret or keys.commitment(secret, kind, self.t1, client_id) != committed:
            raise RemoteProtocolError(client_id, f"it dealt shares that do not match its {kind.decode()}")
        return secret
