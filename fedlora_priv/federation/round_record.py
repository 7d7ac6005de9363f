"""What happened in a round: who was in which sum, who was lost and why. The report says it, a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedlora_priv.allocation.findings import Findings


@dataclass
class ExchangeRecord:
    """One exchange of a round: which sum it was.

    Args:
        session: hex id of the secure aggregation session; None where the sum is unmasked.
        transcript: hex T1 of that session, which every survivor signed; None if it gave no sum.
        announced: hex digest of what the server had told everybody before; None in the first exchange and in bands.
        number: which exchange of the round it was.
        survivors: the clients in its sum, in roster order; none if it gave none.
    """

    session: str | None = None
    transcript: str | None = None
    announced: str | None = None
    number: int = 0
    survivors: tuple[str, ...] = ()


@dataclass
class RoundRecord:
    """What happened in a round; public, and what the report says of it.

    Args:
        round: number of the round.
        survivors: the clients in the sum of the first exchange, and of any later one but those of bands, in roster
            order; empty if there was none.
        lost: (client_id, phase) of the clients that did not answer.
        refused: (client_id, code) of the clients that would not take part.
        exchanges: every masked session that began, and every unmasked sum, in order.
        certificate: how far the result is from the mean of the clients' products, as `Certificate.to_json` says
            it, where the method can tell.
        aborted: why the round has left the global state as it was, or None.
        findings: what its allocation followed from beside the file.
        faded: where clients prune their ranks, who has announced that its tail has faded, in roster order.
    """

    round: int
    survivors: tuple[str, ...] = ()
    lost: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    certificate: dict[str, Any] | None = None
    aborted: str | None = None
    findings: Findings = field(default_factory=Findings)
    faded: tuple[str, ...] = ()

    def lose(self, client_id: str, phase: str) -> None:
        """Note that a client's answer is missing or bad; what it has announced beside a bad one was not heard."""
        self.lost.append((client_id, phase))
        if phase == "train":
            self.faded = tuple(announced for announced in self.faded if announced != client_id)

    def losses(self) -> dict[str, list[dict[str, str]]]:
        """Return who was lost and who refused, as metrics and report list them."""
        return {
            "lost": [{"client_id": client_id, "phase": phase} for client_id, phase in self.lost],
            "refused": [{"client_id": client_id, "code": code} for client_id, code in self.refused],
        }
