"""What the checks of an audit share: the case before them, what they find, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .chain import Chain, Charge

Status = Literal["PASS", "FAIL", "UNVERIFIABLE"]
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check found: its number and name, the status, the evidence, and what would help."""

    check: int
    name: str
    status: Status
    evidence: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Case:
    """What an audit has before it: the report, the chains by client, what broke them, and the pinned keys."""

    report: Mapping[str, Any]
    chains: Mapping[str, Chain]
    broken: str | None
    roster: Mapping[str, bytes] | None

    @property
    def run(self) -> str:
        """The run that the report is about."""
        return str(self.report["run"])

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """The plans by client."""
        plans: Mapping[str, Mapping[str, Any]] = self.report["plan"]
        return plans

    def rests_on_plan(self, client_id: str) -> bool:
        """Whether the report itself says that a client's claim is its plan's worst case, for want of rows."""
        return any(c["who"] == client_id and c["basis"] == "plan" for c in self.report["claims"])

    def charges(self, client_id: str) -> list[Charge]:
        """A client's charges in this run."""
        chain = self.chains.get(client_id)
        return [charge for charge in chain.charges.values() if charge.run == self.run] if chain else []

    def recorded(self, client_id: str) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Where, and what, a client's reservations in this run recorded of the code, the noise and the plan."""
        for charge in self.charges(client_id):
            entry = self.chains[client_id].rows[charge.reservation].entry
            yield f"{client_id}, row {charge.reservation}", getattr(entry, "versions", {})


@dataclass(slots=True)
class Findings:
    """What a check has gathered."""

    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def compare(self, where: str, recorded: Mapping[str, str], name: str, stated: object) -> None:
        """Hold what the report states against what a row recorded under that name, if it did."""
        if name not in recorded:
            self.doubts.append(f"{where} does not record {name}: it is on the report's word")
        elif recorded[name] != stated:
            self.problems.append(f"{where}: {name} {recorded[name]}, where the report has {stated}")

    def verdict(self, number: int, name: str, remedy: str) -> Verdict:
        """The verdict that follows: the first few of what weighs most."""
        status: Status = "FAIL" if self.problems else "UNVERIFIABLE" if self.doubts else "PASS"
        shown = list(dict.fromkeys(self.problems or self.doubts or self.facts))
        more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return Verdict(
            number, name, status, "; ".join(shown[:_SHOWN]) + more, "" if status == "PASS" else remedy
        )


def needs_rows(check: Callable[[Case, Findings], None]) -> Callable[[Case, Findings], None]:
    """A check that reads ledger rows: with a broken ledger it has nothing to stand on."""

    def guarded(case: Case, found: Findings) -> None:
        if case.broken:
            found.doubts.append("the ledger is not whole (check 1), so its rows prove nothing")
        else:
            check(case, found)

    return guarded
