"""What a method lets leave in each round, as a report states it and clients record it by digest.

A report's `method` holds every contract once, with the rounds that it governs. A client writes into each reservation
the digest of what is stated of its round, so that a report which admits more exchanges, or other arrays, in that round
than the clients knew of fails. Of one round, because what later ones let leave may follow from what is found until
then. No client vouches for a round in which it has reserved nothing: nothing of it left in that round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from . import canonical

RECORDED_AS = "contract_sha256"
"""The name under which reservations record the digest."""

_LABEL = b"fedlora-priv/contract/1\0"

Contract = Mapping[str, Any]


def round_digest(stated: Mapping[str, Any], number: int) -> str:
    """SHA-256 (hex) of what a report's `method` states of a round, whichever other rounds have the same contract.

    >>> one, several = ({"name": "ffa", "contracts": [{"rounds": r, "exact": True}]} for r in ([2], [1, 2, 3]))
    >>> round_digest(one, 2) == round_digest(several, 2) != round_digest(several, 3)
    True
    """
    contracts = [
        {key: value for key, value in contract.items() if key != "rounds"}
        for contract in by_round(stated).get(number, [])
    ]
    whole = {**stated, "contracts": contracts, "round": number}
    return hashlib.sha256(_LABEL + canonical.dumps(whole).encode()).hexdigest()


def by_round(stated: Mapping[str, Any]) -> dict[int, list[Contract]]:
    """The contracts that a report's `method` states for each round; one, unless it contradicts itself."""
    found: dict[int, list[Contract]] = {}
    for contract in stated["contracts"]:
        for number in contract["rounds"]:
            found.setdefault(number, []).append(contract)
    return found


def coordinates(contract: Contract) -> int:
    """What the exchanges of a contract add up to, one client's coordinates in a round; votes count as such."""
    return sum(sent(exchange) for exchange in contract["exchanges"])


def sent(exchange: Mapping[str, Any]) -> int:
    """How many coordinates travel in an exchange: all of its arrays', unless it says that some are left out."""
    return int(exchange.get("coordinates", sum(exchange["travels"].values())))


def numbered(exchanges: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """A round's listed exchanges with their numbers: their places, unless they say that others were lost between."""
    return [(exchange.get("exchange", place), exchange) for place, exchange in enumerate(exchanges)]


def band(contract: Contract, number: int) -> Sequence[str] | None:
    """The clients that send what is summed in an exchange, if it is a band: coordinates that only they send."""
    exchanges = contract["exchanges"]
    clients: Sequence[str] | None = exchanges[number].get("clients") if number < len(exchanges) else None
    return clients
