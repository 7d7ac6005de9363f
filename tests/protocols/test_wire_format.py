"""Messages are what docs/wire-format.md says: the recorded sessions (vectors/session*.json) and a fresh one, read anew.

The second implementation in wire_reader.py recomputes the transcript, the graph, keys, commitments, boxes, shares,
masks and the sum.
"""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .wire_reader import (
    KDF,
    Cursor,
    H,
    S,
    Session,
    decapsulate,
    interpolate,
    packed,
    public_key,
    u,
    words,
    x25519,
)

FOLDER = Path(__file__).parent / "vectors"
RECORDED = ("session", "session_setup", "session_masks", "session_late", "session_ring")


@pytest.fixture(scope="module", params=[*RECORDED, "fresh"])
def session(request: pytest.FixtureRequest) -> Session:
    if request.param == "fresh":
        made = runpy.run_path(str(FOLDER / "generate.py"))
        return Session(
            json.loads(json.dumps(made["record"](n=6, bits=9, lost={"client-2": "mask"}, degree=4)))
        )
    return Session(json.loads((FOLDER / f"{request.param}.json").read_text(encoding="utf-8")))


def test_the_proposal_and_the_transcript(session: Session) -> None:
    assert [name.decode() for name in session.roster] == list(session.recorded["public_keys"])
    assert session.context.hex() == session.recorded["context"]
    assert len(session.session_id) == 32
    assert (session.round, session.exchange) == (3, 0)
    assert session.n * session.bound < 2 ** (session.bits - 1)
    assert session.groups[0][0] == 0
    assert session.groups[-1][1] == session.counts["vector_length"]
    assert session.min_contributors == session.counts["min_survivors"]
    assert len(set(session.requests["advertise"].values())) == 1
    assert session.t0.hex() == session.recorded["t0"]
    assert session.t1.hex() == session.recorded["t1"]


def test_public_keys_follow_from_the_secrets(session: Session) -> None:
    for i, (box_key, mask_key) in session.keys.items():
        assert box_key == public_key(session.secrets[i]["box_secret"])
        assert mask_key == public_key(session.mask_secrets[i])


def test_advertisements_carry_paths_to_t1(session: Session) -> None:
    for i, message in session.requests["share"].items():
        data = Cursor(message, 3)
        assert data.take(32) == session.t1
        indices = []
        for _ in data.count():
            index = data.number(2)
            indices.append(index)
            assert data.take(1216 * 2 + 64) == session.answers["advertise"][index][2:]
            path = [data.take(32) for _ in data.count()]
            assert path == [level[(index >> h) ^ 1] for h, level in enumerate(session.levels[:-1])]
        data.end()
        assert indices == sorted({i, *session.neighbours(i)} & session.u1)


def test_every_signature(session: Session) -> None:
    u2, u3 = session.survivors_digest(session.u2), session.survivors_digest(session.u3)
    for phase, answers in session.answers.items():
        for i, message in answers.items():
            body = H(b"body", message[:-64])
            payload = {
                "advertise": S(session.t0, session.id(i), body),
                "share": S(session.t1, session.id(i), body),
                "mask": S(session.t1, u2, session.id(i), H(b"masked-vector", message[6:-64])),
                "confirm": S(session.t1, u2, u3, session.id(i), H(b"attachment", message[6:-64])),
                "reveal": S(session.t1, session.id(i), body),
            }[phase]
            label = phase.encode()
            signed = b"fedlora-priv/v1/signature" + u(len(label), 4) + label + payload
            key = bytes.fromhex(session.recorded["public_keys"][session.id(i).decode()])
            Ed25519PublicKey.from_public_bytes(key).verify(message[-64:], signed)


def test_dealings(session: Session) -> None:
    for i, dealt in session.dealt.items():
        seed, master = session.secrets[i]["seed"], session.secrets[i]["master"]
        who = (session.t1, session.id(i))
        assert dealt["digests"][0] == KDF(seed, b"commit", b"seed", *who)
        assert dealt["digests"][1] == KDF(master, b"commit", b"master", *who)
        neighbours = [j for j in session.neighbours(i) if j in session.u1]
        assert [parcel["recipient"] for parcel in dealt["parcels"]] == neighbours
        assert {parcel["sender"] for parcel in dealt["parcels"]} == {i}
        encapsulated = AESGCM(KDF(master, b"escrow", *who)).decrypt(bytes(12), dealt["escrow"], None)
        higher = [parcel for parcel in dealt["parcels"] if parcel["recipient"] > i]
        assert [len(p["mask_encapsulation"]) for p in dealt["parcels"]] == [
            1088 if j > i else 0 for j in neighbours
        ]
        assert encapsulated == b"".join(
            decapsulate(session.mask_secrets[p["recipient"]], p["mask_encapsulation"]) for p in higher
        )


def test_boxes_hold_shares_of_both_secrets(session: Session) -> None:
    for i, dealt in session.dealt.items():
        shares: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        for parcel in dealt["parcels"]:
            seed, seed_salt, master, master_salt = session.opened(parcel)
            assert H(b"share", seed_salt, seed) == parcel["seed_digest"]
            assert H(b"share", master_salt, master) == parcel["master_digest"]
            for held, share in zip(shares, (seed, master), strict=True):
                held[parcel["recipient"] + 1] = share
        for held, secret in zip(shares, ("seed", "master"), strict=True):
            if len(held) >= session.threshold:
                lowest = {point: held[point] for point in sorted(held)[: session.threshold]}
                assert interpolate(lowest, 0) == words(session.secrets[i][secret], 2)
                for point, share in held.items():  # and all the others lie on the same polynomials
                    assert interpolate(lowest, point) == words(share, 4)


def test_boxes_are_delivered(session: Session) -> None:
    for i, message in session.requests["mask"].items():
        data = Cursor(message, 5)
        assert data.blob() == session.bitmap(session.u2)
        parcels = [data.parcel() for _ in data.count()]
        data.end()
        assert [parcel["sender"] for parcel in parcels] == sorted(session.u2 & {*session.neighbours(i)})
        for parcel in parcels:
            assert parcel in session.dealt[parcel["sender"]]["parcels"]
            assert parcel["recipient"] == i


def test_masked_vectors(session: Session) -> None:
    for i, message in session.answers["mask"].items():
        name = session.id(i).decode()
        own = KDF(session.secrets[i]["seed"], b"self-mask", session.t1, session.id(i))
        neighbours = [j for j in session.neighbours(i) if j in session.u2]
        pairs = {session.id(j).decode(): session.pair_key(i, j).hex() for j in neighbours}
        expected = {"u2": sorted(session.u2), "self": own.hex(), "pairs": pairs}
        assert session.recorded["mask_keys"][name] == expected
        total = [a + b for a, b in zip(session.recorded["vectors"][name], session.mask(own), strict=True)]
        for j in neighbours:
            sign = 1 if i < j else -1
            pair = session.mask(session.pair_key(i, j))
            total = [a + sign * b for a, b in zip(total, pair, strict=True)]
        data = Cursor(message, 6)
        assert data.blob() == packed(total, session.bits)
        data.take(64)
        data.end()


def test_survivors_and_confirmations(session: Session) -> None:
    for i, message in session.requests["confirm"].items():
        data = Cursor(message, 7)
        assert data.blob() == session.bitmap(session.u3)
        said = [(data.number(2), data.take(32), data.take(64)) for _ in data.count()]
        data.end()
        sent = session.answers["mask"]
        neighbours = sorted(session.u3 & {*session.neighbours(i)})
        assert said == [(j, H(b"masked-vector", sent[j][6:-64]), sent[j][-64:]) for j in neighbours]
    for message in session.requests["reveal"].values():
        data = Cursor(message, 9)
        votes = [(data.number(2), data.take(32), data.take(64)) for _ in data.count()]
        data.end()
        sent = session.answers["confirm"]
        assert len(votes) >= session.counts["quorum"]
        assert [j for j, _, _ in votes] == sorted({j for j, _, _ in votes})
        assert all(
            vote == (vote[0], H(b"attachment", sent[vote[0]][6:-64]), sent[vote[0]][-64:]) for vote in votes
        )
    for i, message in session.answers["confirm"].items():
        data = Cursor(message, 8)
        assert data.blob().hex() == session.recorded["attachments"].get(session.id(i).decode(), "")
        data.take(64)
        data.end()


def revealed(session: Session) -> dict[int, dict[int, tuple[bytes, bytes]]]:
    """Share and salt by owner and holder."""
    found: dict[int, dict[int, tuple[bytes, bytes]]] = {owner: {} for owner in session.u2}
    for holder, message in session.answers["reveal"].items():
        data = Cursor(message, 10)
        owners = []
        for _ in data.count():
            owners.append(data.number(2))
            found[owners[-1]][holder] = (data.take(64), data.take(16))
        data.take(64)
        data.end()
        assert owners == sorted(session.u2 & {holder, *session.neighbours(holder)})
    return found


def test_reveals_are_what_was_dealt(session: Session) -> None:
    for owner, by_holder in revealed(session).items():
        kind = 0 if owner in session.u3 else 2
        for holder, (share, salt) in by_holder.items():
            if holder == owner:
                assert H(b"share", salt, share) == session.dealt[owner]["digests"][2 if kind == 0 else 3]
                continue
            parcel = next(p for p in session.dealt[owner]["parcels"] if p["recipient"] == holder)
            assert (share, salt) == session.opened(parcel)[kind : kind + 2]


def test_the_sum_from_messages_alone(session: Session) -> None:
    # What a server does: no secret of the file is used, but those that the shares give.
    length, modulus = session.counts["vector_length"], 2**session.bits
    total = [0] * length
    for message in session.answers["mask"].values():
        number = int.from_bytes(message[6:-64], "little")
        total = [a + (number >> (session.bits * k)) % modulus for k, a in enumerate(total)]
    assert session.u3 == set(session.answers["mask"])
    for owner, by_holder in revealed(session).items():
        lowest = sorted(by_holder)[: session.threshold]
        points = {holder + 1: by_holder[holder][0] for holder in lowest}
        secret = b"".join(u(word, 2) for word in interpolate(points, 0))
        if owner in session.u3:
            own = session.mask(KDF(secret, b"self-mask", session.t1, session.id(owner)))
            total = [a - b for a, b in zip(total, own, strict=True)]
            continue
        pair_secret = KDF(secret, b"mask-key-pair", session.t0, session.id(owner), size=96)
        escrow = AESGCM(KDF(secret, b"escrow", session.t1, session.id(owner))).decrypt(
            bytes(12), session.dealt[owner]["escrow"], None
        )
        mine = [p["recipient"] for p in session.dealt[owner]["parcels"] if p["recipient"] > owner]
        for other in sorted(session.u3 & {*session.neighbours(owner)}):
            low, high = sorted((owner, other))
            ciphertext = next(
                p["mask_encapsulation"] for p in session.dealt[low]["parcels"] if p["recipient"] == high
            )
            at = 32 * mine.index(other) if owner == low else 0
            kem = escrow[at : at + 32] if owner == low else decapsulate(pair_secret, ciphertext)
            shared = x25519(pair_secret, session.keys[other][1]) + kem
            ids = (session.id(low), session.id(high))
            key = KDF(shared, b"pair-mask", session.t1, *ids, H(b"encapsulation", ciphertext))
            sign = -1 if other == low else 1  # take away what `other` added or subtracted
            total = [a + sign * b for a, b in zip(total, session.mask(key), strict=True)]
    result = [value % modulus for value in total]
    clear = [session.recorded["vectors"][session.id(i).decode()] for i in sorted(session.u3)]
    assert result == session.recorded["sum"] == [sum(column) % modulus for column in zip(*clear, strict=True)]
    assert [session.id(i).decode() for i in sorted(session.u3)] == session.recorded["survivors"]


def test_the_ring_is_a_ring(session: Session) -> None:
    for i, j in itertools.permutations(range(session.n), 2):
        assert (j in session.neighbours(i)) == (i in session.neighbours(j))
        assert len(session.neighbours(i)) == session.counts["degree"]
