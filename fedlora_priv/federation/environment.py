"""What a client's steps are, and on what they run: for training, and in words for plans, runs and reports."""

from __future__ import annotations

import torch

from accounting.planning import Plan
from fedlora_priv.config import Experiment
from fedlora_priv.methods import Role
from fedlora_priv.training import PrivateTrainer, StepSettings


def step_settings(experiment: Experiment, plan: Plan) -> StepSettings:
    """Return the public constants of a client's steps in its first round."""
    training = experiment.training
    return StepSettings(
        steps=plan.steps_per_round,
        sample_rate=plan.sample_rate,
        planned_batch_size=plan.planned_batch_size,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=plan.clip_norm,
        learning_rate=training.learning_rate,
        optimizer=training.optimizer,
        max_tokens_per_microbatch=training.max_tokens_per_microbatch,
        clipping="per-layer" if training.clipping == "per-layer" else "flat",
        adaptive=plan.adaptive_clip,
        mode=training.per_example,
        gradient_checkpointing=training.gradient_checkpointing,
    )


def environment(
    experiment: Experiment, trainer: PrivateTrainer, settings: StepSettings, trains: frozenset[Role]
) -> dict[str, str]:
    """Return device, precision of the frozen weights, and the ways of clipping.

    Args:
        experiment: what was asked for.
        trainer: which knows what that comes to on this machine and this model.
        settings: of the steps; any client's, as what is said here is the same for all.
        trains: the roles that the method trains.
    """
    choice = trainer.engine(settings, trains)
    return {
        "device": _device(trainer.device),
        "base_precision": experiment.model.base_dtype,
        "clipping": experiment.training.clipping,
        "per_example": f"{choice.name}: {choice.reason}",
        "gradient_checkpointing": "on" if settings.gradient_checkpointing else "off",
    }


def _device(device: torch.device) -> str:
    """Return a device, a GPU with its model."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
