"""The report: claims from ledger rows, valid under the published schema, written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from accounting import report as reports
from accounting.chain import replay
from accounting.errors import ReportError
from accounting.event_fields import VIEWS
from accounting.pricing import epsilon

DELTA = 1e-5


def test_claims_are_what_the_rows_cost_in_every_view(finished: Any) -> None:
    chains = {chain.client_id: chain for chain in replay(finished.lines).values()}
    claims = {(claim["who"], claim["view"]): claim for claim in finished.report["claims"]}
    assert len(claims) == 4 * len(VIEWS)
    for (who, _), claim in claims.items():
        if who != reports.FEDERATION:
            assert claim["epsilon"] == epsilon(chains[who].spent(), DELTA)
            assert (claim["n"], claim["basis"]) == (1000, "ledger")
    federation = claims[reports.FEDERATION, "server"]
    assert federation["epsilon"] == max(claim["epsilon"] for claim in claims.values())
    assert (federation["n"], federation["delta"]) == (3000, DELTA)


def test_a_client_lost_before_its_upload_is_charged(finished: Any) -> None:
    """client-2 reserved round 2 and never committed it."""
    claims = {claim["who"]: claim["epsilon"] for claim in finished.report["claims"]}
    assert claims["client-2"] == claims["client-1"]


def test_earlier_runs_count_towards_the_lifetime_only(original: Any) -> None:
    chains = {chain.client_id: chain for chain in replay(original.lines).values()}
    plans = {client_id: _plan(original, client_id) for client_id in chains}
    claims = reports.make_claims(plans, chains, run="cd")
    assert {claim["epsilon"] for claim in claims} == {0.0}
    assert all(claim["lifetime_epsilon"] > 0 for claim in claims)


def test_a_client_without_rows_is_claimed_at_its_plan(original: Any) -> None:
    chains = {chain.client_id: chain for chain in replay(original.rows["client-1"]).values()}
    plans = {client_id: _plan(original, client_id) for client_id in ("client-1", "client-2")}
    claims = {claim["who"]: claim for claim in reports.make_claims(plans, chains, run=original.report["run"])}
    assert claims["client-2"]["basis"] == "plan"
    assert claims["client-2"]["epsilon"] == epsilon(reports.planned_events(plans["client-2"]), DELTA)
    assert claims["client-2"]["epsilon"] > claims["client-1"]["epsilon"]
    assert claims[reports.FEDERATION]["lifetime_epsilon"] is None


def _plan(federation: Any, client_id: str) -> Any:
    from accounting.planning import Plan

    fields = dict(federation.report["plan"][client_id])
    del fields["planned_steps"]
    return Plan(**fields)


def test_plans_must_share_one_delta(original: Any) -> None:
    from dataclasses import replace

    one = _plan(original, "client-1")
    with pytest.raises(ReportError, match="one delta"):
        reports.make_claims({"client-1": one, "client-2": replace(one, delta=1e-6)}, {}, run="ab")


def test_remasked_rounds_and_notes_are_listed(finished: Any) -> None:
    assert [entry["remasked"] for entry in finished.report["rounds"]] == [
        [],
        [],
        [{"client_id": "client-3", "times": 1}],
    ]
    assert [entry["client_id"] for entry in finished.report["non_private"]] == ["client-3"]
    assert finished.report["simulation"] is True


def test_the_schema_is_itself_valid() -> None:
    Draft202012Validator.check_schema(reports.schema())


def test_a_report_survives_its_file(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    reports.write(finished.report, path)
    assert reports.load(path) == finished.report
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_bad_report_replaces_nothing(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    reports.write(finished.report, path)
    with pytest.raises(ReportError):
        reports.write({**finished.report, "mode": "distributed"}, path)
    with pytest.raises(ReportError, match="cannot be written"):
        reports.write({**finished.report, "bytes": {"x": float("nan")}}, path)
    assert reports.load(path) == finished.report


COUNTS = {
    "max_colluders": 0, "clients": 1, "quorum": 1, "threshold": 1, "min_survivors": 1, "neighbours": 1,
    "losses_survived": 0,
}  # fmt: skip
"""What a report states of its sessions, and the least each can be."""


def _edits() -> list[tuple[str, Any]]:
    return [
        ("schema_version", 2),
        ("claims", []),
        ("plan", {}),
        ("ledger_head", "xyz"),
        ("outputs", [{"what": "loss", "covered_by": "trust"}]),
        ("randomness", {"noise_source": "x"}),
        ("rounds", [{"round": 0}]),
        ("anchors", [{"client_id": "client-1"}]),
        ("run", "NOT HEX"),
        *(
            ("secure_aggregation", {"mode": "secure", name: wrong})
            for name, least in COUNTS.items()
            for wrong in ("3", 2.5, True, least - 1)
        ),
    ]


@pytest.mark.parametrize(("section", "value"), _edits())
def test_what_breaks_the_schema_is_refused_and_located(finished: Any, section: str, value: Any) -> None:
    with pytest.raises(ReportError, match=section):
        reports.validate({**finished.report, section: value})


def test_every_section_is_required_and_no_other_is_known(finished: Any) -> None:
    for section in finished.report.keys() - {"secure_aggregation"}:
        with pytest.raises(ReportError):
            reports.validate({name: value for name, value in finished.report.items() if name != section})
    with pytest.raises(ReportError):
        reports.validate({**finished.report, "loss": 0.1})


@pytest.mark.parametrize("text", ["", "{", '{"a":1,"a":2}', '{"schema_version":NaN}', "[]"])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError):
        reports.load(tmp_path / "report.json")


def test_the_format_page_names_every_field(finished: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "report-format.md").read_text(encoding="utf-8")
    schema = json.loads(json.dumps(reports.schema()))
    names = set(schema["properties"])
    for part in ("claim", "plan", "contract", "round", "exchange", "certificate", "anchor"):
        names |= set(schema["$defs"][part]["properties"])
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
