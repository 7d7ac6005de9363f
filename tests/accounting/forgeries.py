"""Forgeries of reports, ledgers and evidence: each function turns an honest federation into its own.

Each is as consistent as its forger could make it: hashes recomputed, claims computed again, rows signed by the
client itself where the client lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from accounting.anchor import Anchor, ledger_head
from accounting.chain import Chain
from accounting.empirical import EmpiricalResult
from accounting.entries import Open, Release, Reserve
from accounting.events import AdaptiveClipPoissonGaussian, DistributedSkellam
from accounting.private_audit import AttemptRecord
from accounting.rows import RECORDED_AS, Partition

from .forging import claim_again, commit_to, edit_events, edit_private, entries, record_other, rewrite

Forge = Callable[[Any], None]

# --- rows -------------------------------------------------------------------------------------------------------


def edited_row(federation: Any) -> None:
    row = federation.rows["client-1"][1]
    changed = replace(row.entry, event=replace(row.entry.event, noise_multiplier=99.0))
    federation.rows["client-1"][1] = replace(row, entry=changed)


def reordered_rows(federation: Any) -> None:
    rows = federation.rows["client-1"]
    rows[3], rows[4] = rows[4], rows[3]


def truncated(federation: Any) -> None:
    del federation.rows["client-1"][-2:]


def rehashed_without_a_round(federation: Any) -> None:
    edit_events(federation, "client-1", lambda event: replace(event, steps=1), sign=False)
    claim_again(federation)


def another_runs_rows(federation: Any) -> None:
    """A client's genuine rows of a cheaper run, signed, in place of those of this run."""
    rewrite(
        federation,
        "client-1",
        lambda entry: replace(entry, run="cd" * 16) if isinstance(entry, Reserve) else entry,
    )
    claim_again(federation)


def withheld_ledger(federation: Any) -> None:
    del federation.rows["client-2"]


def two_anchors(federation: Any) -> None:
    """An older genuine anchor beside the newer one: whichever a reader takes, something fits."""
    federation.report["anchors"].append(federation.report["anchors"][0])
    federation.report["ledger_head"] = ledger_head(map(Anchor.from_json, federation.report["anchors"]))


def duplicate_resume(federation: Any) -> None:
    """Rounds run again after crashes that the plan had no room for, all of them charged."""
    chain = Chain("client-1", "reviews")
    for row in federation.rows["client-1"]:
        chain.extend(row)
    first = federation.rows["client-1"][1].entry
    for attempt in (2, 3):
        chain.extend(chain.next_row(replace(first, attempt=attempt)))
    federation.rows["client-1"] = chain.rows
    federation.anchor_again("client-1")
    claim_again(federation)


def uncharged_round(federation: Any) -> None:
    kept = [e for e in entries(federation, "client-1") if not (isinstance(e, Reserve) and e.round == 3)][:-2]
    federation.rebuild("client-1", kept)
    federation.anchor_again("client-1")
    claim_again(federation)


def noise_lowered_after_planning(federation: Any) -> None:
    edit_events(
        federation, "client-1", lambda event: replace(event, noise_multiplier=0.9 * event.noise_multiplier)
    )
    claim_again(federation)


# --- reports ----------------------------------------------------------------------------------------------------


def lower_epsilon(federation: Any) -> None:
    for claim in federation.report["claims"]:
        claim["epsilon"] /= 2


def lifetime_untold(federation: Any) -> None:
    for claim in federation.report["claims"]:
        claim["lifetime_epsilon"] = None


def large_delta(federation: Any) -> None:
    for value in (*federation.report["plan"].values(), *federation.report["claims"]):
        value["delta"] = 1e-3
    claim_again(federation)


def wrong_sampler(federation: Any) -> None:
    federation.report["plan"]["client-1"]["sampler"] = "shuffled"


def unrecorded_sampler(federation: Any) -> None:
    """A client that sent no rows, claimed at a plan that amplifies by shuffling."""
    federation.report["plan"]["client-2"]["sampler"] = "shuffled"
    del federation.rows["client-2"]


def wrong_adjacency(federation: Any) -> None:
    for claim in federation.report["claims"]:
        claim["adjacency"] = "replace-one"


def fewer_survivors(federation: Any) -> None:
    """A sum of one that the report says had company."""
    federation.report["rounds"][0]["survivors"] = ["client-1"]


def a_survivor_that_was_lost(federation: Any) -> None:
    federation.report["rounds"][1]["survivors"].append("client-2")


def omitted_round(federation: Any) -> None:
    del federation.report["rounds"][-1]


def omitted_release(federation: Any) -> None:
    federation.report["non_private"] = []
    del federation.report["outputs"][-1]


def updates_left_undeclared(federation: Any) -> None:
    del federation.report["outputs"][0]


def a_session_listed_twice(federation: Any) -> None:
    first, second = (entry["exchanges"][0] for entry in federation.report["rounds"][:2])
    second["session_id"] = first["session_id"]


def a_longer_round(federation: Any) -> None:
    """Two rounds' steps in one, within the total that was planned."""
    rewrite(
        federation, "client-2",
        lambda entry: replace(entry, event=replace(entry.event, steps=8))
        if isinstance(entry, Reserve) and entry.round == 2
        else entry,
    )  # fmt: skip
    claim_again(federation)


def published_seed(federation: Any) -> None:
    federation.report["randomness"]["details"] = {"sampling": [{"seed": 7}]}


def seed_published_elsewhere(federation: Any) -> None:
    federation.report["bytes"]["noise_seed"] = 7


def other_code(federation: Any) -> None:
    federation.report["versions"]["code_sha256"] = "0" * 64


def changing_clip_norm(federation: Any) -> None:
    """Clipping at the median of the last step's norms, with nothing charged for the median."""
    numbers = iter(range(1, 100))
    edit_events(
        federation, "client-1", lambda event: replace(event, clip_norm=1 + 0.1 * ((next(numbers) - 1) // 2))
    )
    claim_again(federation)


def uncharged_counts(federation: Any) -> None:
    """Counts with noise so small that they eat what the vectors' noise was planned for."""

    def adaptive(event: Any) -> Any:
        return AdaptiveClipPoissonGaussian(
            event.noise_multiplier, 0.6, event.sample_rate, event.steps, event.clip_norm, event.adjacency
        )

    edit_events(federation, "client-1", adaptive)


def warm_start(federation: Any) -> None:
    federation.report["experiment"]["start_weights"]["from_run"] = "ef" * 16


# --- shares of noise --------------------------------------------------------------------------------------------


def shares(*, masked_once: bool = True, **changes: Any) -> Forge:
    """Every client's charges priced as shares of Skellam noise, in sums as the report states them."""

    def forge(federation: Any) -> None:
        if masked_once:
            rewrite(federation, "client-3", lambda e: None if getattr(e, "session", None) == "f" * 32 else e)
        for client_id in federation.rows:
            edit_events(federation, client_id, lambda event: _share(event, **changes))
        federation.report["secure_aggregation"] |= {
            "dimension": 4096, "scale": 1024.0, "modulus_bits": 24, "max_colluders": 0,
        }  # fmt: skip

    return forge


def _share(event: Any, **changes: Any) -> DistributedSkellam:
    stated = {
        "local_stddev": 1500.0, "scale": 1024.0, "clip_norm": event.clip_norm, "dimension": 4096, "survivors": 2,
        "max_colluders": 0, "modulus_bits": 24, "rounding_beta": 0.0, "unit": "example",
        "sample_rate": event.sample_rate, "steps": event.steps, "adjacency": event.adjacency,
    }  # fmt: skip
    return DistributedSkellam(**{**stated, **changes})


def whole_clients_for_examples(federation: Any) -> None:
    """Ledgers of the unit "client" under claims for one example."""
    shares(unit="client", sample_rate=1.0, adjacency="zero-out")(federation)
    for client_id in federation.rows:
        rewrite(
            federation,
            client_id,
            lambda entry: replace(entry, unit="client") if isinstance(entry, Open) else entry,
        )


def more_colluders_than_priced(federation: Any) -> None:
    shares()(federation)
    federation.report["secure_aggregation"]["max_colluders"] = 1


def a_share_sent_twice(federation: Any) -> None:
    """client-3 masked its vector of round 3 in a second session; in mode local that is harmless."""
    shares(masked_once=False)(federation)


def a_share_sent_unmasked(federation: Any) -> None:
    shares()(federation)
    rewrite(
        federation,
        "client-1",
        lambda entry: replace(entry, session=None) if isinstance(entry, Release) else entry,
    )


def one_client_with_a_smaller_share(federation: Any) -> None:
    shares()(federation)
    edit_events(federation, "client-2", lambda event: replace(event, local_stddev=event.local_stddev / 2))


# --- private audit files ----------------------------------------------------------------------------------------


def regular_batches(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, batch_size=20, clipped=20))


def private_file_of_another_run(federation: Any) -> None:
    federation.private["client-1"] = tuple(
        replace(record, run="cd" * 16) for record in federation.private["client-1"]
    )


def private_file_made_up_later(federation: Any) -> None:
    """Honest-looking steps, but not those that the ledger committed to when they were taken."""
    generator = np.random.default_rng(11)

    def again(record: AttemptRecord) -> AttemptRecord:
        steps = tuple(
            replace(step, batch_size=size, clipped=size)
            for step, size in zip(
                record.steps, generator.binomial(1000, 0.02, len(record.steps)).tolist(), strict=True
            )
        )
        return replace(record, steps=steps)

    federation.private["client-1"] = tuple(again(record) for record in federation.private["client-1"])


def private_file_with_a_step_left_out(federation: Any) -> None:
    federation.private["client-1"] = tuple(
        replace(record, steps=record.steps[1:]) for record in federation.private["client-1"]
    )
    commit_to(federation, "client-1")


def an_attempt_noted_twice(federation: Any) -> None:
    first = federation.private["client-1"][0]
    federation.private["client-1"] = (first, *federation.private["client-1"])


def more_clipped_than_drawn(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, clipped=step.batch_size + 1))


def small_noise(federation: Any) -> None:
    edit_private(
        federation, "client-1",
        lambda step: replace(step, noise_squares=0.7 * step.noise_squares, largest_noise=0.83 * step.largest_noise),
    )  # fmt: skip


def no_noise(federation: Any) -> None:
    numbers = iter(range(1, 10**6))
    edit_private(
        federation, "client-1",
        lambda step: replace(step, noise_squares=1e-12 * next(numbers), largest_noise=1e-9 * next(numbers)),
    )  # fmt: skip


def clamped_noise(federation: Any) -> None:
    """Noise clamped to three standard deviations: the norms hardly change, the largest coordinates do."""
    noise = federation.report["plan"]["client-1"]["noise_multiplier"]
    edit_private(federation, "client-1", lambda step: replace(step, largest_noise=3 * noise))


def repeated_noise(federation: Any) -> None:
    """A stream begun again at every round."""
    first = federation.private["client-1"][0].steps
    federation.private["client-1"] = tuple(
        replace(record, steps=first) for record in federation.private["client-1"]
    )
    commit_to(federation, "client-1")


def noise_on_what_travels_only(federation: Any) -> None:
    """Honest noise, and none on the thousand coordinates that stay at home."""
    records = []
    for record in federation.private["client-1"]:
        share = 2 / 3
        steps = [replace(step, noise_squares=share * step.noise_squares) for step in record.steps]
        records.append(replace(record, dimension=2000, steps=tuple(steps)))
    federation.private["client-1"] = tuple(records)
    commit_to(federation, "client-1")


def unclipped_gradient(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, largest_norm=1.5))


def unclipped_sum(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, sum_norm=1.01 * step.batch_size))


def more_rows_than_declared(federation: Any) -> None:
    federation.private["client-1"] = tuple(
        replace(record, examples=200_000) for record in federation.private["client-1"]
    )
    commit_to(federation, "client-1")


# --- rows of data and attacks -----------------------------------------------------------------------------------


def a_row_held_twice(federation: Any) -> None:
    held = {**federation.partition.rows, "client-2": (5, *federation.partition.rows["client-2"][1:])}
    federation.partition = Partition("reviews", held)
    record_other(federation, "client-2", RECORDED_AS, federation.partition.digest("client-2"))


def the_same_rows_twice(federation: Any) -> None:
    federation.partition = None
    record_other(federation, "client-2", RECORDED_AS, "ab" * 32)
    record_other(federation, "client-3", RECORDED_AS, "ab" * 32)


def lists_that_nobody_trained_on(federation: Any) -> None:
    federation.partition = Partition(
        "reviews", {**federation.partition.rows, "client-2": tuple(range(7000, 8000))}
    )


def parts_of_two_splits(federation: Any) -> None:
    federation.partition = None
    rewrite(
        federation, "client-2",
        lambda entry: replace(entry, partition_id="dirichlet-3-1") if entry.kind == "open" else entry,
    )  # fmt: skip


def rows_that_change(federation: Any) -> None:
    """Other rows in the last round, under the same budget."""
    federation.partition = None
    rewrite(
        federation,
        "client-1",
        lambda entry: (
            replace(entry, versions={**entry.versions, RECORDED_AS: "cd" * 32})
            if isinstance(entry, Reserve) and entry.round == 3
            else entry
        ),
    )


def a_row_listed_twice(federation: Any) -> None:
    """One row counted twice, so that as many rows are listed as are declared."""
    rows = federation.partition.rows["client-1"]
    federation.partition = Partition(
        "reviews", {**federation.partition.rows, "client-1": (rows[1], *rows[1:])}
    )
    record_other(federation, "client-1", RECORDED_AS, federation.partition.digest("client-1"))


def attack(**changes: Any) -> Forge:
    """The record of an attack beside the report."""

    def forge(federation: Any) -> None:
        counts = {
            "canaries": 1000, "guesses": 100, "correct": 100, "tests": 1, "confidence": 0.95, "delta": 1e-5,
            "lower_bound": 3.465376, "trained_epsilon": 0.5, "run": federation.report["run"],
            "client_id": "client-1", "method": "one-run", "attack": "gradient", "attacker": "sees the update",
            "assumption": "none, beyond independent fair coins",
        }  # fmt: skip
        federation.attack = EmpiricalResult(**{**counts, **changes})

    return forge
