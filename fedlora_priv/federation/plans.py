"""Who trains with how much noise: each client's plan, from public numbers and its epsilon target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from accounting.adaptive_clip import AdaptiveClip
from accounting.budget import Budget
from accounting.errors import AccountingError, BudgetExceeded
from accounting.events import PrivateEvent
from accounting.planning import ClientEvent, Plan, plan
from fedlora_priv.config import Experiment
from fedlora_priv.errors import BudgetError, ConfigError

CLIP_NORM_RANGE = 1e3
"""An adaptive clip norm stays within this factor of where it began."""

COUNT_NOISE_SHARE = 1 / 20
"""Of the planned batch: the standard deviation of the noise on counts, as in Andrew et al. 2021, section 3.1."""


def plan_clients(experiment: Experiment, sizes: Mapping[str, int]) -> dict[str, Plan]:
    """Return every client's plan, calibrated over the whole number of steps it will take.

    Args:
        experiment: the experiment file.
        sizes: public number of examples of each client: declared, or true where the data is public.

    Raises:
        ConfigError: δ is not below one over all examples, a batch is larger than a client's data, or no
            noise reaches the target.
    """
    experiment.require_delta_below(sum(sizes.values()))
    training, privacy, federation = experiment.training, experiment.privacy, experiment.federation
    for client_id, examples in sizes.items():
        if training.batch_size > examples:
            raise ConfigError(
                f"training.batch_size = {training.batch_size} is above the {examples} examples of {client_id}: a "
                "sampling rate cannot exceed 1",
                "lower it, or take fewer clients",
            )
    try:
        return {
            client_id: plan(
                client_id=client_id,
                target_epsilon=privacy.epsilon,
                delta=privacy.delta,
                declared_examples=examples,
                planned_batch_size=training.batch_size,
                rounds=federation.rounds,
                retry_rounds=privacy.retry_rounds,
                steps_per_round=federation.local_steps,
                clip_norm=training.clip_norm,
                adaptive_clip=adaptive_clip(experiment),
            )
            for client_id, examples in sizes.items()
        }
    except AccountingError as error:
        raise ConfigError(str(error)) from error


def adaptive_clip(experiment: Experiment) -> AdaptiveClip | None:
    """Return the public constants by which clip norms follow noised counts; None where they are constant."""
    training = experiment.training
    if training.clipping != "adaptive":
        return None
    return AdaptiveClip(
        target_quantile=training.target_quantile,
        learning_rate=training.clip_learning_rate,
        count_noise_stddev=training.count_noise_stddev or training.batch_size * COUNT_NOISE_SHARE,
        smallest_clip_norm=training.clip_norm / CLIP_NORM_RANGE,
        largest_clip_norm=training.clip_norm * CLIP_NORM_RANGE,
    )


def whole_run(client_plan: Plan) -> ClientEvent:
    """Return the event of all rounds that are planned, without the reserve for retries."""
    return replace(client_plan.round_event(), steps=client_plan.rounds * client_plan.steps_per_round)


def require_room(client_plan: Plan, spent: Iterable[PrivateEvent], limit: float) -> None:
    """Raise unless the client's ledger has room for all rounds of a run that has not begun.

    Args:
        client_plan: of the run.
        spent: what the ledger of the client's data has charged in earlier runs.
        limit: the ε that the whole ledger may reach.

    Raises:
        BudgetError: earlier runs on the same data have spent too much of it.
    """
    try:
        Budget(limit, client_plan.delta).require_events(spent, whole_run(client_plan))
    except BudgetExceeded as error:
        raise BudgetError(
            f"{client_plan.client_id} cannot afford this run: earlier runs on the same dataset have "
            f"spent part of its lifetime limit of ε {limit:g}, and this run would bring it to "
            f"{error.epsilon:.2f}",
            f"set privacy.lifetime_epsilon = {limit:g} and lower privacy.epsilon below what is "
            "left, or raise the limit knowingly",
        ) from error
