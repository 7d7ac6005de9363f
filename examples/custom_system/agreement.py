"""What all parties settle before the first session. Everybody computes it from their own copy of this file."""

from __future__ import annotations

import hashlib

from protocols.quantise import Quantiser
from protocols.secagg.session import ClientPolicy, SessionParameters, VectorForm, recommended

CLIENTS = tuple(f"client-{i}" for i in range(1, 7))
DIMENSION = 1000
QUANTISER = Quantiser(bounds=1.0, value_bits=16, max_clients=len(CLIENTS))
COUNTS = recommended(len(CLIENTS), max_colluders=1)
ROUND = 1
"""Which round a client's vector is of. Count it yourself: never take it from the server."""
MAX_MESSAGE = 2**20
"""No message of this federation is longer, in bytes; a frame that claims to be is not read."""

# Bind here whatever the vectors are *about*: the model's bytes, the task, the round's settings.
CONTEXT = hashlib.sha256(b"custom system, means of one feature table" + QUANTISER.digest()).digest()

POLICY = ClientPolicy(
    max_colluders=1,
    min_survivors=COUNTS.min_survivors,
    min_quorum=COUNTS.quorum,
    min_contributors=COUNTS.min_survivors,
    max_clients=len(CLIENTS),
    max_vector_length=DIMENSION,
    exact_round=(ROUND, 0),
    exact_form=VectorForm(DIMENSION, QUANTISER.modulus_bits, QUANTISER.levels),
)


def parameters(session_id: bytes) -> SessionParameters:
    """Return what the server proposes, and what every client's `POLICY` accepts."""
    return SessionParameters(
        session_id=session_id,
        round=ROUND,
        exchange=0,
        roster=CLIENTS,
        max_colluders=1,
        quorum=COUNTS.quorum,
        threshold=COUNTS.threshold,
        min_survivors=COUNTS.min_survivors,
        degree=COUNTS.degree,
        vector_length=DIMENSION,
        modulus_bits=QUANTISER.modulus_bits,
        bound=QUANTISER.levels,
        context=CONTEXT,
    )
