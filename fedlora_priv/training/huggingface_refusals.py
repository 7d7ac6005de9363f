"""What in a `Trainer` would break the guarantee, or would silently do nothing, one line each.

Settings are read by name with a default, because `TrainingArguments` gain and lose fields from release to release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from fedlora_priv.adapters import trainable_parameters
from fedlora_priv.errors import ConfigError
from fedlora_priv.modeling import refuse_batch_norm
from fedlora_priv.training.refusals import refuse_gradient_hooks, require_peft

# A subclass that overrides one of these does something in a step that is replaced here, or sees private rows.
_REPLACED = ("training_step", "get_train_dataloader", "get_batch_samples", "_inner_training_loop")

_Rule = tuple[Callable[[Any], object], str, str]


def _set(name: str, *harmless: object) -> Callable[[Any], bool]:
    """Return a test of the trainer's arguments: is `name` there and none of the `harmless` values?"""
    return lambda trainer: getattr(trainer.args, name, None) not in (None, *harmless)


def _value(setting: Any) -> str:
    """Return an enum's or a string's text."""
    return str(getattr(setting, "value", setting))


_RULES: tuple[_Rule, ...] = (
    (
        _set("gradient_accumulation_steps", 1),
        "gradient_accumulation_steps must be 1: a Poisson batch is one step, cut into microbatches by itself",
        "raise per_device_train_batch_size instead; it costs no memory",
    ),
    (
        lambda trainer: trainer.args.world_size > 1 or trainer.args.n_gpu > 1,
        "training runs in several processes or on several devices",
        "use one: the others would draw, clip and noise batches of their own (CUDA_VISIBLE_DEVICES=0)",
    ),
    (
        lambda trainer: trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled,
        "DeepSpeed and FSDP take gradients before they are clipped and noised",
        "train without them",
    ),
    (
        # The environment can ask for it too, behind the arguments' back.
        lambda trainer: trainer.args.fp16 or trainer.args.bf16 or trainer.accelerator.mixed_precision != "no",
        "fp16 and bf16 would round per-example gradients and noise",
        "switch them off; only the frozen base may be loaded in a narrower type",
    ),
    (
        _set("label_smoothing_factor", 0, 0.0),
        "label_smoothing_factor is not applied to per-example losses",
        "set it to 0, or smooth in example_losses",
    ),
    (
        _set("neftune_noise_alpha"),
        "NEFTune adds noise to embeddings in training mode only, in which no model is here",
        "unset neftune_noise_alpha",
    ),
    (
        _set("train_sampling_strategy", "random"),
        "train_sampling_strategy asks for another order: batches are secret Poisson draws, sorted by length inside",
        'use "random"',
    ),
    (
        _set("group_by_length", False),
        "group_by_length chooses batches by the private lengths of rows",
        "unset it: drawn rows are sorted by length anyway",
    ),
    (
        _set("auto_find_batch_size", False),
        "auto_find_batch_size starts again with another batch, which no plan foresees",
        "unset it and lower max_tokens_per_microbatch if memory is short",
    ),
    (
        _set("include_num_input_tokens_seen", False, "no"),
        "include_num_input_tokens_seen counts the tokens of drawn rows, which are private",
        'set it to "no"',
    ),
    (
        _set("restore_callback_states_from_checkpoint", False),
        "restore_callback_states_from_checkpoint would replace the callback by a copy without its ledger",
        "unset it",
    ),
    (
        _set("torch_compile", False),
        "torch_compile is not used: per-example gradients come from the plain modules",
        "unset it",
    ),
    (
        _set("use_liger_kernel", False),
        "use_liger_kernel replaces the layers whose per-example gradients are known",
        "unset it",
    ),
    (
        lambda trainer: any(kind in _value(trainer.args.optim) for kind in ("lomo", "layerwise")),
        "this optimizer updates weights during the backward pass, before the gradient is clipped and noised",
        'use another, such as optim = "adamw_torch"',
    ),
    (
        lambda trainer: any(
            getattr(trainer.args, name, False) for name in ("gradient_checkpointing", "activation_checkpointing")
        ),
        "the Trainer's gradient checkpointing can lose per-example gradients",
        "unset it and pass gradient_checkpointing=True to PrivacyCallback",
    ),
    (
        _set("debug", "", []),
        "debug prints what private rows make of the activations",
        "unset it",
    ),
    (
        lambda trainer: trainer.model_init is not None,
        "model_init makes another model after this one was checked, and searches what no ledger is charged for",
        "pass the model itself",
    ),
    (
        lambda trainer: trainer.train_dataset is None or isinstance(trainer.train_dataset, IterableDataset),
        "every row must be drawn with the same probability, which needs a train_dataset with a length and an index",
        "load the rows instead of streaming them",
    ),
)  # fmt: skip


def refuse_settings(trainer: Any, *, own_losses: bool, public_evaluation: bool) -> None:
    """Raise ConfigError if the trainer is set up for something that private training cannot do.

    Args:
        trainer: a `transformers.Trainer`.
        own_losses: whether the caller gave a loss per example.
        public_evaluation: whether the caller declared the evaluation rows public.
    """
    for is_broken, what, remedy in _RULES:
        if is_broken(trainer):
            raise ConfigError(what, remedy)
    _refuse_overrides(trainer, own_losses)
    args = trainer.args
    evaluates = _value(args.eval_strategy) != "no" or args.eval_on_start or args.load_best_model_at_end
    if evaluates and not public_evaluation:
        raise ConfigError(
            "evaluation during training releases facts about its rows, outside the guarantee",
            "pass public_evaluation=True if they are public and not part of the training data, or do not evaluate",
        )


def refuse_model(model: Any) -> dict[str, nn.Parameter]:
    """Return what is trained, by state name in sorted order.

    Raises:
        ConfigError: the model is no PEFT model with LoRA in float32, mixes examples, uses LoRA dropout, or hands
            raw gradients to a hook.
    """
    require_peft(model)
    refuse_batch_norm(model)
    trained = {name: p for name, p in trainable_parameters(model).items() if p.requires_grad}
    if not trained:
        raise ConfigError("nothing in the model requires a gradient", "unfreeze the adapter")
    for config in model.peft_config.values():
        if getattr(config, "lora_dropout", 0):
            raise ConfigError("lora_dropout must be 0 under DP-SGD (the noise regularises)", "remove it")
    for name, parameter in trained.items():
        if str(parameter.dtype) != "torch.float32":
            raise ConfigError(f"{name} is {parameter.dtype}, too coarse for noise", "keep adapters float32")
    refuse_gradient_hooks(model, trained)
    return trained


def _refuse_overrides(trainer: Any, own_losses: bool) -> None:
    """Raise if a subclass or an argument of the trainer does what would now be left out."""
    from transformers import Trainer

    for name in _REPLACED:
        if getattr(type(trainer), name, None) is not getattr(Trainer, name, None):
            raise ConfigError(
                f"{type(trainer).__name__}.{name} is replaced by a private step, and would not run",
                "use the plain Trainer; what a step computes goes into example_losses",
            )
    if own_losses:
        return
    if type(trainer).compute_loss is not Trainer.compute_loss or trainer.compute_loss_func is not None:
        raise ConfigError(
            "this trainer has a loss of its own, one for the batch",
            "pass example_losses, which gives one for each example",
        )
