"""What an experiment file says of data: whose size and labels are declared, and what follows for delta and batches."""

from __future__ import annotations

import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation.plans import plan_clients
from tests.experiments import PRIVATE, load, refusal


def test_a_private_size_must_be_declared() -> None:
    message = refusal("data.public=false", 'data.dataset_id="reviews"')
    assert "data.declared_examples_per_client" in message
    assert "leak" in message


SIZES = "data.declared_examples=[300, 80, 120, 1000, 60]"
UNDECLARED = PRIVATE.replace("declared_examples_per_client = 2000", "")


def test_each_client_may_declare_a_size_of_its_own() -> None:
    experiment = load(SIZES, "training.batch_size=60", text=UNDECLARED)
    assert experiment.declared_sizes == dict(
        zip(experiment.client_ids, (300, 80, 120, 1000, 60), strict=True)
    )
    assert Experiment.from_toml(experiment.to_toml()) == experiment
    plans = plan_clients(experiment, experiment.declared_sizes)
    assert [plan.sample_rate for plan in plans.values()] == [60 / 300, 60 / 80, 60 / 120, 60 / 1000, 1.0]
    assert plans["client-5"].noise_multiplier > plans["client-4"].noise_multiplier  # 1 in 1, 1 in 16


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.declared_examples=[300, 80]"], "2 numbers for 5 clients"),
        ([SIZES, "data.declared_examples_per_client=100"], "both say how many examples"),
        ([SIZES, "training.batch_size=61"], "60 examples that data.declared_examples says of client-5"),
        ([SIZES, "training.batch_size=60", "privacy.delta=0.00065"], "not below 1/1560"),
    ],
)
def test_declared_sizes_that_do_not_fit_are_refused(overrides: list[str], reason: str) -> None:
    assert reason in refusal(*overrides, text=UNDECLARED)


def test_private_data_need_a_name_for_their_ledger() -> None:
    message = refusal("data.public=false")
    assert "data.dataset_id is missing" in message


def test_private_labels_must_be_declared() -> None:
    message = refusal(text=PRIVATE.replace('labels = ["well", "ill"]', ""))
    assert "data.labels is missing" in message


def test_private_data_without_a_public_evaluation_split_reports_no_accuracy() -> None:
    assert not load(text=PRIVATE).data.evaluation_may_be_reported
    assert load("data.evaluation_public=true", text=PRIVATE).data.evaluation_may_be_reported


def test_delta_is_below_one_over_all_examples() -> None:
    # 5 clients x 2000 examples: 1e-4 is exactly 1/10000, which is not below it.
    assert "not below 1/10000" in refusal("privacy.delta=1e-4", text=PRIVATE)
    assert load("privacy.delta=9.9e-5", text=PRIVATE).privacy.delta == 9.9e-5


def test_delta_is_checked_against_public_data_once_it_is_counted() -> None:
    experiment = load("privacy.delta=1e-3")
    experiment.require_delta_below(999)
    with pytest.raises(ConfigError, match="not below 1/1000"):
        experiment.require_delta_below(1000)


def test_a_batch_larger_than_the_declared_data_is_refused() -> None:
    assert "sampling rate cannot exceed 1" in refusal("training.batch_size=2001", text=PRIVATE)
    assert load("training.batch_size=2000", text=PRIVATE).training.batch_size == 2000
