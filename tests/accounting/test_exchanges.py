"""Honest rounds of several exchanges that an audit must not take for forged, and what is refused a price."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from accounting import report as reports
from accounting.anchor import Anchor
from accounting.audit import audit
from accounting.entries import Release
from accounting.errors import ReportError
from accounting.planning import Plan

from .exchange_forgeries import a_certificate, announced_twice, without
from .forgeries import shares
from .forging import declare_again, record_masks, record_method, rewrite


def problems(federation: Any) -> dict[int, str]:
    found = audit(federation.report, federation.lines, federation.roster)
    return {verdict.check: verdict.evidence for verdict in found if verdict.status == "FAIL"}


def test_a_round_that_began_again_and_says_so(exchanged: Any) -> None:
    announced_twice(exchanged, said=1)
    assert problems(exchanged) == {}


def test_a_round_that_may_end_early_and_does(exchanged: Any) -> None:
    exchanged.report["method"]["contracts"][0]["may_stop_early"] = True
    session = exchanged.report["rounds"][0]["exchanges"].pop()["session_id"]
    for client_id in exchanged.rows:
        without(exchanged, client_id, session)
    record_method(exchanged)
    assert problems(exchanged) == {}


@pytest.mark.parametrize("confirmed", [("client-2", "client-3"), ()])
def test_a_round_that_was_lost_in_its_second_exchange(exchanged: Any, confirmed: tuple[str, ...]) -> None:
    """Some clients may have confirmed, others not, before the session ended without a sum."""
    entry = exchanged.report["rounds"][0]
    entry["aborted"], entry["exchanges"][1]["transcript"] = "secure aggregation ended in reveal", None
    session = entry["exchanges"][1]["session_id"]
    for client_id in exchanged.rows.keys() - set(confirmed):
        rewrite(
            exchanged,
            client_id,
            lambda row: replace(row, transcript=None) if getattr(row, "session", None) == session else row,
        )
    assert problems(exchanged) == {}


def test_unmasked_exchanges(exchanged: Any) -> None:
    """As an `insecure` run has them: no sessions, the order and the announcements all the same."""
    for client_id in exchanged.rows:

        def unmasked(entry: Any) -> Any:
            if not isinstance(entry, Release):
                return entry
            return Release(entry.reservation, None, None, entry.exchange, entry.announced)

        rewrite(exchanged, client_id, unmasked)
    for entry in exchanged.report["rounds"]:
        entry["remasked"] = []
        for exchange in entry["exchanges"]:
            exchange.update(session_id=None, transcript=None)
    exchanged.report["secure_aggregation"] = {"mode": "insecure"}
    record_masks(exchanged)
    declare_again(exchanged)
    assert problems(exchanged) == {}
    exchanged.report["rounds"][0]["exchanges"][1]["announced"] = "0f" * 32
    assert "another announcement" in problems(exchanged)[4]
    del exchanged.report["rounds"][0]["exchanges"][1]
    exchanged.report["method"]["contracts"][0]["may_stop_early"] = True
    record_method(exchanged)
    found = audit(exchanged.report, exchanged.lines, exchanged.roster)
    charged = next(verdict for verdict in found if verdict.check == 4)
    assert charged.status == "UNVERIFIABLE"
    assert "an unmasked exchange 1 that is not listed" in charged.evidence


def test_a_certificate_that_adds_up(exchanged: Any) -> None:
    a_certificate(0.1)(exchanged)
    declare_again(exchanged)
    assert problems(exchanged) == {}


def test_a_lost_round_that_conceals_a_confirmed_session_is_doubted(exchanged: Any) -> None:
    """A server that crashed after the first sum, and lost the round as it began again, looks the same."""
    lost = {"survivors": [], "exchanges": [], "aborted": "too few took part", "certificate": None}
    exchanged.report["rounds"][0].update(lost)
    found = audit(exchanged.report, exchanged.lines, exchanged.roster)
    charged = next(verdict for verdict in found if verdict.check == 4)
    assert charged.status == "UNVERIFIABLE"
    assert "client-1 has confirmed a session that the report does not list" in charged.evidence


def test_a_report_of_shared_noise_in_several_exchanges_is_refused(exchanged: Any, finished: Any) -> None:
    """Each exchange would be a release of its own, and a share of noise is priced for one sum."""
    shares()(finished)
    report, method = finished.report, exchanged.report["method"]
    kept = ("run", "experiment", "metrics", "bytes", "randomness", "outputs", "versions")
    given = {name: report[name] for name in kept}
    given["rounds"] = [
        {k: v for k, v in entry.items() if k not in reports.REPEATED} for entry in report["rounds"]
    ]
    given["plans"] = [Plan.from_json(value) for value in report["plan"].values()]
    given["anchors"] = [Anchor.from_json(value) for value in report["anchors"]]
    assert reports.build(method=report["method"], rows=finished.lines, **given)["method"] == report["method"]
    with pytest.raises(ReportError, match="several exchanges has no price"):
        reports.build(method=method, rows=finished.lines, **given)
