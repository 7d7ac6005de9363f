"""The loop over rounds: task → conduct → combine → evaluate → checkpoint, until the last round or the end.

Nothing is in memory only: after any crash `run_rounds` continues from the last checkpoint. The round that was
cut off begins again from the same public state, so clients that had finished it mask their stored update once
more and are not charged again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from accounting.planning import Plan
from accounting.pricing import epsilon, running_bound
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Metered, Traffic
from fedlora_priv.errors import BudgetError, FederationError, FedloraError, StateBeyondBounds
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.files import write_metrics
from fedlora_priv.federation.rescoring import Rescoring
from fedlora_priv.federation.round_record import RoundRecord
from fedlora_priv.federation.rounds import BUDGET_CODE, RoundConductor, RoundResult
from fedlora_priv.federation.server import FederationServer, ServerState
from fedlora_priv.federation.session import thresholds
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.methods.errors import SumError
from fedlora_priv.methods.layout import State

CERTIFIED_POINTS = 24
"""So many bounds on ε are certified for the progress line and the curve over a run, all different plans together."""
LOST_IN_A_ROW = 3
"""After so many rounds without a sum a run ends: each is charged at the clients and brings nothing."""


class Progress(Protocol):
    """What a caller may show while a run goes on."""

    def say(self, line: str) -> None:
        """Something happens before or after the rounds."""

    def round_started(self, number: int, rounds: int) -> None:
        """A round begins."""

    def round_finished(self, row: dict[str, Any]) -> None:
        """A round has ended; `row` is its line in metrics.jsonl."""


@dataclass
class Loop:
    """Everything the loop over rounds needs.

    Args:
        experiment: the experiment file.
        server: combines sums.
        conductor: conducts one round over the metered engine.
        engine: counts the bytes.
        plans: every client's plan, for the ε column of the metrics.
        folder: the run folder.
        evaluate: accuracy or perplexity of a state on public data, or None where none may be reported.
        progress: told of every round.
        personal: the same by client, where each has a model of its own; the mean is then what rounds are measured by.
        rescoring: scores layers on the way, where allocations follow from that.
    """

    experiment: Experiment
    server: FederationServer
    conductor: RoundConductor
    engine: Metered
    plans: dict[str, Plan]
    folder: Path
    evaluate: Callable[[State], float] | None
    progress: Progress
    personal: Callable[[ServerState], dict[str, float]] | None = None
    rescoring: Rescoring | None = None

    def run(self) -> tuple[ServerState, History]:
        """Return the final state and what happened, from wherever an earlier process had got to.

        Raises:
            FederationError: so few clients are there that the next round, which charges them, could give no sum.
        """
        stored = checkpoint.load(self._checkpoints)
        state, history = stored or self._begin()
        if stored is not None:
            self.progress.say(self._resumed(state, history))
        write_metrics(self.folder, history.metrics)
        while state.round < self.experiment.federation.rounds and ended_early(history.records) is None:
            self._require_enough()
            state = self._round(state, history)
            checkpoint.save(self._checkpoints, state, history)
            write_metrics(self.folder, history.metrics)
        return state, history

    def _require_enough(self) -> None:
        """Raise unless as many clients can be reached as a sum must be of."""
        absent, n = self.engine.absent, len(self.engine.client_ids)
        insecure = self.experiment.secure_aggregation.mode == "insecure"
        least = 1 if insecure else thresholds(self.experiment)[2]
        if absent and n - len(absent) < least:
            raise FederationError(
                f"{n - len(absent)} of {n} clients are there, and a sum takes {least}; not there: {', '.join(absent)}",
                "start their nodes, then the run again: it resumes, and no further round was begun or charged",
            )

    def _resumed(self, state: ServerState, history: History) -> str:
        """Return where a run goes on that an earlier process began."""
        rounds = self.experiment.federation.rounds
        if state.round == rounds or ended_early(history.records) is not None:
            return f"resuming after the last round, {state.round} of {rounds}: what is missing is the report"
        done = f"after round {state.round}" if state.round else "before the first round had ended"
        return f"resuming {done}: going on with round {state.round + 1} of {rounds}"

    @property
    def _checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    def _begin(self) -> tuple[ServerState, History]:
        """Return the state before the first round, evaluated and checkpointed."""
        state = self._found(self.server.begin())
        history = History(quality_before=self.evaluate(state.state) if self.evaluate else None)
        checkpoint.save(self._checkpoints, state, history)
        return state, history

    def _round(self, state: ServerState, history: History) -> ServerState:
        """Run the next round and add it to the history."""
        rounds = self.experiment.federation.rounds
        self.progress.round_started(state.round + 1, rounds)
        task = self.server.task(state)
        result = self.conductor.conduct(task, partial(self.server.announce, state, task))
        state = self.server.heard(self._advance(state, task, result), task, result.record.faded)
        state = self._found(state)
        history.records.append(result.record)
        history.anchors |= {
            client_id: anchor.to_bytes().hex() for client_id, anchor in result.anchors.items()
        }
        due = state.round % self.experiment.federation.evaluate_every == 0
        due = due or state.round == rounds or ended_early(history.records) is not None
        quality = self._quality(state) if due else {}
        row = self._row(result.record, quality, self.engine.take())
        history.metrics.append(row)
        self.progress.round_finished(row)
        return state

    def _found(self, state: ServerState) -> ServerState:
        """Return the state with what the next round's allocation follows from: stored with it, so found once."""
        if self.rescoring is None:
            return state
        found = self.rescoring.before(state)
        if found is not state:
            self.progress.say(self._scored(state, found))
        return found

    def _scored(self, before: ServerState, found: ServerState) -> str:
        """Return what the layers were found to be worth, or that nothing of use was found."""
        scores = " ".join(f"{score:.3g}" for score in found.findings.scores)
        if found.findings.scores == (before.findings.scores or self.experiment.allocation.scores):
            return f"scores of the layers before round {before.round + 1} were of no use; those before stay: {scores}"
        return f"layers scored before round {before.round + 1}, the lowest first: {scores}"

    def _advance(self, state: ServerState, task: RoundTask, result: RoundResult) -> ServerState:
        """Return the state after a round and certify it in its record; a spoilt sum loses the round."""
        if result.summed is None:
            return self.server.skip(state, task)
        try:
            advanced = self.server.advance(state, task, result.summed)
        except SumError as error:
            result.record.aborted = str(error)
            return self.server.skip(state, task)
        certificate = self.server.certify(state, task, result.summed, advanced)
        result.record.certificate = None if certificate is None else certificate.to_json()
        return advanced

    def _quality(self, state: ServerState) -> dict[str, Any]:
        """Return how good a state is, under the names that metrics have: one figure, and each client's own."""
        metric = self.experiment.model.metric
        if self.personal is None:
            return {metric: self.evaluate(state.state) if self.evaluate else None}
        each = self.personal(state)
        return {metric: fmean(each.values()) if each else None, f"personal_{metric}": each}

    def _row(self, record: RoundRecord, quality: Mapping[str, Any], traffic: Traffic) -> dict[str, Any]:
        """Return a round's line of metrics; ε bounds what the rounds so far cost, planned retries included.

        Public values only: no loss, and no time either, which would tell how many rows the batches held.
        """
        return {
            "round": record.round,
            self.experiment.model.metric: None,
            **quality,
            "survivors": list(record.survivors),
            **record.losses(),
            "aborted": record.aborted,
            "epsilon": running_epsilon(self.plans, record.round),
            "uploaded_bytes": dict(traffic.uploaded),
            "downloaded_bytes": dict(traffic.downloaded),
            "bytes_by_kind": traffic.by_client(),
        }


def ended_early(records: Sequence[RoundRecord]) -> FedloraError | None:
    """Return why no further round is worth its ε, or None if the run should go on.

    Budgets only shrink, and a global state that clients refuse stays as it is without them; so one round that either
    made impossible is the last. Other losses may be over by the next round; but every round is charged at the
    clients whether it gives a sum or not.
    """
    lost = [record for record in records[-LOST_IN_A_ROW:] if record.aborted is not None]
    if not lost or records[-1].aborted is None:
        return None
    reason = f"round {records[-1].round} gave no sum: {records[-1].aborted}"
    codes = {code for _, code in records[-1].refused}
    if BUDGET_CODE in codes:
        return BudgetError(f"{reason}; the privacy budgets of too many clients are used up")
    if StateBeyondBounds.__name__ in codes:
        return StateBeyondBounds(
            f"{reason}; clients refuse to train from a state with entries so large",
            "training diverged: lower training.learning_rate",
        )
    if len(lost) == LOST_IN_A_ROW:
        return FederationError(f"{reason}, as in the {LOST_IN_A_ROW - 1} rounds before", "see who is lost")
    return None


def running_epsilon(plans: Mapping[str, Plan], number: int) -> dict[str, float]:
    """Return, by client, an upper bound on ε after that many rounds and all planned retries.

    A bound is certified at some of the rounds and holds until then; how many depends on how many different plans
    there are, so that a round is never held up for long. Claims are certified at the end, from the ledgers.
    """
    different = len({plan.round_event() for plan in plans.values()})
    bounds = {}
    for client_id, plan in plans.items():
        event, most = plan.round_event(), plan.rounds + plan.retry_rounds
        every = math.ceil(most * different / CERTIFIED_POINTS)
        charged = min(number + plan.retry_rounds, most)
        certified = min(math.ceil(charged / every) * every, most)
        epsilon([event] * certified, plan.delta)  # from here on `running_bound` knows it
        bounds[client_id] = running_bound([event] * charged, plan.delta)
    return bounds
