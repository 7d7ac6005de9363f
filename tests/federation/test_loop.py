"""The bound on ε that a run shows after every round."""

from __future__ import annotations

import pytest

from accounting.planning import Plan, plan
from accounting.pricing import epsilon
from fedlora_priv.federation.loop import running_epsilon


def planned(client_id: str, examples: int, rounds: int) -> Plan:
    """A plan of one step a round for ε = 8, with one round for a retry."""
    return plan(
        client_id=client_id, declared_examples=examples, planned_batch_size=40, rounds=rounds, retry_rounds=1,
        steps_per_round=1, clip_norm=1.0, target_epsilon=8.0, delta=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(("rounds", "sizes"), [(12, (400, 400)), (30, (400, 500, 600))])
def test_the_bound_grows_with_the_rounds_and_is_one(rounds: int, sizes: tuple[int, ...]) -> None:
    plans = {f"client-{i}": planned(f"client-{i}", size, rounds) for i, size in enumerate(sizes)}
    shown = [running_epsilon(plans, number) for number in range(1, rounds + 1)]
    for client_id, own in plans.items():
        curve = [bounds[client_id] for bounds in shown]
        assert curve == sorted(curve)
        # What is spent grows with every round: where a bound stays the same, its last round is the one to look at.
        lasts = [
            number for number in range(1, rounds + 1) if number == rounds or curve[number] > curve[number - 1]
        ]
        spent = {number: epsilon([own.round_event()] * (number + 1), own.delta) for number in lasts}
        assert all(curve[number - 1] >= true - 1e-9 for number, true in spent.items())
        assert curve[0] < 0.7 * curve[-1]  # RDP alone is above the whole run's price for most of a short run
        assert curve[-1] == pytest.approx(spent[rounds])
        assert len(set(curve)) >= min(rounds, 24 // len(sizes)) - 1
