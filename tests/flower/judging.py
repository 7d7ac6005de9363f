"""What is right of the run of a `fleet` that has ended: its sums, its charges, its audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.testing import assert_array_equal

from accounting.transfer import read as read_ledger
from fedlora_priv.config_federation import Dropout
from fedlora_priv.reports.auditing import audit_files

from .fleet import Fleet
from .lab import in_one_process
from .traced import randomness_known


def require_the_local_engines_sums(
    one: Fleet, place: Path, silent: Any, lost: Sequence[Dropout] = ()
) -> None:
    """Every masked sum, bit for bit, and whose it is, of the same parties in one process whom nobody has killed."""
    with randomness_known():
        expected, _ = in_one_process(place / "twin", place / "sums", silent, lost)
    known = one.sums()
    assert len(known) == one.experiment.federation.rounds
    assert known.keys() == expected.keys()
    for key, kept in known.items():
        assert kept.total.any()
        assert_array_equal(kept.total, expected[key].total)
        assert kept.survivors == expected[key].survivors


def require_charged_once_a_round(one: Fleet, but: Mapping[str, list[int]] = MappingProxyType({})) -> None:
    """Every client has one charge for each round, committed, whether or not it was in the sum.

    Args:
        but: by client, the rounds of one that was not told of all of them.
    """
    rounds = list(range(1, one.experiment.federation.rounds + 1))
    for number, client_id in enumerate(one.experiment.client_ids, start=1):
        chain = read_ledger(one.home(number) / "ledger.sqlite").chains[(client_id, "wards-2026")]
        charges = list(chain.charges.values())
        assert [charge.round for charge in charges] == but.get(client_id, rounds)
        assert all(charge.committed is not None for charge in charges)


def failed(one: Fleet) -> list[Any]:
    """What the audit of the server's folder, with everybody's private files, objects to."""
    verdicts = audit_files(one.run_folder, roster=one.roster, private=[one.out / "nodes"])
    return [verdict for verdict in verdicts if verdict.status == "FAIL"]
