"""What clients' ledgers have spent and still allow, read without changing them: ``fedlora budget``.

Nothing here needs torch, the data or the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounting.budget import Budget
from accounting.chain import Chain
from accounting.errors import BudgetExceeded
from accounting.events import PrivateEvent
from accounting.merge import Merged
from accounting.planning import Plan
from accounting.pricing import SMALLEST_PLD_DELTA
from accounting.standing import standing
from accounting.transfer import read, read_all
from fedlora_priv.config import Experiment
from fedlora_priv.data.sources import public_name
from fedlora_priv.errors import ConfigError, RunFolderError
from fedlora_priv.federation.plans import plan_clients, whole_run
from fedlora_priv.federation.runfolder import begun, ledger_path

DEFAULT_DELTA = 1e-5


@dataclass(frozen=True)
class Question:
    """What is asked of the ledgers.

    Args:
        merged: the ledgers.
        delta, limit: at which δ, and under which lifetime limit on ε, if one is known.
        next_rounds: what one more round of each client would release, where an experiment says so.
        missing: clients of the experiment that have no ledger yet, so have spent nothing.
    """

    merged: Merged
    delta: float
    limit: float | None
    next_rounds: Mapping[str, PrivateEvent]
    missing: tuple[str, ...] = ()


def ask(targets: Sequence[Path], delta: float | None, limit: float | None) -> Question:
    """Return the question about ledger files, clients' homes and run folders.

    Raises:
        RunFolderError: a target holds no ledger.
        ConfigError: the limit or delta is none.
        AccountingError: a ledger is damaged, or two contradict each other.
    """
    files = [file for target in targets for file in _ledger_files(target)]
    return _question(read_all(files), DEFAULT_DELTA if delta is None else delta, limit)


def ask_experiment(experiment: Experiment, delta: float | None, limit: float | None) -> Question:
    """Return the question about all clients of an experiment, as far as they keep their ledgers here.

    Raises:
        AccountingError: a ledger is damaged.
    """
    chains = {client_id: own_chain(experiment, client_id) for client_id in experiment.client_ids}
    declared = experiment.declared_sizes
    plans = plan_clients(experiment, declared) if declared else {}
    return _question(
        Merged.of(chain for chain in chains.values() if chain is not None),
        experiment.privacy.delta if delta is None else delta,
        experiment.privacy.ledger_limit if limit is None else limit,
        {client_id: plan.round_event() for client_id, plan in plans.items()},
        tuple(client_id for client_id, chain in chains.items() if chain is None),
    )


def _question(
    merged: Merged,
    delta: float,
    limit: float | None,
    next_rounds: Mapping[str, PrivateEvent] | None = None,
    missing: tuple[str, ...] = (),
) -> Question:
    """Return a question whose numbers make sense."""
    if limit is not None and not 0 < limit < float("inf"):
        raise ConfigError(f"the limit must be finite and above 0, not {limit:g}")
    if not SMALLEST_PLD_DELTA <= delta < 1:
        raise ConfigError(f"--delta must be at least {SMALLEST_PLD_DELTA:g} and below 1, not {delta:g}")
    return Question(merged, delta, limit, next_rounds or {}, missing)


def own_chain(experiment: Experiment, client_id: str) -> Chain | None:
    """Return the client's ledger of the experiment's dataset, if it keeps one on this machine."""
    folder = Path(experiment.experiment.output).expanduser()
    path = ledger_path(folder, client_id, public=experiment.data.public)
    if not path.exists():
        return None
    dataset_id = experiment.data.dataset_id or public_name(experiment.data.source)
    return read(path).chains.get((client_id, dataset_id))


def refusals(experiment: Experiment, plans: Mapping[str, Plan]) -> dict[str, str]:
    """Return, of the clients whose ledgers would refuse to begin this run, why: for ``fedlora plan``.

    A new run of public data begins with ledgers of its own, so only private data can be refused; and a run that
    has begun had room for all of itself.
    """
    if experiment.data.public or begun(Path(experiment.experiment.output).expanduser()):
        return {}
    budget = Budget(experiment.privacy.ledger_limit, experiment.privacy.delta)
    refused = {}
    for client_id, plan in plans.items():
        chain = own_chain(experiment, client_id)
        try:
            budget.require_events(chain.spent() if chain else (), whole_run(plan))
        except BudgetExceeded as error:
            refused[client_id] = str(error)
    return refused


def answer(question: Question, *, overlapping: bool = False, rows_each: int | None = None) -> dict[str, Any]:
    """Return as JSON values where each ledger stands, and what the federation of them may claim in each view.

    Raises:
        AccountingError: events that cannot be priced, or ledgers that do not add up to one claim.
    """
    merged, delta = question.merged, question.delta
    charged = any(merged.spent().values())
    return {
        "delta": delta,
        "limit": question.limit,
        "ledgers": [
            standing(
                chain,
                delta,
                limit=question.limit,
                next_round=question.next_rounds.get(client_id),
            ).to_json()
            for (client_id, _), chain in merged.chains.items()
        ],
        "nothing_spent": list(question.missing),
        "federation": [
            merged.claim(delta, view, overlapping=overlapping, rows_each=rows_each).to_json()
            for view in (merged.views() if charged else ())
        ],
    }


def _ledger_files(target: Path) -> list[Path]:
    """Return the ledger files at a target: itself, or those of a run folder, a client's home or a root of homes."""
    if not target.is_dir():
        return [target]
    for pattern in ("ledger.sqlite", "ledger.jsonl", "*/ledger.sqlite", "clients/*/ledger.sqlite"):
        if found := sorted(target.glob(pattern)):
            return found
    raise RunFolderError(
        f"there is no ledger in {target}", "name a ledger file, a client's home or a run folder"
    )
