"""`fedlora audit` of a real run whose first round has two exchanges, one of them begun again after a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounting.chain import replay

pytestmark = pytest.mark.long

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, tiny_data: Path, silent: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A hybrid: FRA-LoRA in two passes, then FFA-LoRA. The server dies when round 1 has its sums, and resumes.

    It dies once more when the rounds are over; each time it says where it goes on.
    """
    import tomli_w

    from fedlora_priv.config import Experiment
    from fedlora_priv.federation import checkpoint, record
    from fedlora_priv.federation.run import run

    folder = tmp_path_factory.mktemp("exchanges")
    values: dict[str, Any] = {
        "experiment": {"name": "tiny", "seed": 3, "output": str(folder / "run")},
        "model": {"source": str(tiny_model), "max_length": 16},
        "lora": {"rank": 2, "alpha": 4.0},
        "data": {"source": str(tiny_data), "public": True},
        "federation": {"method": "hybrid", "clients": 5, "rounds": 2, "local_steps": 24},
        "aggregation": {"products": "two-pass", "switch_round": 2},
        "communication": {"support": "dense", "density": 1.0, "value_bits": 16},
        "training": {"batch_size": 8, "learning_rate": 0.5},
        "privacy": {"epsilon": 8.0, "delta": 1e-4},
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(values))
    experiment = Experiment.load(folder / "experiment.toml")
    save, calls, said = checkpoint.save, [], []

    def dying(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*arguments)

    def dead(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(silent), "say", lambda self, line: said.append(line))
        for module, name, broken in ((checkpoint, "save", dying), (record, "collect", dead)):
            with pytest.MonkeyPatch.context() as breaking:
                breaking.setattr(module, name, broken)
                with pytest.raises(KeyboardInterrupt):
                    run(experiment, progress=silent)
        run(experiment, progress=silent)
    assert [line for line in said if line.startswith("resuming")] == [
        "resuming before the first round had ended: going on with round 1 of 2",
        "resuming after the last round, 2 of 2: what is missing is the report",
    ]
    return folder / "run"


def audited(fedlora: Callable[..., Any], folder: Path) -> tuple[int, dict[int, dict[str, Any]]]:
    """The exit code, and the verdicts by check."""
    private = folder / "clients"
    extra = ["--private", private] if private.exists() else []
    ran = fedlora("audit", folder, "--roster", folder / "roster.json", *extra, "--json")
    return ran.code, {verdict["check"]: verdict for verdict in json.loads(ran.out)}


def test_a_run_of_several_exchanges_passes(fedlora: Callable[..., Any], finished: Path) -> None:
    code, found = audited(fedlora, finished)
    assert code == 0, found
    assert {number for number, one in found.items() if one["status"] != "PASS"} == {12, 15}


def test_the_report_says_what_each_round_let_leave_and_what_left_again(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    first, second = report["rounds"]
    assert [exchange["announced"] is None for exchange in first["exchanges"]] == [True, False]
    assert (len(second["exchanges"]), second["remasked"], second["announced_again"]) == (1, [], [])
    assert [(again["client_id"], again["times"]) for again in first["remasked"]] == [
        (f"client-{k}", 2) for k in range(1, 6)
    ]
    assert [again["times"] for again in first["announced_again"]] in ([1] * 5, []), (
        "rounding drew another basis"
    )
    assert first["certificate"]["error"] >= 0
    two, one = report["method"]["contracts"]
    assert (two["rounds"], two["name"], len(two["exchanges"])) == ([1], "fra", 2)
    assert (one["rounds"], one["name"], len(one["exchanges"])) == ([2], "ffa", 1)
    assert [output["what"] for output in report["outputs"] if "announces" in output["what"]]
    assert {len(claim) for claim in report["claims"]} == {10}
    for chain in replay((finished / "ledger.jsonl").read_text().splitlines()).values():
        assert [charge.round for charge in chain.charges.values()] == [1, 2], (
            "all exchanges are one charge a round"
        )


def _announcement(report: dict[str, Any]) -> None:
    report["rounds"][0]["exchanges"][1]["announced"] = "0f" * 32


def _one_exchange(report: dict[str, Any]) -> None:
    del report["rounds"][0]["exchanges"][1]


def _never_again(report: dict[str, Any]) -> None:
    report["rounds"][0]["remasked"] = []


def _smaller_method(report: dict[str, Any]) -> None:
    report["method"]["contracts"][0]["leaks"] = "nothing"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_announcement, "another announcement"),
        (_one_exchange, "an exchange 1 that is not listed"),
        (_never_again, "remasked is []"),
        (_smaller_method, "contract_sha256"),
    ],
)
def test_a_tampered_one_fails(
    fedlora: Callable[..., Any], finished: Path, tmp_path: Path, edit: Edit, reason: str
) -> None:
    for name in ("report.json", "ledger.jsonl", "roster.json", "partition.json"):
        shutil.copy(finished / name, tmp_path / name)
    report = json.loads((tmp_path / "report.json").read_text())
    edit(report)
    (tmp_path / "report.json").write_text(json.dumps(report))
    code, found = audited(fedlora, tmp_path)
    assert (code, found[4]["status"]) == (1, "FAIL")
    assert reason in found[4]["evidence"]
