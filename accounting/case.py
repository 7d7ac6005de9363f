"""What the checks of an audit share: the case before them, what they find, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .chain import Chain, Charge
from .private_audit import AttemptRecord
from .rows import Partition

if TYPE_CHECKING:
    from .empirical import EmpiricalResult  # scipy takes a while to import

Status = Literal["PASS", "FAIL", "UNVERIFIABLE"]
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check found: its number and name, the status, the evidence, and what would help.

    `remedy` says what to do about a FAIL, what would make an UNVERIFIABLE verifiable, and nothing for a PASS.
    """

    check: int
    name: str
    status: Status
    evidence: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an auditor has besides report and ledgers, all of it optional.

    Attributes:
        private: records of clients' private audit files, by client. Verdicts that rest on them are private too.
        empirical: what an attack on this run achieved.
        partition: which public rows each client of a simulation holds.
    """

    private: Mapping[str, tuple[AttemptRecord, ...]] = field(default_factory=dict)
    empirical: EmpiricalResult | None = None
    partition: Partition | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What an audit has before it: the report, the chains by client, what broke them, pinned keys, evidence."""

    report: Mapping[str, Any]
    chains: Mapping[str, Chain]
    broken: str | None
    roster: Mapping[str, bytes] | None
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def run(self) -> str:
        """The run that the report is about."""
        return str(self.report["run"])

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """The plans by client."""
        plans: Mapping[str, Mapping[str, Any]] = self.report["plan"]
        return plans

    @property
    def secure_aggregation(self) -> Mapping[str, Any]:
        """What the report states of its sessions; empty if nothing."""
        stated: Mapping[str, Any] = self.report.get("secure_aggregation", {})
        return stated

    @property
    def colluders(self) -> int:
        """How many clients the masks withstand, as the report states it; none where it says nothing of them."""
        return int(self.secure_aggregation.get("max_colluders", 0))

    @property
    def bands(self) -> Mapping[int, Mapping[str, Any]]:
        """What the report states of the sessions of some clients only, by the number of their exchange."""
        return {band["exchange"]: band for band in self.secure_aggregation.get("bands", ())}

    def rests_on_plan(self, client_id: str) -> bool:
        """Whether the report itself says that a client's claim is its plan's worst case, for want of rows."""
        return any(c["who"] == client_id and c["basis"] == "plan" for c in self.report["claims"])

    def charges(self, client_id: str) -> list[Charge]:
        """A client's charges in this run."""
        chain = self.chains.get(client_id)
        return [charge for charge in chain.charges.values() if charge.run == self.run] if chain else []

    def all_charges(self) -> Iterator[tuple[str, Charge]]:
        """Every client's charges in this run, each with its client's id."""
        for client_id in self.chains:
            for charge in self.charges(client_id):
                yield client_id, charge

    def without_rows(self) -> list[str]:
        """The planned clients whose ledgers are not here."""
        return sorted(self.plans.keys() - self.chains.keys())

    def recorded(self, client_id: str) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Where, and what, a client's reservations in this run recorded of the code, the noise and the plan."""
        for _, where, recorded in self.recorded_by_round(client_id):
            yield where, recorded

    def recorded_by_round(self, client_id: str) -> Iterator[tuple[int, str, Mapping[str, str]]]:
        """The same, each with its round."""
        for charge in self.charges(client_id):
            entry = self.chains[client_id].rows[charge.reservation].entry
            yield charge.round, f"{client_id}, row {charge.reservation}", getattr(entry, "versions", {})


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

    @property
    def status(self) -> Status:
        """FAIL for any problem, UNVERIFIABLE for any doubt without one, else PASS."""
        return "FAIL" if self.problems else "UNVERIFIABLE" if self.doubts else "PASS"

    def evidence(self) -> str:
        """The first few of what weighs most; what could be confirmed follows a doubt."""
        if self.problems:
            return _listed(self.problems)
        if self.doubts and self.facts:
            return f"{_listed(self.doubts)}. Confirmed: {_listed(self.facts)}"
        return _listed(self.doubts or self.facts)


@dataclass(frozen=True, slots=True)
class Check:
    """One question of an audit: its number and name, what gathers the answer, and what to do about that."""

    number: int
    name: str
    body: Callable[[Case, Findings], None]
    if_fail: str
    to_verify: str

    def __call__(self, case: Case) -> Verdict:
        """The verdict on a case."""
        found = Findings()
        self.body(case, found)
        remedy = {"FAIL": self.if_fail, "UNVERIFIABLE": self.to_verify, "PASS": ""}[found.status]
        return Verdict(self.number, self.name, found.status, found.evidence(), remedy)


def needs_rows(check: Callable[[Case, Findings], None]) -> Callable[[Case, Findings], None]:
    """A check that reads ledger rows: with a broken ledger it has nothing to stand on."""

    def guarded(case: Case, found: Findings) -> None:
        if case.broken:
            found.doubts.append("the ledger is not whole (check 1), so its rows prove nothing")
        else:
            check(case, found)

    return guarded


def names(clients: Iterable[str]) -> str:
    """A few client ids in one text."""
    listed = sorted(clients)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _listed(texts: list[str]) -> str:
    """The first few texts, each once."""
    shown = list(dict.fromkeys(texts))
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more
