"""The ledger: charged before acting, durable, shared between processes, and whole or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.anchor import Anchor
from accounting.chain import Chain, replay
from accounting.entries import Note
from accounting.errors import LedgerError
from accounting.events import NonPrivate, PoissonGaussian
from accounting.ledger import Ledger

RUN = "ab" * 16
ROUND = PoissonGaussian(2.0, 0.05, 10, 1.0)
REPOSITORY = Path(__file__).parents[2]

OpenLedger = Callable[..., Ledger]


def fewer(steps: int) -> PoissonGaussian:
    return PoissonGaussian(2.0, 0.05, steps, 1.0)


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
