"""The loop over rounds: task → conduct → combine → evaluate → checkpoint, until the last round or the end.

Nothing is in memory only: after any crash `run_rounds` continues from the last checkpoint. The round that was
cut off begins again from the same public state, so clients that had finished it mask their stored update once
more and are not charged again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accounting.planning import Plan
from accounting.pricing import running_bound
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Metered, Traffic
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.files import write_metrics
from fedlora_priv.federation.rounds import BUDGET_CODE, RoundConductor, RoundRecord
from fedlora_priv.federation.server import FederationServer, ServerState
from fedlora_priv.methods.base import State


class Progress(Protocol):
    """What a caller may show while a run goes on."""

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
        evaluate: accuracy of a state on public data, or None where none may be reported.
        progress: told of every round.
    """

    experiment: Experiment
    server: FederationServer
    conductor: RoundConductor
    engine: Metered
    plans: dict[str, Plan]
    folder: Path
    evaluate: Callable[[State], float] | None
    progress: Progress

    def run(self, initial: State) -> tuple[ServerState, History]:
        """Return the final state and what happened, from wherever an earlier process had got to."""
        state, history = checkpoint.load(self._checkpoints) or self._begin(initial)
        write_metrics(self.folder, history.metrics)
        while state.round < self.experiment.federation.rounds and not out_of_budget(history.records):
            state = self._round(state, history)
            checkpoint.save(self._checkpoints, state, history)
            write_metrics(self.folder, history.metrics)
        return state, history

    @property
    def _checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    def _begin(self, initial: State) -> tuple[ServerState, History]:
        """Return the state before the first round, evaluated and checkpointed."""
        noise = max(plan.noise_multiplier for plan in self.plans.values())
        state = self.server.begin(initial, noise)
        history = History(accuracy_before=self.evaluate(initial) if self.evaluate else None)
        checkpoint.save(self._checkpoints, state, history)
        return state, history

    def _round(self, state: ServerState, history: History) -> ServerState:
        """Run the next round and add it to the history."""
        rounds = self.experiment.federation.rounds
        self.progress.round_started(state.round + 1, rounds)
        task = self.server.task(state)
        result = self.conductor.conduct(task)
        if result.ring_sum is None:
            state = self.server.skip(state, task)
        else:
            state = self.server.advance(state, task, result.ring_sum, len(result.record.survivors))
        history.records.append(result.record)
        history.anchors |= {client_id: anchor.hex() for client_id, anchor in result.anchors.items()}
        due = state.round % self.experiment.federation.evaluate_every == 0
        due = due or state.round == rounds or out_of_budget(history.records)
        accuracy = self.evaluate(state.state) if self.evaluate and due else None
        row = self._row(result.record, accuracy, self.engine.take())
        history.metrics.append(row)
        self.progress.round_finished(row)
        return state

    def _row(self, record: RoundRecord, accuracy: float | None, traffic: Traffic) -> dict[str, Any]:
        """Return a round's line of metrics; ε bounds what the rounds so far cost.

        Public values only: no loss, and no time either, which would tell how many rows the batches held.
        """
        steps = {client_id: record.round * plan.steps_per_round for client_id, plan in self.plans.items()}
        return {
            "round": record.round,
            "accuracy": accuracy,
            "survivors": list(record.survivors),
            "lost": [{"client_id": client_id, "phase": phase} for client_id, phase in record.lost],
            "refused": [{"client_id": client_id, "code": code} for client_id, code in record.refused],
            "aborted": record.aborted,
            "epsilon": {client_id: _epsilon(self.plans[client_id], steps[client_id]) for client_id in steps},
            "uploaded_bytes": dict(traffic.uploaded),
            "downloaded_bytes": dict(traffic.downloaded),
        }


def out_of_budget(records: list[RoundRecord]) -> bool:
    """Return whether the last round had no sum because clients' budgets no longer cover a round."""
    if not records or records[-1].aborted is None:
        return False
    return any(code == BUDGET_CODE for _, code in records[-1].refused)


def _epsilon(plan: Plan, steps: int) -> float:
    """Return a cheap upper bound on ε after so many steps of a plan; claims are certified at the end."""
    event = plan.round_event()
    return running_bound([event] * (steps // event.steps), plan.delta)
