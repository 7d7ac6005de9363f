"""A federation with adaptive clipping: clip norms cross rounds and restarts, counts are charged, the audit agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accounting import private_audit, report
from accounting.audit import audit_files
from accounting.case import Case, Evidence, Verdict
from accounting.chain import replay
from accounting.checks import CHECKS
from accounting.events import AdaptiveClipPoissonGaussian
from accounting.ledger import Ledger
from accounting.planning import Plan
from accounting.private_audit import AttemptRecord
from accounting.transfer import read_all
from fedlora_priv.cli import app
from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError, RunFolderError
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import UpdateStore
from fedlora_priv.federation.plans import adaptive_clip
from fedlora_priv.federation.run import run
from fedlora_priv.federation.seats import make_clients

from .lab import Lab

# A clip norm that is ten times too large for the tiny model's gradients, and noise that leaves the counts audible.
TRAINING = {
    "clipping": "adaptive",
    "clip_norm": 10.0,
    "clip_learning_rate": 0.5,
    "count_noise_stddev": 4.0,
    "batch_size": 20,
}
STEPS = 6


@pytest.fixture
def file(experiment_file: Callable[..., Path]) -> Path:
    return experiment_file(training=TRAINING, federation={"rounds": 3, "local_steps": STEPS})


@pytest.fixture
def lab(file: Path) -> Iterator[Lab]:
    made = Lab(file)
    yield made
    for client in made.clients:
        client.close()
    made.folder.close()


def records(lab: Lab) -> tuple[AttemptRecord, ...]:
    """What client-1 noted for its own auditor."""
    return private_audit.read(lab.folder.client_home("client-1").private_audit_path(lab.folder.run.hex()))


def led_to(plan: Plan, record: AttemptRecord) -> float:
    """Where a record's noised counts lead, by the rule written out again."""
    rule, count = plan.adaptive_clip, record.steps[-1].count
    assert rule is not None
    assert count is not None
    share = 0.5 + count.noised / plan.planned_batch_size
    return count.clip_norm * math.exp(-rule.learning_rate * (share - rule.target_quantile))


def next_round(lab: Lab) -> None:
    lab.state = lab.server.skip(lab.state, lab.server.task(lab.state))


def live_again(lab: Lab) -> None:
    """What a new process would do: nothing but the disk is left of the clients."""
    for client in lab.clients:
        client.close()
    lab.clients, _ = make_clients(lab.parts, lab.folder)
    lab.client = lab.clients[0]


def audited(lab: Lab, check: int) -> Verdict:
    """What a check says of client-1's ledger and private file as they are now."""
    (chain,) = replay(lab.ledger.export_jsonl().splitlines()).values()
    report = {
        "run": lab.folder.run.hex(),
        "plan": {"client-1": lab.parts.plans["client-1"].to_json()},
        "method": lab.parts.stated_method,
    }
    evidence = Evidence({"client-1": records(lab)})
    return CHECKS[check - 1](Case(report, {"client-1": chain}, None, None, evidence))


class Killed(Exception):
    """The process ends here."""


def killed(*arguments: Any, **options: Any) -> None:
    raise Killed


def test_a_whole_run_is_charged_reported_and_audited(
    file: Path, silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(silent, "say", said.append)
    outcome = run(Experiment.load(file), progress=silent)
    assert [line for line in said if "clipping" in line] == [
        "on cpu, frozen weights in float32; clipping adaptive, per-example gradients by direct: the fastest: all 5 "
        "trained layers are linear"
    ]
    stated = report.load(outcome.folder / "report.json")
    assert all(6.0 < claim["epsilon"] <= 8.0 for claim in stated["claims"])
    assert {output["covered_by"] for output in stated["outputs"]} == {"AdaptiveClipPoissonGaussian", "public"}

    files = sorted(outcome.folder.glob("clients/*/private-audit-*.jsonl"))
    assert len(files) == 5
    verdicts = audit_files(outcome.folder / "report.json", outcome.folder / "ledger.jsonl", private=files)
    assert [v for v in verdicts if v.status == "FAIL"] == []
    by_check = {verdict.check: verdict for verdict in verdicts}
    assert by_check[4].status == by_check[14].status == "PASS"
    assert by_check[7].status == "UNVERIFIABLE"  # for one reason: three rounds of six steps
    assert f"{3 * STEPS} noised counts are too few to see that theirs is too little" in by_check[7].evidence

    for chain in read_all([outcome.folder / "ledger.jsonl"]).chains.values():
        plan = Plan.from_json(stated["plan"][chain.client_id])
        (path,) = [path for path in files if path.parent.name == chain.client_id]
        charges, noted = list(chain.charges.values()), private_audit.read(path)
        assert all(isinstance(charge.reserved, AdaptiveClipPoissonGaussian) for charge in charges)
        clip_norms = [charge.reserved.clip_norm for charge in charges]
        assert clip_norms[0] == 10.0
        assert clip_norms[1:] == pytest.approx([led_to(plan, record) for record in noted[:-1]])
        assert clip_norms[2] < 5.0  # nearly every gradient is within 10, so it falls

    result = CliRunner().invoke(app, ["audit", str(outcome.folder)])
    assert result.exit_code == 0, result.output


def test_a_clip_norm_goes_on_where_the_last_round_left_it_also_in_a_new_process(lab: Lab) -> None:
    plan = lab.parts.plans["client-1"]
    assert lab.ask(lab.train()).kind == wire.TRAINED
    live_again(lab)
    next_round(lab)
    assert lab.ask(lab.train()).kind == wire.TRAINED
    first, second = (charge.reserved.clip_norm for charge in lab.ledger.charges())
    assert first == 10.0
    assert second == pytest.approx(led_to(plan, records(lab)[0]))
    assert second == records(lab)[1].steps[0].count.clip_norm


def test_a_round_asked_for_again_counts_nothing_again(lab: Lab) -> None:
    lab.ask(lab.train())
    live_again(lab)
    assert lab.ask(lab.train()).kind == wire.TRAINED
    assert len(lab.ledger.charges()) == len(records(lab)) == 1


def test_a_training_that_was_cut_off_counts_afresh(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last step, before the update was stored: charged, forgotten, and trained with new noise."""
    with monkeypatch.context() as crash:
        crash.setattr(UpdateStore, "save", killed)
        with pytest.raises(Killed):
            lab.ask(lab.train())
    live_again(lab)
    assert lab.ask(lab.train()).kind == wire.TRAINED
    assert [charge.reserved.clip_norm for charge in lab.ledger.charges()] == [10.0, 10.0]
    noise = [
        step.count.noised - (step.count.unclipped - step.batch_size / 2)
        for record in records(lab)
        for step in record.steps
        if step.count is not None
    ]
    assert len({round(value, 9) for value in noise}) == 2 * STEPS


def test_a_training_whose_commit_a_crash_prevented_counts_all_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored and charged, and the server never asks for that round again: the next one goes on from its counts."""
    with monkeypatch.context() as crash:
        crash.setattr(Ledger, "commit", killed)
        with pytest.raises(Killed):
            lab.ask(lab.train())
    live_again(lab)
    next_round(lab)
    assert lab.ask(lab.train()).kind == wire.TRAINED
    first, second = lab.ledger.charges()
    assert second.reserved.clip_norm == pytest.approx(led_to(lab.parts.plans["client-1"], records(lab)[0]))
    assert first.committed == first.reserved
    assert audited(lab, 14).status == "PASS"
    seen = audited(lab, 7)
    assert seen.status != "FAIL"
    assert "every clip norm follows from the noised counts before it" in seen.evidence


@pytest.mark.parametrize("clip_norm", [math.nan, math.inf, 0.0, -1.0])
def test_a_stored_clip_norm_that_is_none_is_damage(lab: Lab, clip_norm: float) -> None:
    lab.ask(lab.train())
    store, digest = lab.client._updates, lab.server.task(lab.state).state_digest
    update = store.last()
    assert update is not None
    store.save(digest, replace(update, clip_norm=clip_norm))
    next_round(lab)
    with pytest.raises(RunFolderError, match=r"update-.*is damaged"):
        lab.ask(lab.train())
    assert len(lab.ledger.charges()) == 1


def test_a_clip_norm_that_no_charge_stands_for_is_refused(lab: Lab) -> None:
    lab.ask(lab.train())
    store, digest = lab.client._updates, lab.server.task(lab.state).state_digest
    update = store.load(digest)
    assert update is not None
    store.save(digest, replace(update, reservation=999))
    next_round(lab)
    answer = lab.ask(lab.train())
    assert answer.kind == wire.REFUSED
    assert len(lab.ledger.charges()) == 1


def test_a_plan_says_what_is_noised_by_how_much(file: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(file)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "begins at 10 and follows counts" in " ".join(result.output.split())


def test_constants_come_from_the_experiment_file(experiment_file: Callable[..., Path]) -> None:
    found = adaptive_clip(Experiment.load(experiment_file(training={**TRAINING, "target_quantile": 0.8})))
    assert found is not None
    assert (found.target_quantile, found.learning_rate, found.count_noise_stddev) == (0.8, 0.5, 4.0)
    assert (found.smallest_clip_norm, found.largest_clip_norm) == (0.01, 10_000.0)
    default = {"clipping": "adaptive", "batch_size": 60}
    usual = adaptive_clip(Experiment.load(experiment_file(training=default)))
    assert usual is not None
    assert usual.count_noise_stddev == 3.0
    assert adaptive_clip(Experiment.load(experiment_file())) is None


@pytest.mark.parametrize("name", ["target_quantile", "clip_learning_rate", "count_noise_stddev"])
def test_constants_without_adaptive_clipping_are_refused(
    name: str, experiment_file: Callable[..., Path]
) -> None:
    with pytest.raises(
        ConfigError, match=rf"training\.{name} has no effect with training\.clipping = 'flat'"
    ):
        Experiment.load(experiment_file(training={name: 0.7}))


def test_counts_that_eat_the_price_are_refused_before_anything_is_spent(
    experiment_file: Callable[..., Path],
) -> None:
    file = experiment_file(training={**TRAINING, "count_noise_stddev": 0.1}, privacy={"epsilon": 1.0})
    with pytest.raises(ConfigError, match="leaves the gradients nothing"):
        Lab(file)
