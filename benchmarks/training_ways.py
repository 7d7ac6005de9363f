"""One training step in every way that is compared: ours, Opacus', and plain PEFT training.

A way is built on a `Setup`, with a model of its own, and gives a function that takes one step on all of the setup's
examples. Dropout is 0 in all of them, and all use Adam. They differ in how the examples are batched (`micro`:
microbatches of similar length, as ours; `ordinary`: shuffled and padded to the longest, as a `DataLoader` does) and
in whether and how each example's gradient is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedlora_priv.adapters import read_state
from fedlora_priv.precision import BaseDtype, has_bfloat16
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from fedlora_priv.training.batching import microbatches
from fedlora_priv.training.clipping import Mode
from fedlora_priv.training.examples import Batch
from fedlora_priv.training.losses import example_losses
from protocols.prg import SecretStream

Step = Callable[[], object]
CLIP_NORM, NOISE, RATE = 1.0, 1.0, 1e-3
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """What is trained on what.

    Args:
        build: returns a fresh PEFT model with its base in a dtype ("float32" or "bfloat16").
        examples: of one step.
        max_tokens: padded tokens of a microbatch.
    """

    build: Callable[[BaseDtype], Any] = field(repr=False)
    examples: TokenisedExamples
    max_tokens: int = 2048
    device: torch.device = _CPU

    def model(self, dtype: BaseDtype) -> Any:
        """Return a fresh model on the device, without dropout."""
        model = self.build(dtype).to(self.device)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    def micro(self) -> Iterator[Batch]:
        """Yield the examples in microbatches of similar length."""
        for indices in microbatches(self.examples.lengths(), self.max_tokens):
            yield self.examples.subset(indices).collate(self.device)


def dtypes(device: torch.device) -> tuple[BaseDtype, ...]:
    """Return the precisions of a frozen base that the device computes by instructions of its own."""
    return ("float32", "bfloat16") if has_bfloat16(device) else ("float32",)


def ours(setup: Setup, dtype: BaseDtype, *, mode: Mode = "auto", checkpointing: bool = False) -> Step:
    """Return a private step by this project: a whole `PrivateTrainer.train` of one step, hooks, noise and all."""
    model = setup.model(dtype)
    trainer, start = PrivateTrainer(model, device=setup.device), read_state(model)
    settings = StepSettings(
        steps=1,
        sample_rate=1.0,
        planned_batch_size=max(1, len(setup.examples)),
        noise_multiplier=NOISE,
        clip_norm=CLIP_NORM,
        learning_rate=RATE,
        optimizer="adam",
        max_tokens_per_microbatch=setup.max_tokens,
        mode=mode,
        gradient_checkpointing=checkpointing,
    )
    return lambda: trainer.train(setup.examples, start, settings, stream=SecretStream())


def plain(setup: Setup, dtype: BaseDtype) -> Step:
    """Return a step without clipping and noise on the same microbatches: what privacy is measured against."""
    model = setup.model(dtype)
    optimizer = adam(model)

    def step() -> None:
        for batch in setup.micro():
            _backward(example_losses(model(**batch.inputs).logits, batch).sum() / len(setup.examples))
        optimizer.step()
        optimizer.zero_grad()

    return step


def ordinary(setup: Setup, dtype: BaseDtype, *, batch_size: int) -> Step:
    """Return one pass over the examples as PEFT users train; see `ordinary_training`."""
    model = setup.model(dtype)
    optimizer = adam(model)
    return lambda: sum(ordinary_training(setup, model, optimizer, batch_size))


def ordinary_training(
    setup: Setup, model: Any, optimizer: torch.optim.Optimizer, batch_size: int
) -> Iterator[int]:
    """Take one pass over the examples and yield the size of each batch after its step.

    A shuffled `DataLoader`, each batch padded to its longest: what PEFT users run.
    """

    def collate(indices: list[int]) -> Batch:
        part = setup.examples.subset(indices)
        batch, longest = part.collate(setup.device), int(part.lengths().max())  # collate rounds the width up
        inputs = {name: tensor[:, :longest] for name, tensor in batch.inputs.items()}
        return Batch(inputs, batch.labels, None if batch.targets is None else batch.targets[:, :longest])

    model.train()
    loader: DataLoader[Batch] = DataLoader(
        range(len(setup.examples)),  # type: ignore[arg-type]  # any sized sequence will do
        batch_size=batch_size,
        shuffle=True,
        collate_fn=collate,
    )
    for batch in loader:
        _backward(example_losses(model(**batch.inputs).logits, batch).mean())
        optimizer.step()
        optimizer.zero_grad()
        yield len(batch)


def opacus_hooks(setup: Setup, dtype: BaseDtype) -> Step:
    """Return a step by Opacus' `GradSampleModule` and `DPOptimizer`, a large batch cut as its documentation does."""
    model = GradSampleModule(setup.model(dtype)).train()
    optimizer = DPOptimizer(
        adam(model),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(setup.examples),
    )

    def backward(batch: Batch) -> None:
        _backward(example_losses(model(**batch.inputs).logits, batch).mean())

    return lambda: _opacus_step(setup, optimizer, backward)


def opacus_ghost(setup: Setup, dtype: BaseDtype) -> Step:
    """Return a step by Opacus' ghost clipping, a large batch cut as its documentation does."""
    model = GradSampleModuleFastGradientClipping(setup.model(dtype), max_grad_norm=CLIP_NORM).train()
    optimizer = DPOptimizerFastGradientClipping(
        adam(model),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(setup.examples),
    )
    criterion = DPLossFastGradientClipping(model, optimizer, _ExampleLosses())

    def backward(batch: Batch) -> None:
        criterion(model(**batch.inputs).logits, batch).backward()

    return lambda: _opacus_step(setup, optimizer, backward)


class _ExampleLosses:
    """`example_losses` with the attribute that Opacus' wrapper sets and reads."""

    reduction = "mean"

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        return example_losses(logits, batch)


def _opacus_step(setup: Setup, optimizer: DPOptimizer, backward: Callable[[Batch], None]) -> None:
    """Take one logical step over all microbatches, as `BatchMemoryManager` does: skip all steps but the last."""
    batches = list(microbatches(setup.examples.lengths(), setup.max_tokens))
    for number, indices in enumerate(batches, start=1):
        backward(setup.examples.subset(indices).collate(setup.device))
        optimizer.signal_skip_step(do_skip=number < len(batches))
        optimizer.step()
        optimizer.zero_grad()


def adam(model: Any, rate: float = RATE) -> torch.optim.Optimizer:
    """Return Adam over what is trained."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)


def _backward(loss: Tensor) -> None:
    """Run the backward pass."""
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


WAYS: dict[str, Callable[[Setup, BaseDtype], Step]] = {
    "ours": ours,
    "ours, direct": lambda setup, dtype: ours(setup, dtype, mode="direct"),
    "ours, hooks": lambda setup, dtype: ours(setup, dtype, mode="hooks"),
    "ours, ghost": lambda setup, dtype: ours(setup, dtype, mode="ghost"),
    "ours, checkpointing": lambda setup, dtype: ours(setup, dtype, checkpointing=True),
    "plain, same microbatches": plain,
    "Opacus, GradSampleModule": opacus_hooks,
    "Opacus, ghost clipping": opacus_ghost,
    "PEFT, shuffled batches of 256": lambda setup, dtype: ordinary(setup, dtype, batch_size=256),
    "PEFT, shuffled batches of 32": lambda setup, dtype: ordinary(setup, dtype, batch_size=32),
}
"""Every way by its name in the tables."""
