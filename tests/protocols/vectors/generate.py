"""Write session*.json: every byte of five sessions, in which clients are lost in every phase, and bad messages.

Run it from the repository's root, ``python -m tests.protocols.vectors.generate``, when the wire format changes and
its version with it. Keys and encapsulations are fresh each time, so a new file is a new session.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np

from protocols.secagg import dealing, keys, statements
from protocols.secagg.client import SecAggClient
from protocols.secagg.codec import decode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import PHASES
from protocols.secagg.messages import SharesIn
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, CoordinateGroup, SessionParameters, recommended
from protocols.secagg.transcript import from_bitmap

ALL = (0, 1, 2, 3, 4)
SESSIONS: dict[str, dict[str, Any]] = {
    "session": {"n": 3, "bits": 11, "lost": {"client-2": "mask"}},
    "session_setup": {"n": 5, "bits": 16, "lost": {"client-2": "advertise", "client-4": "share"}},
    # client-1 made all of its pairs' encapsulations, client-5 none.
    "session_masks": {"n": 5, "bits": 32, "lost": {"client-1": "mask", "client-5": "mask"}},
    "session_late": {
        "n": 5,
        "bits": 7,
        "lost": {"client-2": "confirm", "client-3": "reveal"},
        "groups": (CoordinateGroup(0, 2, ALL), CoordinateGroup(2, 6, (0, 1, 4))),
        "attachments": {"client-1": b"anchor", "client-4": bytes(1024)},
    },
    "session_ring": {"n": 7, "bits": 20, "degree": 2, "lost": {"client-3": "mask"}},
}
POLICY = ClientPolicy(
    max_colluders=0, min_survivors=2, min_quorum=2, min_contributors=2, exact_round=None, exact_form=None
)


def record(
    n: int,
    bits: int,
    lost: dict[str, str],
    degree: int | None = None,
    groups: tuple[CoordinateGroup, ...] = (),
    attachments: dict[str, bytes] | None = None,
) -> dict[str, Any]:
    """Run a session and return all that was sent, the secrets behind it, and what client-1 remembered before."""
    names = tuple(f"client-{i + 1}" for i in range(n))
    privates = {name: bytes([i + 1]) * 32 for i, name in enumerate(names)}
    identities = {name: Identity.from_private_bytes(private) for name, private in privates.items()}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    context, counts = os.urandom(32), recommended(n, 0, degree)
    parameters = SessionParameters(
        session_id=os.urandom(32),
        round=3,
        exchange=0,
        roster=names,
        max_colluders=0,
        quorum=counts.quorum,
        threshold=counts.threshold,
        min_survivors=counts.min_survivors,
        degree=counts.degree,
        vector_length=6,
        modulus_bits=bits,
        bound=(2 ** (bits - 1) - 1) // n,
        context=context,
        groups=groups,
    )
    clients = {
        name: SecAggClient(
            client_id=name,
            identity=identities[name],
            roster=roster,
            policy=POLICY,
            guard=MemoryGuard(),
            context=context,
        )
        for name in names
    }
    vectors = {name: _vector(parameters, i) for i, name in enumerate(names)}
    server = SecAggServer(parameters=parameters, roster=roster)
    attached = attachments or {}
    secrets: dict[str, dict[str, str]] = {}
    derived: dict[str, Any] = {}
    steps, inbox = [], server.start()
    for phase in PHASES:
        asked = [name for name in inbox if lost.get(name) != phase]
        step: dict[str, Any] = {"phase": phase, "requests": {}, "answers": {}}
        if "client-1" in asked:
            step["snapshot_of_client_1"] = encoded(clients["client-1"].snapshot())
        for name in asked:
            extra: tuple[Any, ...] = ()
            if phase == "mask":
                extra = (np.array(vectors[name], dtype=np.uint32),)
                derived[name] = _mask_keys(clients[name], inbox[name], names)
            if phase == "confirm":
                extra = (attached.get(name, b""),)
            answer = getattr(clients[name], phase)(inbox[name], *extra)
            server.receive(name, answer)
            if phase == "advertise":
                secrets[name] = _secrets(clients[name])
            if name in (asked[0], asked[-1]):  # the others follow from the answers, like these
                step["requests"][name] = encoded(inbox[name])
            step["answers"][name] = encoded(answer)
        steps.append(step)
        inbox = server.advance()
    result = server.result()
    return {
        "lost": lost,
        "private_keys": {name: private.hex() for name, private in privates.items()},
        "public_keys": {name: roster[name].hex() for name in names},
        "context": context.hex(),
        "secrets": secrets,
        "vectors": vectors,
        "attachments": {name: data.hex() for name, data in attached.items()},
        "steps": steps,
        "t0": statements.parameters_digest(parameters).hex(),
        "t1": result.transcript.hex(),
        "mask_keys": derived,
        "survivors": list(result.survivors),
        "sum": result.sum.tolist(),
    }


def _vector(parameters: SessionParameters, index: int) -> list[int]:
    """A vector within the bound, with both extremes, and zeros where its client does not contribute."""
    rng = np.random.default_rng(index)
    bound = parameters.bound
    values = rng.integers(-bound, bound, parameters.vector_length, endpoint=True)
    values[0], values[-1] = bound, -bound
    for group in parameters.groups:
        if index not in group.contributors:
            values[group.start : group.stop] = 0
    return [int(value) % 2**parameters.modulus_bits for value in values]


def _secrets(client: SecAggClient) -> dict[str, str]:
    """What a client drew when it advertised."""
    state: Any = client._state
    return {name: getattr(state, name).hex() for name in ("seed", "master", "box_secret")}


def _mask_keys(client: SecAggClient, request: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """The key of a client's self-mask, and of its mask with each neighbour in U2."""
    state: Any = client._state
    name = client._client_id
    received = decode(SharesIn, request, "server")
    masks = dealing.pair_masks(received.parcels, state, name)
    return {
        "u2": sorted(from_bitmap(received.u2, len(names))),
        "self": keys.self_mask_key(state.seed, state.t1, name).hex(),
        "pairs": {
            names[parcel.sender]: mask.key.hex() for parcel, mask in zip(received.parcels, masks, strict=True)
        },
    }


def encoded(data: bytes) -> str:
    """Bytes in JSON."""
    return b64encode(data).decode()


def main() -> None:
    """Write all files next to this one."""
    from tests.protocols.vectors.bad import bad_cases

    folder = Path(__file__).parent
    sessions = {name: record(**arguments) for name, arguments in SESSIONS.items()}
    for name, session in sessions.items():
        (folder / f"{name}.json").write_text(json.dumps(session, indent=1) + "\n", encoding="utf-8")
    bad = [json.dumps(case) for case in bad_cases(sessions)]
    (folder / "session_bad.json").write_text("[\n" + ",\n".join(bad) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
