"""What check 4 asks of a round's exchanges: those that its method has, in order, each over the same clients.

A round is one sum, or several over the clients of the first; each is a session of its own, and all are maps of one
update under one charge. That a client released them in order, each after it had confirmed the one before, and each for
one announcement, is a rule of the ledger itself (check 1).

Where clients send different fractions of their coordinates, what only some of them send is a *band*: a sum of its own,
over those of them that were in the first one, answering nothing. A lost band loses no round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import contract as contracts
from ..case import Case, Findings
from ..chain import Charge
from ..entries import Release

Exchange = Mapping[str, Any]


def check_released(
    case: Case,
    found: Findings,
    client_id: str,
    where: str,
    charges: Sequence[Charge],
    exchanges: Sequence[Exchange],
) -> None:
    """A survivor's `charges` of a round went into the exchanges that the report lists, and into no others."""
    for number, exchange in contracts.numbered(exchanges):
        if number and not _has_sum(case, exchange):
            continue  # a client that was lost then need not have sent anything
        if client_id not in exchange.get("survivors", (client_id,)):
            continue  # not in this band's sum
        releases = [
            release
            for charge in charges
            for release in charge.releases
            if release.session == exchange["session_id"]
            and (release.session is not None or release.exchange == number)
        ]
        _check_release(found, f"{where}, exchange {number}", releases, number, exchange)
    for charge in charges:
        _check_in_one_go(found, where, charge, exchanges)


def check_exchanges(case: Case, found: Findings, entry: Mapping[str, Any]) -> None:
    """A round's exchanges follow each other, over the survivors of the first; where masked, in sessions."""
    where, exchanges = f"round {entry['round']}", entry["exchanges"]
    if entry["survivors"] and not exchanges:
        found.problems.append(f"{where} has survivors, and no exchange that they were in")
    for place, (number, exchange) in enumerate(contracts.numbered(exchanges)):
        band = _band(case, entry, number)
        if (exchange["announced"] is None) != (number == 0 or band is not None):
            found.problems.append(
                f"{where}: exchange {number} follows an announcement unless it is the first, or a band"
            )
        if place + 1 < len(exchanges) and not _has_sum(case, exchange) and band is None:
            found.problems.append(f"{where}: exchange {number} has no sum, and another exchange after it")
        _check_survivors(case, found, entry, number, exchange, band)
    numbers = [number for number, _ in contracts.numbered(exchanges)]
    if numbers != sorted(set(numbers)) or numbers[:1] not in ([], [0]):
        found.problems.append(f"{where} lists its exchanges out of order: {numbers}")
    if not entry["survivors"]:
        if any(_has_sum(case, exchange) for exchange in exchanges):
            found.problems.append(f"{where} lists a sum, and no survivor that is in it")
        _check_none_hidden(case, found, entry)
    for client_id, charge in case.all_charges():
        if client_id not in entry["survivors"]:
            _check_not_in_it(found, where, client_id, charge, exchanges)
    _check_certificate(found, where, entry)


def _band(case: Case, entry: Mapping[str, Any], number: int) -> Sequence[str] | None:
    """The clients that send an exchange of that round, if its contract says that only they do."""
    governing = contracts.by_round(case.report["method"]).get(entry["round"], [])
    return contracts.band(governing[0], number) if len(governing) == 1 else None


def _check_survivors(
    case: Case,
    found: Findings,
    entry: Mapping[str, Any],
    number: int,
    exchange: Exchange,
    band: Sequence[str] | None,
) -> None:
    """An exchange sums the round's survivors, a band some of those that send it: enough to hide each other."""
    where = f"round {entry['round']}, exchange {number}"
    listed = exchange.get("survivors")
    if listed is None or not _has_sum(case, exchange):
        if band is not None and _has_sum(case, exchange):
            found.problems.append(f"{where} is of some clients only, and does not say of whom")
        elif band is not None:
            _check_lost_band(case, found, where, exchange)
        return
    if band is None:
        if set(listed) != set(entry["survivors"]):
            found.problems.append(f"{where} is not of the round's survivors")
        return
    if not set(listed) <= set(band) & set(entry["survivors"]):
        found.problems.append(f"{where} has clients that do not send it, or are not in the first sum")
    if case.secure_aggregation.get("mode") == "secure":
        _check_band_counts(case, found, where, number, len(band), len(listed))
    for client_id, charge in case.all_charges():
        if client_id not in listed and exchange["session_id"] in _confirmed(charge) - {None}:
            found.problems.append(f"{where}: {client_id} has confirmed it, and the report leaves it out")


def _check_band_counts(
    case: Case, found: Findings, where: str, number: int, senders: int, summed: int
) -> None:
    """A band's session has counts of its own: those of its senders, and its sum has as many clients as they ask for."""
    if summed < case.colluders + 2:
        found.problems.append(
            f"{where} sums {summed} clients: beside {case.colluders} colluders nobody would be hidden by another"
        )
    stated = case.bands.get(number)
    if stated is None:
        found.problems.append(
            f"{where} is of some clients only, and the report states no counts of its session"
        )
    elif stated["clients"] != senders:
        found.problems.append(
            f"{where}: its session is stated for {stated['clients']} clients, and {senders} send it"
        )
    elif summed < stated["min_survivors"]:
        found.problems.append(
            f"{where} sums {summed} clients, fewer than its min_survivors {stated['min_survivors']}"
        )


def _check_lost_band(case: Case, found: Findings, where: str, exchange: Exchange) -> None:
    """A band that the report calls lost, in a round that gave a sum, was confirmed by nobody; or it may have one."""
    for client_id, charge in case.all_charges():
        if exchange["session_id"] in _confirmed(charge):
            found.doubts.append(
                f"{where}: {client_id} has confirmed it: that it gave no sum is the report's word"
            )


def _check_not_in_it(
    found: Findings, where: str, client_id: str, charge: Charge, exchanges: Sequence[Exchange]
) -> None:
    """A client that the report does not name as a survivor is in none of a round's sums."""
    if {exchange["session_id"] for exchange in exchanges[1:]} & _sessions(charge.releases):
        found.problems.append(f"{where}: {client_id} is in a later exchange and not in the first one's sum")
    if _confirmed(charge) & {one["session_id"] for one in exchanges if one["transcript"] is not None}:
        found.problems.append(f"{where}: {client_id} has confirmed a sum that the report says it is not in")


def _check_none_hidden(case: Case, found: Findings, entry: Mapping[str, Any]) -> None:
    """A round that the report calls lost has no confirmed session but those that it lists."""
    listed = {exchange["session_id"] for exchange in entry["exchanges"]}
    for client_id, charge in case.all_charges():
        if charge.round == entry["round"] and _confirmed(charge) - listed:
            found.doubts.append(
                f"round {entry['round']}: {client_id} has confirmed a session that the report does not list: that it "
                "gave no sum is the report's word"
            )


def _confirmed(charge: Charge) -> set[str]:
    """The sessions whose sum a client was asked to confirm: only whoever is to be in it is asked."""
    return _sessions(release for release in charge.releases if release.transcript is not None)


def _sessions(releases: Iterable[Release]) -> set[str]:
    """The masked sessions among some releases."""
    return {release.session for release in releases if release.session is not None}


def _check_certificate(found: Findings, where: str, entry: Mapping[str, Any]) -> None:
    """A certificate's error is what its modules' figures come to, and is of a round that gave a sum."""
    certificate = entry["certificate"]
    if certificate is None:
        return
    if not entry["survivors"] or entry.get("aborted") is not None:
        found.problems.append(f"{where} has a certificate, and no result that it could be of")
    modules = certificate["modules"].values()
    size, error = (math.hypot(*(module[name] for module in modules)) for name in ("size", "error"))
    derived = error / size if size else 0.0
    if not math.isclose(certificate["error"], derived, rel_tol=1e-9, abs_tol=1e-12):
        found.problems.append(
            f"{where}: its certificate states an error of {certificate['error']:.6g}, its modules' figures give "
            f"{derived:.6g}"
        )


def check_method(case: Case, found: Findings) -> None:
    """Rounds and ledgers have the exchanges that the method has, by the method that the clients recorded."""
    stated = case.report["method"]
    for contract in stated["contracts"]:
        for exchange in contract["exchanges"]:
            if contracts.sent(exchange) > sum(exchange["travels"].values()):
                found.problems.append(
                    f"the contract of round {contract['rounds'][0]} lets more coordinates travel than it has"
                )
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
    _check_recorded(case, found, governing)


def _check_recorded(
    case: Case, found: Findings, governing: Mapping[int, Sequence[contracts.Contract]]
) -> None:
    """What the report states of a round is what every client knew that reserved in it, and it states no other round."""
    for number in sorted(governing.keys() - {entry["round"] for entry in case.report["rounds"]}):
        found.problems.append(f"the report states a contract of round {number}, and lists no such round")
    stated = case.report["method"]
    digests = {number: contracts.round_digest(stated, number) for number in governing}
    for client_id in case.plans:
        for number, where, recorded in case.recorded_by_round(client_id):
            if number in digests:
                found.compare(where, recorded, contracts.RECORDED_AS, digests[number])
            else:
                found.problems.append(
                    f"{where} reserves round {number}, and the report states no contract of it"
                )


def _check_number(
    case: Case, found: Findings, entry: Mapping[str, Any], governing: Sequence[contracts.Contract]
) -> None:
    """A round that changed the state had as many exchanges as its contract asks, bands aside, and never more."""
    where = f"round {entry['round']}"
    if len(governing) != 1:
        found.problems.append(f"{where} has {len(governing)} contracts, and needs one")
        return
    most, given = len(governing[0]["exchanges"]), len(entry["exchanges"])
    if given > most:
        found.problems.append(f"{where} lists {given} exchanges, its method has {most}")
    needed = [number for number in range(most) if contracts.band(governing[0], number) is None]
    summed = {number for number, one in contracts.numbered(entry["exchanges"]) if _has_sum(case, one)}
    finished = entry["survivors"] and entry.get("aborted") is None
    if finished and not summed >= set(needed) and not governing[0]["may_stop_early"]:
        found.problems.append(
            f"{where} ends after {len(summed)} of {most} exchanges, all of which its method needs"
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


def _check_in_one_go(found: Findings, where: str, charge: Charge, exchanges: Sequence[Exchange]) -> None:
    """From the reported first exchange on, a client's masked releases are the listed ones until the round begins again.

    A round that was begun again has other sums, maybe of other clients: its exchanges go with its own first one.
    """
    sessions = [exchange["session_id"] for exchange in exchanges]
    numbers = {number for number, _ in contracts.numbered(exchanges)}
    begun = False
    for release in charge.releases:
        if release.session is None:
            if release.exchange not in numbers:
                found.doubts.append(
                    f"{where}: its ledger records an unmasked exchange {release.exchange} that is not listed: that "
                    "it gave no sum is the report's word"
                )
        elif release.exchange == 0:
            begun = release.session in sessions[:1]
        elif begun and release.session not in sessions:
            found.problems.append(
                f"{where}: its ledger records an exchange {release.exchange} that is not listed"
            )
        elif not begun and release.session in sessions:
            found.problems.append(
                f"{where}: its ledger records the listed exchange {release.exchange} after another first one"
            )
