"""The ledger: charged before acting, durable, shared between processes, and whole or refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.anchor import Anchor
from accounting.chain import Chain, replay
from accounting.entries import Note, parse_row
from accounting.errors import LedgerError
from accounting.events import DistributedSkellam, NonPrivate, PoissonGaussian
from accounting.ledger import Ledger

RUN = "ab" * 16
ROUND = PoissonGaussian(2.0, 0.05, 10, 1.0)
REPOSITORY = Path(__file__).parents[2]

OpenLedger = Callable[..., Ledger]


def fewer(steps: int) -> PoissonGaussian:
    return PoissonGaussian(2.0, 0.05, steps, 1.0)


def tamper(path: Path, statement: str, *values: Any) -> None:
    """What somebody with the file and without the rules could do."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


# --- reserve, commit, release ---


def test_a_reservation_is_charged_until_it_is_committed(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(ROUND, round=1, run=RUN)
    assert ledger.spent_events() == (ROUND,)
    assert ledger.commit(reservation, fewer(7)).charged == fewer(7)
    assert ledger.spent_events() == (fewer(7),)


def test_a_commit_may_say_that_nothing_ran(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    ledger.commit(ledger.reserve(ROUND, round=1, run=RUN), fewer(0))
    assert sum(event.steps for event in ledger.spent_events()) == 0


def test_committing_again_is_free_and_committing_otherwise_is_refused(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(ROUND, round=1, run=RUN)
    ledger.commit(reservation)
    rows = ledger.rows()
    ledger.commit(reservation)
    assert ledger.rows() == rows
    with pytest.raises(LedgerError, match="already committed"):
        ledger.commit(reservation, fewer(1))


@pytest.mark.parametrize(
    "event", [fewer(11), PoissonGaussian(3.0, 0.05, 10, 1.0), PoissonGaussian(2.0, 0.04, 10, 1.0)]
)
def test_a_commit_can_only_lower_the_steps(open_ledger: OpenLedger, event: PoissonGaussian) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(ROUND, round=1, run=RUN)
    with pytest.raises(LedgerError, match=r"more steps|another mechanism"):
        ledger.commit(reservation, event)
    assert ledger.spent_events() == (ROUND,)


def test_a_fresh_attempt_is_charged_again(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    ledger.reserve(ROUND, round=1, run=RUN)
    ledger.commit(ledger.reserve(ROUND, round=1, run=RUN))
    assert [charge.attempt for charge in ledger.charges(run=RUN, round=1)] == [1, 2]
    assert len(ledger.spent_events()) == 2


def test_remasking_is_counted_and_not_charged(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(ROUND, round=1, run=RUN)
    ledger.commit(reservation)
    ledger.release(reservation, session="01")
    assert ledger.release(reservation, session="01", transcript="aa").remasked == 0
    assert ledger.release(reservation, session="02").remasked == 1
    rows = len(ledger.rows())
    assert ledger.release(reservation, session="02").remasked == 1
    assert len(ledger.rows()) == rows
    assert ledger.spent_events() == (ROUND,)
    with pytest.raises(LedgerError, match="already has its transcript"):
        ledger.release(reservation, session="01", transcript="bb")


def test_nothing_is_released_before_it_is_committed(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(ROUND, round=1, run=RUN)
    with pytest.raises(LedgerError, match="not committed"):
        ledger.release(reservation, session="01")


def test_a_reference_to_no_reservation_is_refused(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    with pytest.raises(LedgerError, match="reserves nothing"):
        ledger.commit(0)
    with pytest.raises(LedgerError, match="reserves nothing"):
        ledger.release(7, session="01")


@pytest.mark.parametrize(
    "change",
    [{"run": "not hex"}, {"round": -1}, {"round": 1.0}, {"event": fewer(0)}, {"event": NonPrivate("a", "b")}],
)
def test_a_malformed_reservation_is_refused_and_leaves_nothing(
    open_ledger: OpenLedger, change: dict[str, Any]
) -> None:
    ledger = open_ledger()
    with pytest.raises(LedgerError):
        ledger.reserve(**{"event": ROUND, "round": 1, "run": RUN, **change})
    assert len(ledger.rows()) == 1
    ledger.reserve(ROUND, round=1, run=RUN)  # and the ledger is still usable


def test_notes_are_kept_and_have_no_price(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    event = NonPrivate("number of rows", "weights")
    ledger.note(event, run=RUN, round=2)
    assert ledger.notes(RUN) == (Note(RUN, 2, event),)
    assert ledger.notes("00") == ledger.spent_events() == ()


# --- whose budget ---


def test_a_new_run_is_no_new_budget(open_ledger: OpenLedger) -> None:
    open_ledger().reserve(ROUND, round=1, run=RUN)
    again = open_ledger()
    assert again.spent_events() == (ROUND,)
    assert again.spent_events(run="cd") == ()


@pytest.mark.parametrize("change", [{"partition_id": "dirichlet"}, {"public": True}])
def test_another_split_or_another_declaration_is_refused(
    open_ledger: OpenLedger, change: dict[str, Any]
) -> None:
    open_ledger()
    with pytest.raises(LedgerError, match=f"has {next(iter(change))}"):
        open_ledger(**change)


def test_clients_and_data_sets_have_chains_of_their_own_in_one_file(open_ledger: OpenLedger) -> None:
    one, other, elsewhere = open_ledger(), open_ledger(client_id="client-2"), open_ledger(dataset_id="notes")
    one.reserve(ROUND, round=1, run=RUN)
    assert other.spent_events() == elsewhere.spent_events() == ()
    assert len({ledger.head() for ledger in (one, other, elsewhere)}) == 3
    assert set(replay([*one.rows(), *other.rows()])) == {("client-1", "reviews"), ("client-2", "reviews")}


# --- several processes, crashes ---


def test_two_openers_append_to_one_chain(open_ledger: OpenLedger) -> None:
    one, two = open_ledger(), open_ledger()
    one.reserve(ROUND, round=1, run=RUN)
    reservation = two.reserve(ROUND, round=1, run=RUN)
    assert two.charges()[1].attempt == 2
    assert one.commit(reservation).charged == ROUND
    assert one.head() == two.head()
    one.verify()


_WORKER = """
import sys
from accounting.events import PoissonGaussian
from accounting.ledger import Ledger
ledger = Ledger.open(sys.argv[1], client_id="client-1", dataset_id="reviews", partition_id="iid", public=False)
for number in range(int(sys.argv[2])):
    ledger.reserve(PoissonGaussian(2.0, 0.05, 10, 1.0), round=number, run=sys.argv[3])
    print(number, flush=True)
sys.stdin.read()
"""


def start_worker(path: Path, rows: int, run: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(path), str(rows), run],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_write_at_once_lose_no_row(tmp_path: Path, open_ledger: OpenLedger) -> None:
    workers = [start_worker(tmp_path / "ledger.sqlite", 20, run) for run in ("aa", "bb")]
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    ledger = open_ledger()
    assert len(ledger.rows()) == 41
    assert len(ledger.spent_events("aa")) == len(ledger.spent_events("bb")) == 20


def test_what_was_reserved_survives_a_kill(tmp_path: Path, open_ledger: OpenLedger) -> None:
    worker = start_worker(tmp_path / "ledger.sqlite", 10_000, RUN)
    assert worker.stdout is not None
    seen = [int(worker.stdout.readline()) for _ in range(5)]
    os.kill(worker.pid, signal.SIGKILL)
    with worker:  # not `communicate`, which would lose what `readline` has read ahead
        seen += [int(line) for line in worker.stdout.read().split()]
    reserved = [charge.round for charge in open_ledger().charges()]
    assert reserved[: len(seen)] == seen
    assert len(reserved) - len(seen) in (0, 1)  # one may have become durable without being told of


# --- damage ---


@pytest.fixture
def filled(open_ledger: OpenLedger, tmp_path: Path) -> Path:
    """A closed ledger: opening row, then (reserve, commit) three times."""
    with open_ledger() as ledger:
        for number in range(3):
            ledger.commit(ledger.reserve(ROUND, round=number, run=RUN))
    return tmp_path / "ledger.sqlite"


@pytest.mark.parametrize("row", range(7))
def test_an_edited_row_is_named(filled: Path, open_ledger: OpenLedger, row: int) -> None:
    tamper(
        filled, "UPDATE rows SET line = replace(line, '\"client-1\"', '\"client-9\"') WHERE position = ?", row
    )
    with pytest.raises(LedgerError, match=f"row {row}: was edited") as caught:
        open_ledger()
    assert caught.value.row == row


@pytest.mark.parametrize("row", range(7))
def test_a_missing_row_is_named(filled: Path, open_ledger: OpenLedger, row: int) -> None:
    tamper(filled, "DELETE FROM rows WHERE position = ?", row)
    with pytest.raises(LedgerError, match=f"row {row}: is missing"):
        open_ledger()


def test_a_truncated_ledger_is_refused(filled: Path, open_ledger: OpenLedger) -> None:
    tamper(filled, "DELETE FROM rows WHERE position >= 3")
    with pytest.raises(LedgerError, match="row 3: is missing"):
        open_ledger()


def test_an_emptied_ledger_is_refused(filled: Path, open_ledger: OpenLedger) -> None:
    tamper(filled, "DELETE FROM rows")
    with pytest.raises(LedgerError, match="row 0: is missing"):
        open_ledger()


def test_reordered_rows_are_named(filled: Path, open_ledger: OpenLedger) -> None:
    tamper(filled, "UPDATE rows SET position = 99 WHERE position = 2")
    tamper(filled, "UPDATE rows SET position = 2 WHERE position = 3")
    tamper(filled, "UPDATE rows SET position = 3 WHERE position = 99")
    with pytest.raises(LedgerError, match="row 2: is missing or out of place"):
        open_ledger()


def test_a_row_replaced_under_an_open_ledger_is_noticed(open_ledger: OpenLedger, tmp_path: Path) -> None:
    ledger = open_ledger()
    ledger.reserve(ROUND, round=1, run=RUN)
    tamper(tmp_path / "ledger.sqlite", "DELETE FROM rows WHERE position = 1")
    with pytest.raises(LedgerError, match="row 1"):
        ledger.reserve(ROUND, round=2, run=RUN)


def test_verify_reads_what_opening_had_read(open_ledger: OpenLedger, tmp_path: Path) -> None:
    ledger = open_ledger()
    for number in range(3):
        ledger.reserve(ROUND, round=number, run=RUN)
    ledger.verify()
    tamper(
        tmp_path / "ledger.sqlite", "UPDATE rows SET line = replace(line, '2.0', '4.0') WHERE position = 1"
    )
    with pytest.raises(LedgerError, match="row 1: was edited"):
        ledger.verify()


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, open_ledger: OpenLedger) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match="cannot be used as a ledger"):
        open_ledger()


# --- anchors ---


def test_an_anchor_shows_a_rollback_that_the_file_itself_cannot(
    filled: Path, open_ledger: OpenLedger, signer: Any
) -> None:
    with open_ledger() as ledger:
        early = filled.read_bytes()
        head = ledger.head()
        ledger.reserve(ROUND, round=9, run=RUN)
        anchor = ledger.anchor(sign=signer.sign, public_key=signer.public_key)
    for path in filled.parent.glob("ledger.sqlite*"):
        path.unlink()
    filled.write_bytes(early)
    assert open_ledger().head() == head  # whole by itself
    with pytest.raises(LedgerError, match="row 7: is missing"):
        open_ledger(expect=anchor)


def test_an_anchor_travels_and_holds_for_a_longer_ledger(open_ledger: OpenLedger, signer: Any) -> None:
    ledger = open_ledger()
    ledger.reserve(ROUND, round=1, run=RUN)
    data = ledger.anchor(sign=signer.sign, public_key=signer.public_key).to_bytes()
    assert len(data) < 1024
    ledger.reserve(ROUND, round=2, run=RUN)
    anchor = Anchor.from_bytes(data)
    anchor.verify(signer.public_key)
    open_ledger(expect=anchor)


def test_a_key_that_does_not_match_the_signature_is_refused_at_once(
    open_ledger: OpenLedger, signer: Any
) -> None:
    with pytest.raises(LedgerError, match="no valid signature"):
        open_ledger().anchor(sign=signer.sign, public_key=bytes(32))


def test_anchors_fit_the_identities_of_the_protocol(open_ledger: OpenLedger) -> None:
    """The two packages do not know each other; this is where their signatures meet."""
    identity = pytest.importorskip("protocols.secagg.identity", reason="needs the protocol package").Identity
    key = identity.from_private_bytes(bytes(range(32)))
    open_ledger().anchor(sign=key.sign, public_key=key.public_bytes).verify(key.public_bytes)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[]", b'{"a":NaN}'])
def test_a_malformed_anchor_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerError):
        Anchor.from_bytes(data)


# --- any history ---

actions = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "commit", "release", "note"]), st.integers(0, 5), st.integers(0, 10)
    ),
    max_size=15,
)


@settings(deadline=None, max_examples=25)
@given(history=actions)
def test_replaying_the_export_gives_the_running_total(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, int]]
) -> None:
    """Against a model: a dictionary of reservations to steps."""
    charged: dict[int, int] = {}
    committed: set[int] = set()
    path = tmp_path_factory.mktemp("history") / "ledger.sqlite"
    with Ledger.open(path, client_id="c", dataset_id="d", partition_id="p", public=True) as ledger:
        for action, choice, steps in history:
            if action == "reserve" and steps:
                charged[ledger.reserve(fewer(steps), round=choice, run=RUN)] = steps
            elif action == "note":
                ledger.note(NonPrivate("x", "y"), run=RUN)
            elif charged and action in ("commit", "release"):
                reservation = sorted(charged)[choice % len(charged)]
                if action == "release" and reservation in committed:
                    ledger.release(reservation, session=f"{steps:02x}")
                elif action == "commit" and reservation not in committed:
                    charged[reservation] = min(charged[reservation], steps)
                    ledger.commit(reservation, fewer(charged[reservation]))
                    committed.add(reservation)
        running = ledger.chain.spent()
        exported = ledger.export_jsonl()
    (chain,) = replay(exported.splitlines()).values()
    assert chain.spent() == running
    assert [event.steps for event in running] == list(charged.values())


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_single_byte_edit_of_an_export_is_detected(original: Any, data: st.DataObject) -> None:
    exported = "".join(row.to_line() + "\n" for row in original.rows["client-3"]).encode()
    at = data.draw(st.integers(0, len(exported) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != exported[at]))
    edited = (exported[:at] + bytes([byte]) + exported[at + 1 :]).decode("utf-8", errors="replace")
    try:
        chains = list(replay(edited.removesuffix("\n").split("\n")).values())
    except LedgerError:
        return
    # Only the anchor can tell a last row that is gone; nothing else may get this far.
    pytest.fail(f"byte {at} was changed to {byte} and {chains} was read")


def test_rows_that_do_not_belong_together_are_refused(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    ledger.reserve(ROUND, round=1, run=RUN)
    foreign = Chain("client-2", "reviews")
    with pytest.raises(LedgerError, match="belongs to the chain of"):
        foreign.extend(ledger.rows()[0])


# --- several exchanges of one update ---


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
