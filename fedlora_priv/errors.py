"""Every error that `fedlora` reports: one line that says what is wrong and what to do.

::

    FedloraError                         exit code
    ├── AuditFailed                      1   an audit gave at least one FAIL
    ├── ConfigError                      2   the experiment file or a command-line option
    ├── DataError                        3   the data cannot be read, split or used
    │   └── AssetError                   3   a download is missing, unreachable or not what it should be
    ├── BudgetError                      4   the privacy budget does not allow what was asked
    ├── FederationError                  5   the federation stopped: few survivors, a misbehaving peer
    │   ├── StateBeyondBounds            5   training from this global state could not be private
    │   └── StaleRound                   5   a client's round in progress cannot be continued
    ├── RunFolderError                   6   the run folder or a client's home is damaged or in use
    └── EnvironmentProblem               7   a library is missing, this machine computes wrongly, or a port,
                                             a certificate or a clock is wrong

The command line prints the message alone and leaves with the exit code; ``--debug`` adds the trace. An
exception that is *not* a `FedloraError` is a defect of ours and leaves with `UNEXPECTED_EXIT_CODE`.
Messages never hold secrets or private data: they may end up in another party's log.
"""

from __future__ import annotations

from typing import ClassVar, Final

UNEXPECTED_EXIT_CODE: Final = 70
"""What a crash of ours exits with (EX_SOFTWARE of sysexits.h), so that scripts can tell it from a refusal."""

INTERRUPTED_EXIT_CODE: Final = 130
"""What Ctrl-C exits with: 128 + SIGINT, as shells do."""


class FedloraError(Exception):
    """A refusal or failure that the user can act on; `str` of it is always one line.

    Args:
        what: what is wrong.
        remedy: what to do about it; joined to `what` with a semicolon.
    """

    exit_code: ClassVar[int] = UNEXPECTED_EXIT_CODE
    meaning: ClassVar[str] = "unexpected: a defect of fedlora-priv"

    def __init__(self, what: str, remedy: str = "") -> None:
        text = f"{what.rstrip(' .')}; {remedy}" if remedy else what
        super().__init__(" ".join(text.split()))


class AuditFailed(FedloraError):  # noqa: N818 - it is a verdict, not a malfunction
    """An audit gave at least one FAIL."""

    exit_code = 1
    meaning = "an audit gave at least one FAIL"


class ConfigError(FedloraError):
    """The experiment file, an override or a command-line option is wrong."""

    exit_code = 2
    meaning = "the experiment file, an override or a command-line option is wrong"


class DataError(FedloraError):
    """The data cannot be read, split or used."""

    exit_code = 3
    meaning = "the data or an asset cannot be fetched, read, split or used"


class AssetError(DataError):
    """A download is missing, unreachable or not the bytes it should be."""


class BudgetError(FedloraError):
    """The privacy budget does not allow what was asked."""

    exit_code = 4
    meaning = "the privacy budget does not allow what was asked"


class FederationError(FedloraError):
    """The federation stopped: too few survivors or a peer that misbehaved."""

    exit_code = 5
    meaning = "the federation stopped: too few survivors or a peer that misbehaved"


class StateBeyondBounds(FederationError):  # noqa: N818 - a client's refusal shows this name and nothing else
    """Training from this global state could not be private: it diverged, or somebody made it up."""


class StaleRound(FederationError):  # noqa: N818 - a refusal's name, like StateBeyondBounds
    """A client's round in progress cannot be continued from the state it was given: only the next one can begin."""


class RunFolderError(FedloraError):
    """The run folder or a client's home is damaged, in use, or belongs to another experiment."""

    exit_code = 6
    meaning = "the run folder or a client's home is damaged, in use or belongs to another experiment"


class EnvironmentProblem(FedloraError):  # noqa: N818 - EnvironmentError is Python's own
    """A library is missing, this machine computes wrongly, or a port, a certificate or a clock is wrong."""

    exit_code = 7
    meaning = (
        "a library is missing, this machine computes wrongly, or a port, a certificate or a clock is wrong"
    )


def exit_codes() -> dict[int, str]:
    """Return every documented exit code with its meaning, in ascending order.

    >>> exit_codes()[0]
    'success'
    """
    codes = {0: "success", INTERRUPTED_EXIT_CODE: "interrupted (Ctrl-C); the run can be resumed"}
    pending: list[type[FedloraError]] = [FedloraError]
    while pending:
        error = pending.pop()
        codes[error.exit_code] = error.meaning
        pending.extend(error.__subclasses__())
    return dict(sorted(codes.items()))
