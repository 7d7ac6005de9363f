"""``fedlora audit --empirical``: one production run with canaries, and the lower bound on ε that it gives.

Nothing of the federation is copied: `federation.run.run` trains, with the rows of one client changed before the
clients are made and an observer told of that client's noised updates. Ledgers, budgets, secure aggregation and
report are those of any run, and clients with private rows are charged as for any run. The client that holds the
canaries trains on them alone: its guarantee is for any rows, and its own would only hide the canaries.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.empirical import ASSUMPTIONS, EMPIRICAL_FILE, EmpiricalResult
from accounting.one_run import best_one_run
from fedlora_priv.config import Experiment
from fedlora_priv.empirical.attacks import ATTACKERS, UpdateAttack, loss_drop
from fedlora_priv.empirical.canaries import Canaries, random_rows
from fedlora_priv.errors import ConfigError, FederationError, RunFolderError
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.files import read_arrays, write_arrays, write_atomically
from fedlora_priv.federation.randomness import stream_factory
from fedlora_priv.federation.run import Outcome, RunProgress, run
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.setup import Parts
from fedlora_priv.methods import Role, State, phases
from fedlora_priv.training.examples import TokenisedExamples

CANARIES = 500
CONFIDENCE = 0.95
MAX_GRADIENT_BYTES = 8 << 30
"""What the canaries' gradients may take in memory: canaries times trained coordinates, in float64, twice."""

SUFFIX = "-empirical"
"""Added to the experiment's run folder: the audit is a run of its own."""


def audit(
    experiment: Experiment,
    *,
    progress: RunProgress,
    canaries: int = CANARIES,
    client_id: str | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[EmpiricalResult, Path]:
    """Return the lower bound that attacks reach on one more run of an experiment, and that run's folder.

    An audit that was cut off is resumed, like any run; one that has finished is set aside and begun anew.

    Args:
        experiment: trained once more, in a folder of its own beside the experiment's.
        progress: told what happens.
        canaries: m; about half of them are in, in place of all of the client's own rows.
        client_id: who holds them; by default the first client.
        confidence: of the bound.

    Raises:
        ConfigError: no such client, fewer than two canaries, or an experiment whose clients prune their ranks.
        BudgetError: a client's ledger has no room for another whole run.
        FedloraError: as `federation.run.run`.
    """
    client_id = client_id or experiment.client_ids[0]
    if client_id not in experiment.client_ids:
        raise ConfigError(
            f"there is no client {client_id!r}", f"there are {', '.join(experiment.client_ids)}"
        )
    if experiment.allocation.pruning is not None:
        raise ConfigError(
            "clients that prune their ranks have other models later on, which the attack on updates cannot follow",
            "leave [allocation.pruning] out to audit the training itself",
        )
    own = experiment.experiment.model_copy(
        update={"output": experiment.experiment.output.rstrip("/") + SUFFIX}
    )
    watch = _Watch(client_id, canaries)
    outcome = run(
        experiment.model_copy(update={"experiment": own}), progress=progress, again=True, amend=watch.amend
    )
    if outcome.problem is not None:
        raise FederationError(
            f"the audit's run did not end well: {outcome.problem}", "mend that and audit again"
        )
    progress.say("attacking")
    result = watch.result(outcome, confidence)
    text = json.dumps(result.to_json(), indent=2) + "\n"
    write_atomically(outcome.folder / EMPIRICAL_FILE, text.encode())
    return result, outcome.folder


class _Watch:
    """Inserts the canaries and attacks each update as it is made."""

    def __init__(self, client_id: str, count: int) -> None:
        self._client_id = client_id
        self._count = count

    def amend(self, parts: Parts, folder: RunFolder) -> Parts:
        """Return the parts with the canaries that are in for the client's rows, and this object watching."""
        self._parts = parts
        self._plan = parts.plans[self._client_id]
        trains, trainer = self._trains(parts), parts.trainers[self._client_id]
        shapes = parts.method_of(self._client_id).at(1).shapes(trainer.layout)
        self._require_memory([shape for name, shape in shapes.items() if trainer.layout.role(name) in trains])
        rows = self._rows(parts)
        self._attack = UpdateAttack(
            trainer, rows, self._plan, trains, parts.experiment.training.learning_rate
        )
        self._path = folder.client_home(self._client_id).path / f"canaries-{folder.run.hex()}.npz"
        self._canaries, self._scores = self._restored(rows) or self._fresh(rows)
        examples = {**parts.examples, self._client_id: self._canaries.inside()}
        held = {**parts.row_numbers, self._client_id: ()}  # none of the data set's rows: the canaries only
        return replace(parts, examples=examples, row_numbers=held, observe=self._observe)

    def result(self, outcome: Outcome, confidence: float) -> EmpiricalResult:
        """Return the strongest bound of all attacks on the finished run."""
        finished = checkpoint.load(outcome.folder / "checkpoints")
        if finished is None:
            raise RunFolderError(f"{outcome.folder} holds no final state", "audit again")
        drop = loss_drop(self._parts.trainer, self._canaries.rows, self._parts.initial, finished[0].state)
        best = best_one_run(
            {"update": self._scores, "loss-drop": drop},
            self._canaries.included,
            delta=self._plan.delta,
            confidence=confidence,
        )
        claims = [claim for claim in outcome.report["claims"] if claim["who"] == self._client_id]
        return EmpiricalResult(
            run=outcome.report["run"],
            client_id=self._client_id,
            trained_epsilon=max(float(claim["epsilon"]) for claim in claims),
            lower_bound=best.lower_bound,
            delta=self._plan.delta,
            confidence=confidence,
            method="one-run",
            attack=best.attack,
            attacker=ATTACKERS[best.attack],
            canaries=self._count,
            guesses=best.guesses,
            correct=best.correct,
            tests=best.tests,
            assumption=ASSUMPTIONS["one-run"],
        )

    def _observe(self, client_id: str, start: State, update: State) -> None:
        """Add the scores of one noised update, durably: a resumed run does not see it again."""
        if client_id == self._client_id:
            self._scores = self._scores + self._attack.scores(start, update)
            arrays = {"included": self._canaries.included, "scores": self._scores}
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_arrays(self._path, {}, arrays, mode=0o600)

    @staticmethod
    def _trains(parts: Parts) -> frozenset[Role]:
        """Return the roles that clients train, the same in every round."""
        rounds = parts.experiment.federation.rounds
        every = {phase.contract(parts.layout).trains for phase, _ in phases(parts.method, rounds)}
        if len(every) > 1:
            raise ConfigError(
                f"{parts.method.name!r} trains other arrays in other rounds, which the attack on updates cannot follow",
                "audit a method that trains the same in all rounds",
            )
        return every.pop()

    def _require_memory(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise before anything is trained if the attack could not hold the canaries' gradients."""
        needed = 16 * self._count * sum(math.prod(shape) for shape in shapes)
        if needed > MAX_GRADIENT_BYTES:
            raise ConfigError(
                f"the gradients of {self._count} canaries would take {needed / 2**30:.0f} GiB of memory",
                f"insert at most {self._count * MAX_GRADIENT_BYTES // needed}",
            )

    def _rows(self, parts: Parts) -> TokenisedExamples:
        """Return the canaries' rows: public, by the experiment's seed."""
        model: Any = parts.trainer.model
        return random_rows(
            self._count,
            seed=parts.experiment.experiment.seed,
            vocabulary=int(model.get_base_model().config.vocab_size),
            labels=len(parts.label_names),
            longest=parts.experiment.model.max_length,
            pad_id=parts.examples[self._client_id].pad_id,
        )

    def _fresh(self, rows: TokenisedExamples) -> tuple[Canaries, NDArray[np.float64]]:
        """Return canaries with fresh coins, and no scores yet."""
        stream = stream_factory(self._parts.experiment, self._client_id)("canaries", 0)
        return Canaries.toss(rows, stream), np.zeros(len(rows))

    def _restored(self, rows: TokenisedExamples) -> tuple[Canaries, NDArray[np.float64]] | None:
        """Return the canaries and scores of the run that is resumed, if an update has been seen in it."""
        if not self._path.exists():
            return None  # no update has been made yet, so no coin has had any effect
        try:
            _, stored = read_arrays(self._path)
            canaries = Canaries(rows, stored["included"])
            if len(canaries.included) == len(stored["scores"]) == len(rows):
                return canaries, stored["scores"]
        except (ValueError, KeyError) as error:
            raise RunFolderError(
                f"{self._path} is damaged ({error})", "delete the audit's run folder"
            ) from None
        raise ConfigError(
            f"the audit that is to be resumed has {len(canaries.included)} canaries, not {len(rows)}",
            "ask for as many, or delete its run folder",
        )
