"""The errors of this package.

AccountingError
├── EventError        an event that is malformed, unknown, or of another version
├── PricingError      events that this package will not put a price on
├── PlanningError     an epsilon target that cannot be planned for
├── LedgerError       a ledger that is not whole, or a row that its rules forbid (names the row)
├── MergeError        ledgers that do not add up to one claim
├── BudgetExceeded    the next release would overspend
├── ReportError       a report that does not follow the published schema or its own ledger
├── EmpiricalError    outcomes of an attack that contradict themselves, or a damaged record of them
└── PrivateAuditError a client's private audit file that cannot be read
"""

from __future__ import annotations


class AccountingError(Exception):
    """Whatever goes wrong in privacy accounting."""


class EventError(AccountingError):
    """An event that is malformed, of an unknown kind, or of an unknown version."""


class PricingError(AccountingError):
    """Events that have no certified price here."""


class PlanningError(AccountingError):
    """A target that no noise multiplier reaches, or a plan that contradicts itself."""


class LedgerError(AccountingError):
    """A ledger that is edited, truncated or reordered, or a row that its rules forbid.

    `row` is the position of the offending row, or None where the file as a whole is at fault.
    """

    def __init__(self, message: str, *, row: int | None = None) -> None:
        self.row = row
        super().__init__(message if row is None else f"ledger row {row}: {message}")


class MergeError(AccountingError):
    """Ledgers that do not add up to one claim: other units or adjacencies, or rows shared under shared noise."""


class BudgetExceeded(AccountingError):  # noqa: N818  (reads as what happened)
    """The next release would overspend.

    `epsilon` is what the ledger would amount to, `limit` what is allowed, and `steps_left` how many steps
    of the refused mechanism still fit.
    """

    def __init__(self, message: str, *, epsilon: float, limit: float, steps_left: int) -> None:
        self.epsilon, self.limit, self.steps_left = epsilon, limit, steps_left
        super().__init__(message)


class ReportError(AccountingError):
    """A report that breaks its schema, or whose parts contradict each other."""


class EmpiricalError(AccountingError):
    """Outcomes of an attack that contradict themselves, or a record of them that is damaged."""


class PrivateAuditError(AccountingError):
    """A private audit file that is malformed. The message never quotes what is in it."""
