"""Forgeries of rounds of two exchanges, as `forgeries.py` has them of one: each edits what an honest one has left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accounting import contract as contracts
from accounting.entries import Commit, Entry, Release, Reserve

from .conftest import make_method
from .forgeries import shares
from .forging import claim_again, entries, rewrite

Forge = Callable[[Any], None]

# --- rows -------------------------------------------------------------------------------------------------------


def _releases(federation: Any, edit: Callable[[Release], Entry | None]) -> None:
    rewrite(
        federation, "client-1", lambda entry: edit(entry) if isinstance(entry, Release) else entry
    )  # fmt: skip


def _move(federation: Any, position: int, to: int) -> None:
    """One row of client-1 at another place, signed; what rows refer to stays where it is."""
    moved = entries(federation, "client-1")
    moved.insert(to, moved.pop(position))
    federation.rebuild("client-1", moved)
    federation.anchor_again("client-1")


def the_second_exchange_first(federation: Any) -> None:
    """Rows 3 and 4 are of round 1's first exchange, 5 and 6 of its second."""
    _move(federation, 5, 3)


def an_unconfirmed_first_exchange(federation: Any) -> None:
    """The masked vector of the second exchange, before the client knew whose sum the first one was."""
    _move(federation, 5, 4)


def a_session_under_two_announcements(federation: Any) -> None:
    _releases(
        federation,
        lambda entry: replace(entry, announced="ab" * 32) if entry.exchange and entry.transcript else entry,
    )


def a_second_exchange_without_a_transcript_of_the_first(federation: Any) -> None:
    _releases(federation, lambda entry: None if entry.transcript and not entry.exchange else entry)


def a_share_of_noise_in_two_exchanges(federation: Any) -> None:
    shares()(federation)


def a_share_of_noise_under_a_method_of_two(federation: Any) -> None:
    """Each client's ledger has the one sum that its share is priced for, and the report has two."""
    for entry in federation.report["rounds"]:
        for client_id in federation.rows:
            without(federation, client_id, entry["exchanges"][1]["session_id"])
    shares()(federation)


# --- reports ----------------------------------------------------------------------------------------------------


def _contract(federation: Any) -> dict[str, Any]:
    contract: dict[str, Any] = federation.report["method"]["contracts"][0]
    return contract


def _exchange(federation: Any, index: int) -> dict[str, Any]:
    exchange: dict[str, Any] = federation.report["rounds"][0]["exchanges"][index]
    return exchange


def a_method_of_one_exchange(federation: Any) -> None:
    dropped = _contract(federation)["exchanges"].pop()
    _contract(federation)["round_dimension"] -= sum(dropped["travels"].values())


def a_method_of_three_exchanges(federation: Any) -> None:
    _contract(federation)["exchanges"].append({"announced": {}, "travels": {"projected": 64}})
    _contract(federation)["round_dimension"] += 64


def less_than_travels(federation: Any) -> None:
    _contract(federation)["round_dimension"] -= 1


def a_round_without_a_contract(federation: Any) -> None:
    _contract(federation)["rounds"] = [1, 3]


def a_contract_of_a_round_that_was_not(federation: Any) -> None:
    _contract(federation)["rounds"].append(4)


def another_contract_in_the_last_round(federation: Any) -> None:
    """Nothing of the other rounds is touched, and nothing that anybody could count."""
    last = {**_contract(federation), "rounds": [3], "leaks": "nothing"}
    _contract(federation)["rounds"] = [1, 2]
    federation.report["method"]["contracts"].append(last)


def two_rounds_that_have_changed_places(federation: Any) -> None:
    """Each reservation names the contract of its own round: one of another round is another."""
    for client_id in federation.rows:
        rewrite(federation, client_id, _of_the_round_before)


def _of_the_round_before(entry: Any) -> Any:
    if not isinstance(entry, Reserve) or entry.round != 2:
        return entry
    first = contracts.round_digest(make_method(2), 1)
    return replace(entry, versions={**entry.versions, contracts.RECORDED_AS: first})


def a_round_of_two_contracts(federation: Any) -> None:
    federation.report["method"]["contracts"].append({**_contract(federation), "rounds": [2]})


def an_exchange_left_out(federation: Any) -> None:
    del federation.report["rounds"][0]["exchanges"][1]


def exchanges_left_out_with_their_method(federation: Any) -> None:
    a_method_of_one_exchange(federation)
    for entry in federation.report["rounds"]:
        del entry["exchanges"][1:]


def an_exchange_too_many(federation: Any) -> None:
    more = {"session_id": "0f" * 16, "transcript": "0f" * 32, "announced": "0f" * 32}
    federation.report["rounds"][0]["exchanges"].append(more)


def no_exchange_at_all(federation: Any) -> None:
    federation.report["rounds"][0]["exchanges"] = []


def another_second_session(federation: Any) -> None:
    _exchange(federation, 1)["session_id"] = "0f" * 16


def another_second_transcript(federation: Any) -> None:
    _exchange(federation, 1)["transcript"] = "0f" * 32


def another_announcement(federation: Any) -> None:
    _exchange(federation, 1)["announced"] = "0f" * 32


def an_announcement_left_out(federation: Any) -> None:
    _exchange(federation, 1)["announced"] = None


def one_session_for_both_exchanges(federation: Any) -> None:
    _exchange(federation, 1)["session_id"] = _exchange(federation, 0)["session_id"]


def exchanges_in_the_other_order(federation: Any) -> None:
    first, second = _exchange(federation, 0), _exchange(federation, 1)
    for name in ("session_id", "transcript"):
        first[name], second[name] = second[name], first[name]


def a_sum_passed_off_as_lost(federation: Any) -> None:
    _exchange(federation, 0)["transcript"] = None


def other_clients_in_the_second_exchange(federation: Any) -> None:
    """client-3 was lost before the first sum and is in the second: the difference of the two is its update."""
    federation.report["rounds"][0]["survivors"].remove("client-3")


def a_round_that_ends_early(federation: Any) -> None:
    """Nobody has released into round 1's second exchange, which its method cannot do without."""
    session = _exchange(federation, 1)["session_id"]
    an_exchange_left_out(federation)
    for client_id in federation.rows:
        without(federation, client_id, session)
    claim_again(federation)


def the_first_sum_of_one_attempt_and_the_second_of_another(federation: Any) -> None:
    """Round 3 began again without client-3: its second sum is of other clients than the first one that is listed."""
    last = federation.report["rounds"][2]
    first, second = last["exchanges"]
    for client_id in federation.rows:
        without(federation, client_id, second["session_id"])
    again = [
        {"session_id": "c0" * 16, "transcript": "c0" * 32, "announced": None},
        {"session_id": "c1" * 16, "transcript": "c1" * 32, "announced": "c1" * 32},
    ]
    last["survivors"] = ["client-1", "client-2"]
    for client_id in last["survivors"]:
        _release_again(federation, client_id, again)
    last["exchanges"] = [first, again[1]]
    last["remasked"] = [
        {"client_id": client_id, "times": 1} for client_id in ("client-1", "client-2", "client-3")
    ]


def a_survivor_left_out(federation: Any) -> None:
    """client-3 has confirmed round 1's first sum."""
    federation.report["rounds"][0]["survivors"].remove("client-3")
    without(federation, "client-3", _exchange(federation, 1)["session_id"])


def a_sum_of_nobody(federation: Any) -> None:
    federation.report["rounds"][1].update(survivors=[], aborted="it was lost")


def a_certificate(error: float, **changes: Any) -> Forge:
    def forge(federation: Any) -> None:
        figures = {"query": {"size": 4.0, "error": 0.3}, "value": {"size": 3.0, "error": 0.4}}
        certificate = {"error": error, "columns": 48, "modules": figures}
        federation.report["rounds"][0].update({"certificate": certificate, **changes})

    return forge


def without(federation: Any, client_id: str, session: str) -> None:
    """A client's rows without those of a session, and what later rows refer to moved up."""
    kept: list[Entry] = []
    places: dict[int, int] = {}
    for position, entry in enumerate(entries(federation, client_id)):
        if getattr(entry, "session", None) == session:
            continue
        places[position] = len(kept)
        if isinstance(entry, Commit | Release):
            entry = replace(entry, reservation=places[entry.reservation])
        kept.append(entry)
    federation.rebuild(client_id, kept)
    federation.anchor_again(client_id)


def announced_twice(federation: Any, *, said: int) -> None:
    """Round 3 begun again after a crash, with another announcement; `said` of each client in the report."""
    last = federation.report["rounds"][2]
    again = [
        {"session_id": f"e{index}" * 16, "transcript": f"e{index}" * 32, "announced": "e1" * 32 if index else None}
        for index in (0, 1)
    ]  # fmt: skip
    for client_id in federation.rows:
        _release_again(federation, client_id, again)
    last["exchanges"] = again
    counts = {"client-1": 2, "client-2": 2, "client-3": 3}  # client-3 had masked round 3 once more anyway
    last["remasked"] = [{"client_id": client_id, "times": times} for client_id, times in counts.items()]
    last["announced_again"] = [
        {"client_id": client_id, "times": said} for client_id in counts if said
    ]  # fmt: skip


def _release_again(federation: Any, client_id: str, again: list[dict[str, Any]]) -> None:
    """A client's last update goes into further exchanges, each confirmed."""
    reservation = max(row.position for row in federation.rows[client_id] if row.entry.kind == "reserve")
    more = [
        Release(reservation, one["session_id"], transcript, index, one["announced"])
        for index, one in enumerate(again)
        for transcript in (None, one["transcript"])
    ]
    federation.rebuild(client_id, [*entries(federation, client_id), *more])
    federation.anchor_again(client_id)


def a_second_announcement_unsaid(federation: Any) -> None:
    announced_twice(federation, said=0)
