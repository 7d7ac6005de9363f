"""What a report says of the masks over its sums, as clients record it by digest.

How many clients a sum hides in, how many of them may collude and how many each masks with is in no ledger row of a
round, so a report could state more than there was. A client writes the digest of what its own experiment file says into
each reservation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from . import canonical

RECORDED_AS = "masks_sha256"
"""The name under which reservations record the digest."""

DERIVED = ("losses_survived", "abort_bounds")
"""What follows from the other figures; bounds are floats, which two machines may round differently."""

_LABEL = b"fedlora-priv/masks/1\0"


def masks_digest(stated: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a report's `secure_aggregation`, without what is derived, of its bands neither.

    >>> masks_digest({"mode": "insecure"}) == masks_digest({"mode": "insecure", "losses_survived": 1})
    True
    >>> masks_digest({"bands": [{"quorum": 3}]}) == masks_digest({"bands": [{"quorum": 3, "losses_survived": 1}]})
    True
    """
    chosen = _chosen(stated)
    if isinstance(bands := chosen.get("bands"), list):
        chosen["bands"] = [_chosen(band) for band in bands]
    return hashlib.sha256(_LABEL + canonical.dumps(chosen).encode()).hexdigest()


def _chosen(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What is stated, without what is derived."""
    return {name: value for name, value in stated.items() if name not in DERIVED}
