"""Whole runs on rings of neighbours, with votes and with fractions by client: report, page, and what audits catch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounting.audit import audit, audit_files
from fedlora_priv.config import Experiment
from fedlora_priv.federation.preview import preview
from fedlora_priv.federation.run import run
from protocols.secagg.identity import Roster

TIERS = {"support": "server-topk", "density": 1.0, "densities": [0.25, 1.0, 0.25, 1.0, 1.0, 1.0]}
VOTES = {"support": "voted-topk", "density": 0.1, "vote_every": 2}
WIDE = ["client-2", "client-4", "client-5", "client-6"]
REPRODUCIBLE = {13}
"""The check that noise which can be drawn again fails; it is so that a red run can be run again."""


@pytest.fixture
def go(experiment_file: Callable[..., Path], silent: Any) -> Callable[..., Any]:
    def start(communication: dict[str, Any], dropouts: Any = (), **sections: Any) -> Any:
        path = experiment_file(
            federation={"clients": 6, "rounds": 3},
            training={"deterministic_noise": True},
            communication=communication,
            secure_aggregation={"neighbours": 4},
            simulate={"dropouts": list(dropouts)},
            **sections,
        )
        experiment = Experiment.load(path)
        return preview(experiment), run(experiment, progress=silent)

    return start


def failed(folder: Path, report: dict[str, Any] | None = None) -> dict[int, str]:
    """Return the checks that fail, of the run or of an edited report with its ledgers."""
    if report is None:
        verdicts = audit_files(folder / "report.json", folder / "ledger.jsonl")
    else:
        lines = (folder / "ledger.jsonl").read_text().splitlines()
        verdicts = audit(report, lines, Roster.load(folder / "roster.json"))
    return {verdict.check: verdict.evidence for verdict in verdicts if verdict.status == "FAIL"}


def every_line_is_due(folder: Path, honest: dict[str, Any], *words: str) -> None:
    """Whichever line of what left the clients is dropped or called public, check 11 misses it."""
    released = [line for line in honest["outputs"] if line["covered_by"] != "public"]
    assert all(any(word in line["what"] for line in released) for word in words)
    for line in released:
        dropped, public = copy.deepcopy(honest), copy.deepcopy(honest)
        dropped["outputs"].remove(line)
        public["outputs"][honest["outputs"].index(line)]["covered_by"] = "public"
        for report in (dropped, public):
            assert line["what"] in failed(folder, report).get(11, ""), line


def uploaded(outcome: Any, number: int) -> dict[str, int]:
    found: dict[str, int] = outcome.metrics[number - 1]["uploaded_bytes"]
    return found


@pytest.mark.long
def test_a_run_of_two_tiers(go: Callable[..., Any]) -> None:
    """Round 1: one of four is lost in the wide tier's band; round 2: two are, and the band with them."""
    lost = [
        {"round": 1, "client_id": "client-2", "phase": "mask", "exchange": 1},
        {"round": 2, "client_id": "client-2", "phase": "mask", "exchange": 1},
        {"round": 2, "client_id": "client-4", "phase": "share", "exchange": 1},
    ]
    planned, outcome = go(TIERS, lost)
    assert outcome.problem is None
    report = outcome.report
    (contract,) = report["method"]["contracts"]
    first, band = contract["exchanges"]
    assert "clients" not in first
    assert band["clients"] == WIDE
    assert first["coordinates"] + band["coordinates"] == contract["round_dimension"]
    assert "of what only some clients send, the sum over those alone" in contract["leaks"]
    sizes = planned["bytes"]["contracts"][0]["exchanges"]
    assert [size["clients"] for size in sizes] == [None, WIDE]
    assert [size["coordinates_that_travel"] for size in sizes] == [first["coordinates"], band["coordinates"]]
    one, two, three = report["rounds"]
    for entry in (one, two, three):
        assert len(entry["survivors"]) == 6
        assert entry.get("aborted") is None
    assert one["exchanges"][1]["survivors"] == WIDE[1:]
    assert (two["exchanges"][1]["survivors"], two["exchanges"][1]["transcript"]) == ([], None)
    assert three["exchanges"][1]["survivors"] == WIDE
    sent = uploaded(outcome, 3)
    assert min(sent[c] for c in WIDE) > max(sent[c] for c in ("client-1", "client-3")) + sizes[1]["bytes"]
    assert failed(outcome.folder).keys() == REPRODUCIBLE
    (band_counts,) = report["secure_aggregation"]["bands"]
    assert band_counts["clients"] == 4
    assert planned["secure_aggregation"] == report["secure_aggregation"]
    page = (outcome.folder / "report.html").read_text()
    assert "exchange 1, of some clients only" in page
    assert "from client-2, client-4, client-5, client-6 alone" in page
    forgeries_of_bands(outcome.folder, report)
    every_line_is_due(outcome.folder, report, "of what only some clients send")


def forgeries_of_bands(folder: Path, honest: dict[str, Any]) -> None:
    """Whatever is changed of a band's line in a report contradicts the ledgers, the contract or the masks."""

    def fails(words: str, forge: Callable[[dict[str, Any]], None]) -> None:
        report = copy.deepcopy(honest)
        forge(report)
        assert words in failed(folder, report).get(4, ""), words

    def band(report: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = report["rounds"][0]["exchanges"][1]
        return found

    def counts(report: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = report["secure_aggregation"]["bands"][0]
        return found

    hidden = copy.deepcopy(honest)
    band(hidden).update(survivors=[], transcript=None)
    lines, roster = (folder / "ledger.jsonl").read_text().splitlines(), Roster.load(folder / "roster.json")
    words = {}
    for report in (honest, hidden):
        charged = next(verdict for verdict in audit(report, lines, roster) if verdict.check == 4)
        words[charged.status] = charged.evidence
    assert words.keys() == {"PASS", "UNVERIFIABLE"}, "lost before anybody confirmed it, and after"
    assert "has confirmed it: that it gave no sum is the report's word" in words["UNVERIFIABLE"]

    fails("do not send it", lambda r: band(r)["survivors"].append("client-1"))
    fails("the report leaves it out", lambda r: band(r)["survivors"].remove("client-6"))
    fails("nobody would be hidden by another", lambda r: band(r).update(survivors=WIDE[1:3]))
    fails("no release into the reported session", lambda r: band(r).pop("survivors"))
    fails("another transcript", lambda r: band(r).update(transcript="ab" * 32))
    fails("another announcement before it", lambda r: band(r).update(announced="ab" * 32))
    fails("not listed", lambda r: r["rounds"][0]["exchanges"].pop())
    fails("records that session as another exchange", lambda r: r["rounds"][0]["exchanges"].reverse())
    fails("records that session as another exchange", lambda r: band(r).update(exchange=2))
    fails("masks_sha256", lambda r: r["secure_aggregation"].update(max_colluders=2))
    fails("masks_sha256", lambda r: counts(r).update(threshold=4))
    fails("the report states no counts of its session", lambda r: r["secure_aggregation"].pop("bands"))
    fails("the report states no counts of its session", lambda r: counts(r).update(exchange=2))
    fails("stated for 5 clients, and 4 send it", lambda r: counts(r).update(clients=5))
    fails("fewer than its min_survivors 4", lambda r: counts(r).update(min_survivors=4))
    fails(
        "of some clients only: min_survivors 2: beside 1 colluders",
        lambda r: counts(r).update(min_survivors=2),
    )
    fails("of some clients only: neighbours 1: 1 colluders", lambda r: counts(r).update(neighbours=1))
    fails(
        "contract_sha256", lambda r: r["method"]["contracts"][0]["exchanges"][1]["clients"].append("client-1")
    )
    fails(
        "more coordinates travel",
        lambda r: r["method"]["contracts"][0]["exchanges"][1].update(coordinates=10**9),
    )


@pytest.mark.long
def test_a_run_of_votes(go: Callable[..., Any]) -> None:
    """Rounds 1 and 3 vote; in round 1 a client is lost before its ballot."""
    planned, outcome = go(VOTES, [{"round": 1, "client_id": "client-2", "phase": "mask"}])
    assert outcome.problem is None
    report = outcome.report
    voting, kept = report["method"]["contracts"]
    assert (voting["rounds"], kept["rounds"]) == ([1, 3], [2])
    ballots, values = voting["exchanges"]
    assert ballots["carries"] == "votes"
    assert "coordinates" not in ballots
    assert (
        values["coordinates"]
        == kept["exchanges"][0]["coordinates"]
        == -(-sum(values["travels"].values()) // 10)
    )
    assert "how many clients voted for it" in voting["leaks"]
    assert "voted" not in kept["leaks"]
    every_line_is_due(outcome.folder, report, "how many clients voted for it")
    sizes = planned["bytes"]["contracts"][0]["exchanges"]
    assert (sizes[0]["carries"], sizes[0]["bits"]) == ("votes", 4)
    assert [len(entry["exchanges"]) for entry in report["rounds"]] == [2, 1, 2]
    for entry in report["rounds"]:
        announced = [exchange["announced"] is not None for exchange in entry["exchanges"]]
        assert announced == [False, True][: len(announced)]
    assert "client-2" not in report["rounds"][0]["survivors"]
    assert failed(outcome.folder).keys() == REPRODUCIBLE
    page = (outcome.folder / "report.html").read_text()
    assert "votes on" in page
    for round, exchange in ((0, 0), (0, 1)):
        forged = copy.deepcopy(report)
        del forged["rounds"][round]["exchanges"][exchange]
        assert 4 in failed(outcome.folder, forged)
    forged = copy.deepcopy(report)
    forged["rounds"][0]["exchanges"][1]["announced"] = "ab" * 32
    assert "another announcement" in failed(outcome.folder, forged)[4]
    forged = copy.deepcopy(report)
    del forged["method"]["contracts"][0]["exchanges"][0]["carries"]  # what they were is in every reservation
    assert 4 in failed(outcome.folder, forged)
