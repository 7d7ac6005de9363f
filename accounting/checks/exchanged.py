"""What check 4 asks of a round's exchanges: those that its method has, in order, each over the same clients.

A round is one sum, or several over the clients of the first; each is a session of its own, and all are maps of one
update under one charge. That a client released them in order, each after it had confirmed the one before, and each for
one announcement, is a rule of the ledger itself (check 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import contract as contracts
from ..case import Case, Findings
from ..chain import Charge
from ..entries import Release

Exchange = Mapping[str, Any]


def check_released(
    case: Case, found: Findings, where: str, charges: Sequence[Charge], exchanges: Sequence[Exchange]
) -> None:
    """A survivor's `charges` of a round went into the exchanges that the report lists, and into no others."""
    for number, exchange in enumerate(exchanges):
        if number and not _has_sum(case, exchange):
            continue  # a client that was lost then need not have sent anything
        releases = [
            release
            for charge in charges
            for release in charge.releases
            if release.session == exchange["session_id"]
            and (release.session is not None or release.exchange == number)
        ]
        _check_release(found, f"{where}, exchange {number}", releases, number, exchange)
    for charge in charges:
        _check_none_omitted(found, where, charge, [exchange["session_id"] for exchange in exchanges])


def check_exchanges(case: Case, found: Findings, entry: Mapping[str, Any]) -> None:
    """A round's exchanges follow each other, over the survivors of the first; where masked, in sessions."""
    where, exchanges = f"round {entry['round']}", entry["exchanges"]
    if entry["survivors"] and not exchanges:
        found.problems.append(f"{where} has survivors, and no exchange that they were in")
    for number, exchange in enumerate(exchanges):
        if (exchange["announced"] is None) != (number == 0):
            found.problems.append(
                f"{where}: exchange {number} follows an announcement unless it is the first"
            )
        if number + 1 < len(exchanges) and not _has_sum(case, exchange):
            found.problems.append(f"{where}: exchange {number} has no sum, and another exchange after it")
    later = {exchange["session_id"] for exchange in exchanges[1:]} - {None}
    for client_id, charge in case.all_charges():
        if client_id not in entry["survivors"] and later & {release.session for release in charge.releases}:
            found.problems.append(
                f"{where}: {client_id} is in a later exchange and not in the first one's sum"
            )


def check_method(case: Case, found: Findings) -> None:
    """Rounds and ledgers have the exchanges that the method has, by the method that the clients recorded."""
    stated = case.report["method"]
    for contract in stated["contracts"]:
        if contract["round_dimension"] != contracts.coordinates(contract):
            found.problems.append(
                f"the contract of round {contract['rounds'][0]} states {contract['round_dimension']} coordinates, "
                f"its exchanges have {contracts.coordinates(contract)}"
            )
    governing = contracts.by_round(stated)
    for entry in case.report["rounds"]:
        _check_number(case, found, entry, governing.get(entry["round"], []))
    for client_id, charge in case.all_charges():
        most = max((len(one["exchanges"]) for one in governing.get(charge.round, [])), default=1)
        if any(release.exchange >= most for release in charge.releases):
            found.problems.append(
                f"{client_id} released round {charge.round} in more exchanges than the {most} of its method"
            )
    digest = contracts.method_digest(stated)
    for client_id in case.plans:
        for where, recorded in case.recorded(client_id):
            found.compare(where, recorded, contracts.RECORDED_AS, digest)


def _check_number(
    case: Case, found: Findings, entry: Mapping[str, Any], governing: Sequence[contracts.Contract]
) -> None:
    """A round that changed the state had as many exchanges as its contract asks, and never more."""
    where = f"round {entry['round']}"
    if len(governing) != 1:
        found.problems.append(f"{where} has {len(governing)} contracts, and needs one")
        return
    most, given = len(governing[0]["exchanges"]), len(entry["exchanges"])
    if given > most:
        found.problems.append(f"{where} lists {given} exchanges, its method has {most}")
    summed = sum(_has_sum(case, exchange) for exchange in entry["exchanges"])
    finished = entry["survivors"] and entry.get("aborted") is None
    if finished and summed < most and not governing[0]["may_stop_early"]:
        found.problems.append(
            f"{where} ends after {summed} of {most} exchanges, all of which its method needs"
        )


def _has_sum(case: Case, exchange: Exchange) -> bool:
    """Whether a listed exchange gave a sum: its survivors signed it, or nothing was masked."""
    return exchange["transcript"] is not None or case.secure_aggregation.get("mode") != "secure"


def _check_release(
    found: Findings, where: str, releases: Sequence[Release], number: int, exchange: Exchange
) -> None:
    """What a client's rows say of one reported exchange: `releases` into its session."""
    if not releases:
        found.problems.append(f"{where}: its ledger records no release into the reported session")
    if any(release.exchange != number for release in releases):
        found.problems.append(f"{where}: its ledger records that session as another exchange")
    if any(release.transcript not in (None, exchange["transcript"]) for release in releases):
        found.problems.append(f"{where}: its ledger records another transcript of that session")
    if releases and exchange["announced"] not in {release.announced for release in releases}:
        found.problems.append(f"{where}: its ledger records another announcement before it")


def _check_none_omitted(found: Findings, where: str, charge: Charge, sessions: list[str | None]) -> None:
    """No masked exchange went on from the reported first one without being listed itself."""
    begun = False
    for release in charge.releases:
        begun = begun or release.session in sessions[:1]
        if begun and release.exchange and release.session not in sessions:
            found.problems.append(
                f"{where}: its ledger records an exchange {release.exchange} that is not listed"
            )
