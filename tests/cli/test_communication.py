"""`fedlora run` over a ring of neighbours, with fractions by client and with votes, then `fedlora audit`; budgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WAYS: dict[str, dict[str, Any]] = {
    "fractions by client": {"support": "server-topk", "density": 1.0, "densities": [0.3, 1.0, 0.3, 1.0, 1.0, 1.0]},
    "votes": {"support": "voted-topk", "density": 0.2, "vote_every": 2},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_run_over_a_ring_is_audited(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], way: str
) -> None:
    """Two rounds of six clients who mask with four others each; one is lost on the way."""
    path = experiment_file(
        federation={"clients": 6, "rounds": 2},
        communication=WAYS[way],
        secure_aggregation={"neighbours": 4},
        simulate={"dropouts": [{"round": 1, "client_id": "client-2", "phase": "mask"}]},
    )
    ran = fedlora("run", path)
    assert ran.code == 0, ran.err
    folder = Path(path.parent / "run")
    report = json.loads((folder / "report.json").read_text())
    assert report["secure_aggregation"]["neighbours"] == 4
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [5, 6]
    assert [len(entry["exchanges"]) for entry in report["rounds"]] == ([2, 1] if way == "votes" else [2, 2])
    audit = fedlora(
        "audit", folder, "--roster", folder / "roster.json", "--private", folder / "clients", "--json"
    )
    found = {verdict["check"]: verdict for verdict in json.loads(audit.out)}
    assert audit.code == 0, found
    assert {found[number]["status"] for number in (1, 2, 4, 5, 10, 11, 13, 16)} == {"PASS"}
    told = "of what only some clients send" if way != "votes" else "how many clients voted for it"
    (line,) = [output for output in report["outputs"] if told in output["what"]]
    report["outputs"].remove(line)
    (folder / "report.json").write_text(json.dumps(report))
    again = fedlora("audit", folder, "--roster", folder / "roster.json")
    assert again.code == 1
    assert "is no declared output" in again.out


def test_a_budget_becomes_lines_that_fit_it(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path]
) -> None:
    """The lines that are printed, put into the file, make a plan whose clients send no more."""
    path, budget = experiment_file(federation={"rounds": 1}), 14_180
    ran = fedlora("plan", path, "--upload-budget", f"{budget / 1000}kB")
    assert ran.code == 0, ran.err
    lines = ran.out.partition("Put this into the experiment file:")[2].split("\n\n")[1].splitlines()
    assert lines[0] == "[communication]"
    overrides = [
        part for line in lines[1:] for part in ("--set", "communication." + line.replace(" = ", "="))
    ]
    planned = json.loads(fedlora("plan", path, *overrides, "--json").out)
    assert budget * 0.95 < planned["bytes"]["wire"]["up"]["most"]["all"] <= budget
    found = json.loads(fedlora("plan", path, "--upload-budget", budget, "--json").out)
    assert found["lines"] == lines
    assert (found["budget"], found["uploaded"] <= budget) == (budget, True)


def test_a_budget_names_fewer_neighbours_and_goes_alone(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path]
) -> None:
    path = experiment_file(federation={"clients": 10, "rounds": 2})
    tight = fedlora("plan", path, "--upload-budget", "27.1kB")
    assert "With secure_aggregation.neighbours = 4 (any 1 lost survived): " in tight.out
    little = fedlora("plan", path, "--upload-budget", "5kB")
    assert "choose fewer secure_aggregation.neighbours" in little.err
    both = fedlora("plan", path, "--upload-budget", "50kB", "--what-if")
    assert (both.code, both.err.count("\n")) == (2, 1)
    assert "--upload-budget goes without --what-if and --plot" in both.err
