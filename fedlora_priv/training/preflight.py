"""Does this model, on this machine, give the per-example gradients that DP-SGD needs? Asked at no budget.

Two questions, on made-up token ids and random adapters: are the hooks' gradients those of each example
computed alone, and does an example's gradient stay the same when its companions change?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.methods.base import State
from fedlora_priv.training.examples import Examples, TokenisedExamples
from fedlora_priv.training.hooks import per_example_gradients
from fedlora_priv.training.losses import BatchLosses, model_losses

TOLERANCE = 1e-3
_LENGTHS = (3, 14, 5)  # of two padded widths, so that padding that counts shows
_APART = (5, 29, 11)  # padding to very different widths brings rounding out


@dataclass(frozen=True)
class PreflightReport:
    """Largest relative differences seen, each over the largest gradient entry of its array.

    Attributes:
        brute_force_error: between the hooks' gradients and each example's computed alone.
        companion_error: between one example's gradients in the company of a longer and of another example.
        arrays: number of trainable arrays compared.
    """

    brute_force_error: float
    companion_error: float
    arrays: int


def preflight(
    model: Any,
    *,
    device: str | torch.device = "cpu",
    examples: Examples | None = None,
    losses: BatchLosses = model_losses,
) -> PreflightReport:
    """Return how exact the model's per-example gradients are; its state is as before afterwards.

    Args:
        model: a PEFT model, as `modeling.load_model` gives it.
        device: where to compute; the model is moved there.
        examples: three or more public examples of different lengths; by default made up from the vocabulary.
        losses: what is differentiated.

    Raises:
        ConfigError: a difference above `TOLERANCE`: DP-SGD on this model would not do what is claimed.
    """
    device = torch.device(device)
    model.to(device)
    start = read_state(model)
    examples = examples or _made_up(model)
    try:
        # B = 0 would make every gradient of A zero, and any comparison of them succeed.
        generator = np.random.default_rng(0)
        write_state(
            model, {k: generator.normal(0, 0.05, v.shape).astype(np.float32) for k, v in start.items()}
        )
        parameters = trainable_parameters(model)
        pair = _by_hooks(model, parameters, examples.subset([0, 1]), device, losses)
        other = _by_hooks(model, parameters, examples.subset([2, 0]), device, losses)
        alone = [_alone(model, parameters, examples.subset([i]), device, losses) for i in (0, 1)]
    finally:
        write_state(model, start)
    report = PreflightReport(
        brute_force_error=max(_difference(pair, i, alone[i]) for i in (0, 1)),
        companion_error=_difference(pair, 0, {name: rows[1] for name, rows in other.items()}),
        arrays=len(parameters),
    )
    for what, error in (("differ from brute force", report.brute_force_error),
                        ("depend on the other examples of the batch", report.companion_error)):  # fmt: skip
        if not error <= TOLERANCE:
            raise ConfigError(
                f"this model's per-example gradients {what} ({error:.1e}): clipping would not bound them",
                "use another model or other target modules",
            )
    return report


def coupling(model: Any, state: State, *, device: str | torch.device = "cpu") -> float:
    """Return how much an example's gradient at `state` depends on its companions, relative L2; nan if not finite.

    DP-SGD's sensitivity rests on clipped gradients that do not depend on other examples. That holds up to
    rounding, and a state with enormous entries, such as a hostile server could send, amplifies rounding (of
    padding, of batch shapes) up to the size of the gradient itself. Asked on made-up tokens: no private data.
    """
    device = torch.device(device)
    start = read_state(model)
    examples, parameters = _made_up(model, _APART), trainable_parameters(model)
    try:
        write_state(model, state)
        pair = _by_hooks(model, parameters, examples.subset([0, 1]), device)
        other = _by_hooks(model, parameters, examples.subset([2, 0]), device)
    finally:
        write_state(model, start)
    first = torch.cat([rows[0].flatten() for rows in pair.values()]).double()
    second = torch.cat([rows[1].flatten() for rows in other.values()]).double()
    difference, size = float((first - second).norm()), float(torch.maximum(first.norm(), second.norm()))
    return difference / size if difference != 0 else 0.0


def _made_up(model: Any, lengths: tuple[int, ...] = _LENGTHS) -> TokenisedExamples:
    """Return three examples of random tokens and different lengths, with labels if the model has classes."""
    config = model.get_base_model().config
    generator = np.random.default_rng(1)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    tokens = np.delete(np.arange(config.vocab_size), pad)
    ids = tuple(generator.choice(tokens, length).astype(np.int64) for length in lengths)
    is_generative = type(model.get_base_model()).__name__.endswith(("LMHeadModel", "ForCausalLM"))
    return TokenisedExamples(ids, None if is_generative else np.array([0, 1, 1], dtype=np.int64), pad)


def _by_hooks(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Examples,
    device: torch.device,
    losses: BatchLosses = model_losses,
) -> dict[str, Tensor]:
    """Return the per-example gradients by Opacus' hooks, (n, *shape) each."""
    with per_example_gradients(model, parameters) as hooked:
        losses(hooked, examples.collate(device)).sum().backward()  # type: ignore[no-untyped-call]
        samples: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            sample = getattr(parameter, "grad_sample", None)
            if not isinstance(sample, Tensor):
                raise ConfigError(f"{name} got no per-example gradient", "use other target modules")
            samples[name] = sample.detach()
    return samples


def _alone(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    example: Examples,
    device: torch.device,
    losses: BatchLosses,
) -> dict[str, Tensor]:
    """Return one example's gradients by plain autograd, unpadded and alone."""
    model.eval()
    required = {name: p.requires_grad for name, p in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(
            losses(model, example.collate(device)).sum(), list(parameters.values())
        )
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(required[name])
    return dict(zip(parameters, gradients, strict=True))


def _difference(rows: Mapping[str, Tensor], row: int, reference: Mapping[str, Tensor]) -> float:
    """Return the worst array's largest difference over its largest gradient; nan if a gradient is zero."""
    worst = 0.0
    for name, gradient in reference.items():
        scale = float(gradient.abs().max()) or float("nan")
        worst = max(worst, float((rows[name][row] - gradient).abs().max()) / scale, key=lambda e: (e != e, e))
    return worst
