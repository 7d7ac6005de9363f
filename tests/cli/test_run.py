"""`fedlora run` from an experiment file to a run folder, an adapter and an audit, on a tiny real model."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlora_priv import cli
from fedlora_priv.doctor import Finding
from fedlora_priv.reports.tables import print_findings


@pytest.fixture(scope="module")
def finished_run(
    tiny_model: Path, tiny_data: Path, silent: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One finished run with a loss, shared by the tests of this module; they copy it before they change it."""
    import tomli_w

    from fedlora_priv.config import Experiment
    from fedlora_priv.federation.run import run

    folder = tmp_path_factory.mktemp("finished")
    values: dict[str, Any] = {
        "experiment": {"name": "tiny", "seed": 3, "output": str(folder / "run")},
        "model": {"source": str(tiny_model), "max_length": 16},
        "lora": {"rank": 2, "alpha": 4.0},
        "data": {"source": str(tiny_data), "public": True},
        "federation": {"clients": 5, "rounds": 8},
        "training": {"batch_size": 40, "learning_rate": 2.0},
        "privacy": {"epsilon": 20.0, "delta": 1e-4},
        "communication": {"support": "server-topk", "density": 0.5, "value_bits": 8},
        "simulate": {"dropouts": [{"round": 2, "client_id": "client-4", "phase": "mask"}]},
    }
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(values))
    run(Experiment.load(path), progress=silent)
    return folder / "run"


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_the_run_folder_holds_what_it_should(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    expected = {"run.toml", "metrics.jsonl", "ledger.sqlite", "ledger.jsonl", "report.json", "report.html"}
    assert expected | {"adapter", "checkpoints"} <= names
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (finished_run / "adapter").iterdir()
    }


def test_the_report_says_what_happened(finished_run: Path) -> None:
    report = report_of(finished_run)
    assert report["simulation"] is True
    assert report["metrics"]["accuracy_after"] > report["metrics"]["accuracy_before"] + 0.2
    assert all(claim["epsilon"] <= 20.0 for claim in report["claims"])
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [5, 4, 5, 5, 5, 5, 5, 5]
    assert report["rounds"][1]["lost"] == [{"client_id": "client-4", "phase": "mask"}]
    sizes = report["bytes"]
    assert sizes["dense_lora_fp32_per_client"] == 8 * sizes["dense_lora_fp32_per_client_and_round"]
    for client_id, kinds in sizes["by_kind"].items():
        assert sum(kinds["up"].values()) == sizes["uploaded_by_client"][client_id]
        assert sum(kinds["down"].values()) == sizes["downloaded_by_client"][client_id]
        assert all(kinds["up"][kind] > 0 for kind in ("keys", "shares", "values", "framing"))
    ledger = sum(len(line) + 1 for line in (finished_run / "ledger.jsonl").read_text().splitlines())
    assert 0 < sum(sizes["after_the_rounds"]["uploaded"].values()) - ledger < 5 * 1000  # and five anchors
    assert {"schema_version", "claims", "ledger_head", "versions"} <= set(report)


def test_nothing_private_is_in_the_public_files(finished_run: Path) -> None:
    """No loss, no drawn batch size, no time: only what the schema of a metrics row allows."""
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    allowed = {
        "round", "accuracy", "survivors", "lost", "refused", "aborted", "epsilon", "uploaded_bytes",
        "downloaded_bytes", "bytes_by_kind",
    }  # fmt: skip
    assert all(set(row) == allowed for row in rows)
    # Sizes of messages that carry private results must not depend on them.
    whole = [row for row in rows[1:] if len(row["survivors"]) == 5]  # the first round sends every coordinate
    sent = {row["uploaded_bytes"]["client-1"] for row in whole}
    assert max(sent) - min(sent) <= 8  # the anchor in a confirmation counts rows in decimal digits
    private = next((finished_run / "clients").glob("client-1/private-audit-*.jsonl"))
    assert private.stat().st_mode & 0o077 == 0
    assert "batch_size" in private.read_text()


def test_the_adapter_loads_in_plain_peft_and_gives_the_reported_accuracy(
    finished_run: Path, tiny_model: Path, tiny_data: Path
) -> None:
    """Nothing of this package but the pooling head, as the adapter's card says."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from fedlora_priv.pooling import MeanPoolingClassifier

    base = MeanPoolingClassifier.from_pretrained(str(tiny_model), num_labels=2)
    model = PeftModel.from_pretrained(base, str(finished_run / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lines = (tiny_data / "dev.tsv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    accuracy = (logits.argmax(-1) == torch.tensor([int(label) for label in labels])).float().mean().item()
    assert accuracy == pytest.approx(report_of(finished_run)["metrics"]["accuracy_after"], abs=1e-6)


def test_the_audit_of_an_honest_run_has_no_fail(fedlora: Callable[..., Any], finished_run: Path) -> None:
    plain = fedlora("audit", finished_run, "--json")
    assert plain.code == 0, plain.err
    verdicts = {v["check"]: v["status"] for v in json.loads(plain.out)}
    assert [n for n, status in verdicts.items() if status == "FAIL"] == []
    assert {n for n, status in verdicts.items() if status == "PASS"} >= {2, 3, 4, 5, 11, 13, 16}
    pinned = fedlora("audit", finished_run, "--roster", finished_run / "roster.json", "--json")
    assert {v["check"]: v["status"] for v in json.loads(pinned.out)}[1] == "PASS"


def edit_claim(folder: Path) -> None:
    report = report_of(folder)
    for claim in report["claims"]:
        claim["epsilon"] = 0.5
    (folder / "report.json").write_text(json.dumps(report))


def raise_claim(folder: Path) -> None:
    report = report_of(folder)
    report["claims"][0]["epsilon"] += 1.0
    (folder / "report.json").write_text(json.dumps(report))


def drop_exported_row(folder: Path) -> None:
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:2] + lines[3:]))


def drop_last_row_of_a_client(folder: Path) -> None:
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:-1]))


def drop_stored_row(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute("DELETE FROM rows WHERE client_id = 'client-2' AND position = 3")
    connection.close()


def lower_exported_noise(folder: Path) -> None:
    text = (folder / "ledger.jsonl").read_text()
    before = report_of(folder)["plan"]["client-1"]["noise_multiplier"]
    assert f'"noise_multiplier":{before}' in text
    changed = text.replace(f'"noise_multiplier":{before}', f'"noise_multiplier":{before / 2}', 1)
    (folder / "ledger.jsonl").write_text(changed)


def lower_planned_noise(folder: Path) -> None:
    report = report_of(folder)
    report["plan"]["client-1"]["noise_multiplier"] /= 2
    (folder / "report.json").write_text(json.dumps(report))


def lower_stored_noise(folder: Path) -> None:
    before = report_of(folder)["plan"]["client-1"]["noise_multiplier"]
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute(
            "UPDATE rows SET line = replace(line, ?, ?) WHERE client_id = 'client-1' AND position = 1",
            (f'"noise_multiplier":{before}', f'"noise_multiplier":{before / 2}'),
        )
        assert connection.total_changes == 1
    connection.close()


@pytest.mark.parametrize(
    ("forge", "check"),
    [
        (edit_claim, "2"),
        (raise_claim, "2"),
        (drop_exported_row, "1"),
        (drop_last_row_of_a_client, "1"),
        (drop_stored_row, "1"),
        (lower_exported_noise, "1"),
        (lower_stored_noise, "1"),
        (lower_planned_noise, "4"),
    ],
)
def test_a_forged_run_fails_the_audit_and_names_the_check(
    fedlora: Callable[..., Any], run_copy: Path, forge: Callable[[Path], None], check: str
) -> None:
    forge(run_copy)
    ran = fedlora("audit", run_copy)
    assert ran.code == 1
    assert f"FAIL in check {check} " in ran.err or f", {check} " in ran.err


def test_the_report_is_written_again(fedlora: Callable[..., Any], run_copy: Path) -> None:
    (run_copy / "report.html").unlink()
    ran = fedlora("report", run_copy)
    assert ran.code == 0, ran.err
    assert "simulation" in (run_copy / "report.html").read_text().lower()


def test_a_finished_run_is_not_run_over(fedlora: Callable[..., Any], run_copy: Path, tmp_path: Path) -> None:
    toml = tmp_path / "again.toml"
    toml.write_text((run_copy / "run.toml").read_text())
    ran = fedlora("run", toml, "--set", f"experiment.output={run_copy}")
    assert ran.code == 6
    assert "--again" in ran.err
    before = (run_copy / "report.json").read_text()
    changed = fedlora("run", toml, "--set", f"experiment.output={run_copy}", "--set", "privacy.epsilon=5")
    assert changed.code == 6
    assert "another experiment" in changed.err
    again = fedlora("run", toml, "--again", "--set", f"experiment.output={run_copy}")
    assert again.code == 0, again.err
    assert run_copy.with_name("copy.1").joinpath("report.json").read_text() == before
    assert report_of(run_copy)["run"] != json.loads(before)["run"]


def test_a_plan_says_what_a_run_would_be(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path]
) -> None:
    planned = json.loads(fedlora("plan", experiment_file(), "--json").out)
    assert planned["clients"][0]["epsilon_with_retries"] <= 8.0
    (whole,), (half,) = (contract["exchanges"] for contract in planned["bytes"]["contracts"])
    travel = [exchange["coordinates_that_travel"] for exchange in (whole, half, half)]
    assert travel == [half["coordinates"], *2 * [math.ceil(half["coordinates"] / 2)]]
    assert planned["bytes"]["values_per_client"] == sum(math.ceil(k * 11 / 8) for k in travel)
    rates = planned["guarantee"]["tpr_at_fpr"]
    assert 0.001 < rates["0.001"] < rates["0.01"] < 1
    assert 0 < planned["guarantee"]["mu_gdp"] < 8
    assert "client-5" in fedlora("plan", experiment_file()).out


def test_a_plan_of_all_kinds_of_bytes_fits_into_eighty_columns(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.console, "width", 80)
    file = experiment_file(
        communication={"support": "voted-topk", "density": 0.25, "vote_every": 2, "download_density": 0.5},
        federation={"clients": 10, "rounds": 3},
        training={"batch_size": 10},
    )
    ran = fedlora("plan", file)
    assert ran.code == 0, ran.err
    assert "…" not in ran.out  # rich's mark of a cell that was cut
    table = ran.out[ran.out.index("bytes on the wire") :].splitlines()
    kinds = ["keys", "shares", "votes", "values", "support", "framing", "all"]
    cells = {name: row for name in kinds for row in table if row.split()[:1] == [name]}
    assert all(len(re.findall(r"\d (?:B|kB|MB)", cells[name])) == 6 for name in kinds)
    assert (
        ran.out.count("trains B, head") == 1
    )  # in rounds of a vote and without: they differ in what is sent


def test_what_if_is_a_table_and_a_page(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    ran = fedlora("plan", experiment_file(), "--what-if", "--plot", tmp_path / "page.html")
    assert ran.code == 0, ran.err
    assert "noise multiplier" in ran.out
    assert "page.html" in ran.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    for line in re.findall(r'<path d="([^"]+)" class="line', page):  # from left to right, never back
        across = [float(number) for number in re.findall(r"[ML]([\d.]+) ", line)]
        assert (len(across), across) == (5, sorted(across))
    assert "<script" not in page
    shown = json.loads(
        fedlora("plan", experiment_file(), "--what-if", "--json", "--plot", tmp_path / "page.html").out
    )
    assert shown["rows"][0]["noise_multiplier"] == shown["client"]["noise_multiplier"]
    assert len({row["target_epsilon"] for row in shown["rows"]}) == 3


def test_what_is_to_be_copied_stands_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = 'memory_bytes = 1e9  # a comment that is longer than the column of a narrow table\nclients = ["client-1"]'
    console = Console(width=60)
    print_findings(console, [Finding("device", "OK", "cpu"), Finding("to declare", "OK", lines)])
    out = capsys.readouterr().out
    assert "cpu" in out.splitlines()[3]
    assert out.endswith(f"\nto declare:\n\n{lines}\n")


def test_the_doctor_checks_gradients(fedlora: Callable[..., Any]) -> None:
    ran = fedlora("doctor", "--json")
    findings = {finding["what"]: finding["status"] for finding in json.loads(ran.out)}
    assert findings["per-example gradients"] == "OK"
    assert ran.code == 0


def test_the_doctor_rehearses_an_experiment(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    ran = fedlora("doctor", experiment_file(), "--json")
    assert ran.code == 0, ran.err
    findings = json.loads(ran.out)
    assert {finding["status"] for finding in findings} == {"OK"}
    details = " ".join(finding["detail"] for finding in findings)
    for part in (
        "per-example gradients by direct",
        "equal brute force",
        "companions",
        "nothing else",
        "planned deviation",
        "rows/s",
        "the top 1",
        "usable: all 2 layers at rank 2",
        "[allocation.cost]\nmemory_",
    ):
        assert part in details
    assert not (tmp_path / "run").exists()  # nothing was begun, and nothing charged
    assert fedlora("doctor", "--set", "privacy.epsilon=2").code == 2
