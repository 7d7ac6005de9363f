"""A federation whose server scores layers on the way: masks, a loss, a crash, plan, report, page and audit."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from accounting.outputs import following
from fedlora_priv.adapters import write_state
from fedlora_priv.allocation import FisherLayers, LayerScores, Public
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.allocation.fisher_scores import fisher_scores
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Traffic
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation import checkpoint, setup
from fedlora_priv.federation.allocating import cost_model, profiles
from fedlora_priv.federation.foretold import foretold
from fedlora_priv.federation.preview import preview
from fedlora_priv.federation.rescoring import scored_rows
from fedlora_priv.federation.run import Outcome, run
from fedlora_priv.federation.server import ServerState
from fedlora_priv.federation.setup import assemble
from fedlora_priv.reports.auditing import audit_files
from fedlora_priv.reports.html import render
from fedlora_priv.reports.tables import print_plan
from fedlora_priv.reports.terminal import print_summary
from tests.test_html import Page

OF = "the held-out rows of a made-up task"
SMALL = [{"clients": ["client-1", "client-2"], "max_layers": 1}]
SECTIONS: dict[str, dict[str, Any]] = {
    "federation": {"clients": 6, "rounds": 4, "method": "ffa"},
    "communication": {"support": "dense", "density": 1.0, "value_bits": 16},
    "allocation": {"strategy": "fisher", "rescore_every": 2, "scores_of": OF, "tiers": SMALL},
    "simulate": {"dropouts": [{"round": 4, "client_id": "client-6", "phase": "confirm"}]},
}


class Crashing:
    """A progress that notes what the server has before each round, and is interrupted before round 4 for once."""

    def __init__(self, experiment: Experiment) -> None:
        self.checkpoints = Path(experiment.experiment.output) / "checkpoints"
        self.before: dict[int, ServerState] = {}
        self.said: list[str] = []
        self.crashed = False

    def say(self, line: str) -> None:
        self.said.append(line)

    def round_finished(self, row: dict[str, object]) -> None: ...
    def answered(self, client_id: str, step: object) -> None: ...
    def round_started(self, number: int, rounds: int) -> None:
        stored = checkpoint.load(self.checkpoints)
        assert stored is not None
        self.before[number] = stored[0]
        if number == 4 and not self.crashed:
            self.crashed = True
            raise KeyboardInterrupt


def printed(show: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=100)
    show(console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]  # it is the StringIO from above


def test_a_run_that_scores_layers_twice(
    experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.load(experiment_file(**SECTIONS))
    planned, parts = preview(experiment), assemble(experiment, lambda line: None)
    told = [Traffic(one.drawn).by_client() for one in foretold(parts)]

    measured: list[tuple[float, ...]] = []

    def counted(*given: Any) -> LayerScores:
        measured.append((scores := fisher_scores(*given)).values)
        return scores

    monkeypatch.setattr(setup, "fisher_scores", counted)
    progress = Crashing(experiment)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, progress=progress)
    outcome = run(experiment, progress=progress)
    assert outcome.problem is None

    # Two scorings, each at the state of its time, on the rows that the public seed draws.
    assert len(measured) == len(set(measured)) == 2, "what was found before the crash is not found again"
    assert parts.evaluation is not None
    rows = parts.evaluation.subset(scored_rows(len(parts.evaluation), experiment.experiment.seed))
    for number, scores in zip((1, 3), measured, strict=True):
        write_state(parts.trainer.model, progress.before[number].state)
        assert fisher_scores(parts.trainer.model, rows, OF).values == scores
    assert [line for line in progress.said if "scored" in line] == [
        f"layers scored before round {number}, the lowest first: {scores[0]:.3g} {scores[1]:.3g}"
        for number, scores in zip((1, 3), measured, strict=True)
    ]
    found = {number: measured[0 if number < 3 else 1] for number in range(1, 5)}
    assert {number: state.findings for number, state in progress.before.items()} == {
        number: Findings(scores) for number, scores in found.items()
    }

    # Who trained what is what FIM-HLA deals by them; a layer's sums had three clients, and the loss cost none.
    cost, who = cost_model(experiment, parts.layout), profiles(experiment)
    for entry in outcome.report["rounds"]:
        number = entry["round"]
        assert entry["aborted"] is None
        assert len(entry["survivors"]) == 6
        (contract,) = [c for c in outcome.report["method"]["contracts"] if number in c["rounds"]]
        assert contract["allocation"]["findings"] == {
            "scores": list(found[number]),
            "scores_of": OF,
            "rescored_every": 2,
        }
        public = Public(experiment.experiment.seed, cost, LayerScores.of_public_data(found[number], OF))
        dealt = FisherLayers(first=1, holders=3).allocate(number, who, public)
        assert contract["allocation"]["clients"] == dealt.record()["parts"]
        for layer in (0, 1):
            assert len(dealt.holders(layer)) >= 3
    assert_what_is_said_is_so(outcome, planned, told, measured)


def assert_what_is_said_is_so(
    outcome: Outcome, planned: dict[str, Any], told: list[Any], measured: list[tuple[float, ...]]
) -> None:
    """Audit, page, table, plan and foretold bytes of that run."""
    verdicts = {verdict.check: verdict for verdict in audit_files(outcome.folder)}
    assert {check for check, verdict in verdicts.items() if verdict.status == "FAIL"} == set()
    assert verdicts[4].status == verdicts[11].status == "PASS"
    line = {"what": f"scores of the layers, measured during the run on data declared public: {OF}"}
    assert line | {"covered_by": "public"} in following(outcome.report)

    page = re.sub(r"\s+", " ", Page(render(outcome.report, outcome.metrics)).text)
    assert OF in page
    assert all(f"{score:.3g}" in page for scores in measured for score in scores)
    text = printed(lambda console: print_summary(console, outcome.report, outcome.metrics))
    assert f"scored 2 times on the way, on {OF}" in text

    assert (planned["allocation"]["known_rounds"], planned["allocation"]["holders"]) == (2, 3)
    stated = [
        {number: one for one in contracts for number in one["rounds"]}
        for contracts in (planned["method"]["contracts"], outcome.report["method"]["contracts"])
    ]
    for number in (1, 2):
        before, after = ({**one[number], "rounds": []} for one in stated)
        assert before == after, "what is known before the run is so"
    assert planned["secure_aggregation"]["losses_survived"] == 0, "a layer may be given to just enough"
    text = printed(lambda console: print_plan(console, planned))
    assert "from round 3 on layers are scored again" in text
    assert "in any case a layer is given to at least 3 clients" in text

    kept = [row["bytes_by_kind"] for row in outcome.metrics]
    assert told[:2] == kept[:2], "to the byte"
    for number in (2, 3):
        before, after = (
            sum(size for one in row.values() for way in one.values() for size in way.values())
            for row in (told[number], kept[number])
        )
        assert np.isclose(before, after, rtol=0.05), "lists of who trains what"


def test_a_server_without_public_rows_is_refused_and_a_client_needs_none(
    experiment_file: Callable[..., Path],
) -> None:
    """Where parties bring their own rows, the server names the public ones in its own file."""
    parts = replace(
        assemble(Experiment.load(experiment_file(**SECTIONS)), lambda line: None), evaluation=None
    )
    with pytest.raises(ConfigError, match=r"is to score layers on public held-out rows .*server\.toml"):
        parts.rescoring()
    assert parts.rehearse().lines()
    assert parts.method_of("client-1").title.endswith("in parts")
