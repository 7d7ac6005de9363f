"""Write session.json: every byte of one session of three clients, of which client-2 is lost before masking.

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

from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import PHASES
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters

NAMES = ("client-1", "client-2", "client-3")
VECTORS = {"client-1": [1, 2047, 300, 0], "client-2": [5, 5, 5, 5], "client-3": [7, 2046, 41, 1748]}


def record() -> dict[str, Any]:
    """Run the session and return everything that was sent, with what each client remembered before."""
    privates = {name: bytes([i + 1]) * 32 for i, name in enumerate(NAMES)}
    identities = {name: Identity.from_private_bytes(private) for name, private in privates.items()}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    context = os.urandom(32)
    parameters = SessionParameters(
        session_id=os.urandom(32),
        round=3,
        exchange=0,
        roster=NAMES,
        max_colluders=0,
        quorum=2,
        threshold=2,
        min_survivors=2,
        degree=2,
        vector_length=4,
        modulus_bits=11,
        bound=341,
        context=context,
    )
    policy = ClientPolicy(max_colluders=0, min_survivors=2, min_quorum=2, min_contributors=2)
    clients = {
        name: SecAggClient(
            client_id=name,
            identity=identities[name],
            roster=roster,
            policy=policy,
            guard=MemoryGuard(),
            context=context,
        )
        for name in NAMES
    }
    server = SecAggServer(parameters=parameters, roster=roster)
    steps, inbox = [], server.start()
    for phase in PHASES:
        asked = [name for name in inbox if not (name == "client-2" and phase == "mask")]
        snapshots = {name: encoded(clients[name].snapshot()) for name in asked}
        answers = {}
        for name in asked:
            extra = (np.array(VECTORS[name], dtype=np.uint32),) if phase == "mask" else ()
            answers[name] = getattr(clients[name], phase)(inbox[name], *extra)
            server.receive(name, answers[name])
        steps.append(
            {
                "phase": phase,
                "requests": {name: encoded(inbox[name]) for name in asked},
                "snapshots": snapshots,
                "answers": {name: encoded(answer) for name, answer in answers.items()},
            }
        )
        inbox = server.advance()
    result = server.result()
    return {
        "private_keys": {name: private.hex() for name, private in privates.items()},
        "context": context.hex(),
        "vectors": VECTORS,
        "steps": steps,
        "sum": result.sum.tolist(),
        "survivors": list(result.survivors),
        "transcript": result.transcript.hex(),
    }


def encoded(data: bytes) -> str:
    """Bytes in JSON."""
    return b64encode(data).decode()


if __name__ == "__main__":
    (Path(__file__).parent / "session.json").write_text(
        json.dumps(record(), indent=1) + "\n", encoding="utf-8"
    )
