"""The benchmark of the server's aggregation measures what it says."""

from __future__ import annotations

from benchmarks.aggregation import rows


def test_every_way_is_measured_on_the_same_federation() -> None:
    costs = {cost.way: cost for cost in rows(layers=2, width=96)}
    assert list(costs) == ["FedIT", "sketch", "two passes", "dense exact", "full SVD of every module"]
    exact, naive = costs["dense exact"], costs["full SVD of every module"]
    assert abs(exact.error - naive.error) < 1e-6  # both are the best of rank 16
    assert exact.error < costs["two passes"].error + 1e-9 < costs["FedIT"].error
    assert costs["FedIT"].uploaded == costs["FedIT"].lora == 4 * 2 * 96 * 16
    assert exact.uploaded == 4 * 96 * 96
    assert all(
        len(cost.cells()) == len(cost.HEADER) and cost.seconds > 0 and cost.memory > 0
        for cost in costs.values()
    )
