"""Several exchanges of one update in the ledger: one charge, in order, and each on record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accounting.chain import replay
from accounting.entries import parse_row
from accounting.errors import LedgerError
from accounting.events import DistributedSkellam, PoissonGaussian
from accounting.ledger import Ledger

RUN = "ab" * 16
ROUND = PoissonGaussian(2.0, 0.05, 10, 1.0)

OpenLedger = Callable[..., Ledger]


def sent(ledger: Ledger, reservation: int, session: str, exchange: int, announced: str | None = None) -> None:
    """One exchange from its masked vector to its confirmation."""
    for transcript in (None, "ef" * 32):
        ledger.release(
            reservation, session=session, transcript=transcript, exchange=exchange, announced=announced
        )


def committed(ledger: Ledger) -> int:
    reservation = ledger.reserve(ROUND, round=1, run=RUN)
    ledger.commit(reservation)
    return reservation


def test_exchanges_of_one_update_cost_one_charge_and_survive_the_file(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = committed(ledger)
    sent(ledger, reservation, "01", 0)
    sent(ledger, reservation, "02", 1, "aa")
    (charge,) = ledger.charges()
    assert ledger.spent_events() == (ROUND,)
    assert [(release.exchange, release.announced) for release in charge.releases] == [(0, None)] * 2 + [
        (1, "aa")
    ] * 2
    assert (charge.remasked, charge.announced_again) == (0, 0)
    (chain,) = replay(ledger.export_jsonl().splitlines()).values()
    assert chain.charges == ledger.chain.charges
    assert open_ledger().chain.charges == ledger.chain.charges


def test_a_round_that_begins_again_is_masked_and_announced_again(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = committed(ledger)
    sent(ledger, reservation, "01", 0)
    ledger.release(reservation, session="02", exchange=1, announced="aa")
    for session, announced in (("03", "aa"), ("05", "bb")):
        sent(ledger, reservation, session, 0)
        sent(ledger, reservation, f"1{session}", 1, announced)
    (charge,) = ledger.charges()
    assert (charge.remasked, charge.announced_again) == (4, 1), "three sessions each, two announcements"
    assert ledger.spent_events() == (ROUND,)


def test_unmasked_exchanges_are_recorded_in_order_too(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = committed(ledger)
    with pytest.raises(LedgerError, match="does not follow a confirmed exchange 0"):
        ledger.release(reservation, session=None, exchange=1, announced="aa")
    for announced in ("aa", "bb"):
        ledger.release(reservation, session=None)
        ledger.release(reservation, session=None, exchange=1, announced=announced)
    (charge,) = ledger.charges()
    assert (len(charge.releases), charge.remasked, charge.announced_again) == (3, 0, 1)


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ({"session": "03", "exchange": 2, "announced": "bb"}, "does not follow a confirmed exchange 1"),
        ({"session": "03", "exchange": 1, "announced": "bb"}, "does not follow a confirmed exchange 0"),
        ({"session": None, "exchange": 1, "announced": "bb"}, "does not follow a confirmed exchange 0"),
        ({"session": "02", "exchange": 1, "announced": "bb"}, "of another exchange or announcement"),
        ({"session": "02", "exchange": 0}, "of another exchange or announcement"),
        ({"session": "03", "exchange": 0, "announced": "bb"}, "nothing is announced before the first"),
        ({"session": "03", "exchange": 1}, "follows a later one, or is there already"),
        ({"session": "03", "exchange": 1, "announced": "no hex"}, "lower-case hex"),
        ({"session": "03", "exchange": -1, "announced": "bb"}, "counted from 0"),
        ({"session": "03", "exchange": True, "announced": "bb"}, "counted from 0"),
    ],
)
def test_exchanges_out_of_order_are_refused(
    open_ledger: OpenLedger, release: dict[str, Any], reason: str
) -> None:
    """Exchange 1 has begun in session 02, and nobody has confirmed it."""
    ledger = open_ledger()
    reservation = committed(ledger)
    sent(ledger, reservation, "01", 0)
    ledger.release(reservation, session="02", exchange=1, announced="aa")
    rows = ledger.rows()
    with pytest.raises(LedgerError, match=reason):
        ledger.release(reservation, **release)
    assert ledger.rows() == rows


def test_bands_follow_the_confirmed_first_exchange_in_order(open_ledger: OpenLedger) -> None:
    """Band 1 was lost and band 2 was not; then a crash, and the round begins again."""
    ledger = open_ledger()
    reservation = committed(ledger)
    ledger.release(reservation, session="01")
    with pytest.raises(LedgerError, match="does not follow a confirmed exchange 0"):
        ledger.release(reservation, session="02", exchange=1)
    ledger.release(reservation, session="01", transcript="aa")
    ledger.release(reservation, session="02", exchange=1)
    sent(ledger, reservation, "03", 2)
    for exchange in (1, 2):
        with pytest.raises(LedgerError, match="follows a later one, or is there already"):
            ledger.release(reservation, session="04", exchange=exchange)
    with pytest.raises(LedgerError, match="does not follow a confirmed exchange 0"):
        ledger.release(reservation, session=None, exchange=1)
    ledger.release(reservation, session="05")
    with pytest.raises(LedgerError, match="does not follow a confirmed exchange 0"):
        ledger.release(reservation, session="06", exchange=1)
    ledger.release(reservation, session="05", transcript="bb")
    sent(ledger, reservation, "06", 1)
    (charge,) = ledger.charges()
    assert [release.exchange for release in charge.releases] == [0, 0, 1, 2, 2, 0, 0, 1, 1]
    assert (charge.remasked, charge.announced_again) == (2, 0)
    ledger.verify()


def test_unmasked_bands_are_of_a_round_that_has_begun(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = committed(ledger)
    with pytest.raises(LedgerError, match="does not follow a confirmed exchange 0"):
        ledger.release(reservation, session=None, exchange=1)
    ledger.release(reservation, session=None)
    for exchange in (2, 1):  # after a crash in band 2, of which a repeated row says nothing
        ledger.release(reservation, session=None, exchange=exchange)
    assert len(ledger.charges()[0].releases) == 3


def test_a_first_exchange_that_nobody_confirmed_has_no_second(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = committed(ledger)
    ledger.release(reservation, session="01")
    with pytest.raises(LedgerError, match="does not follow a confirmed exchange 0"):
        ledger.release(reservation, session="02", exchange=1, announced="aa")


def test_a_row_of_the_first_exchange_has_no_field_of_later_ones(open_ledger: OpenLedger) -> None:
    """So that ledgers from before there were exchanges are read as what they are."""
    ledger = open_ledger()
    reservation = committed(ledger)
    sent(ledger, reservation, "01", 0)
    sent(ledger, reservation, "02", 1, "aa")
    lines = ledger.export_jsonl().splitlines()
    assert ["exchange" in line for line in lines] == [False] * 5 + [True] * 2
    with pytest.raises(LedgerError, match="not canonical"):
        parse_row(lines[3].replace('"data":{', '"data":{"announced":null,"exchange":0,'))


@pytest.mark.parametrize("second", ["cd" * 16, None])
def test_a_share_of_noise_is_released_once_and_masked(open_ledger: OpenLedger, second: str | None) -> None:
    """The difference of two sums that share all other vectors would show one under its own share of noise only."""
    event = DistributedSkellam(64.0, 256.0, 1.0, 1024, 8, 1, 24, 0.0, "example", 0.01, 4, "add-remove")
    ledger = open_ledger()
    reservation = ledger.reserve(event, round=1, run="ab")
    ledger.commit(reservation)
    ledger.release(reservation, session="ab" * 16)
    ledger.release(
        reservation, session="ab" * 16, transcript="ef" * 32
    )  # the same session, its transcript known
    with pytest.raises(LedgerError, match=r"second sum|unmasked"):
        ledger.release(reservation, session=second)
    with pytest.raises(LedgerError, match=r"second exchange|unmasked"):
        ledger.release(reservation, session=second, exchange=1, announced="aa")
    assert len(ledger.charges()[0].releases) == 2
