"""DP-SGD inside a Hugging Face `Trainer`, with the guarantee of `PrivateTrainer`.

::

    trainer = Trainer(model=peft_model, args=arguments, train_dataset=rows, data_collator=collator)
    with Ledger.open("reviews.ledger", client_id="clinic", dataset_id="reviews",
                     partition_id="all", public=False) as ledger:
        privacy = PrivacyCallback(ledger=ledger, epsilon=3, delta=1e-5, declared_examples=10_000)
        privacy.attach(trainer)
        trainer.train()
        print(privacy.spent())

The Trainer keeps its loop, optimizer, scheduler, logs, evaluation and checkpoints. Three of its methods are
replaced: the data loader, which now yields nothing but turns; the step, which draws a secret Poisson batch, clips
and noises; and the log, from which everything that depends on private rows is left out. So the Trainer never
holds a private row, a loss or a gradient without noise: whatever it does is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from accounting import private_audit
from accounting.budget import Budget
from accounting.errors import AccountingError
from accounting.ledger import Ledger
from accounting.planning import require_delta_below
from accounting.private_audit import AttemptRecord, StepRecord
from fedlora_priv.errors import BudgetError, ConfigError, RunFolderError
from fedlora_priv.training.checks import StepCheck
from fedlora_priv.training.clipping import Clipping, Mode, per_example_clipping
from fedlora_priv.training.dpsgd import SecretNoiseOptimizer, make_optimizer
from fedlora_priv.training.engine import require_known
from fedlora_priv.training.examples import Batch
from fedlora_priv.training.fitting import refuse_unfit
from fedlora_priv.training.huggingface_refusals import refuse_model, refuse_settings
from fedlora_priv.training.huggingface_rows import (
    CollatedRows,
    as_texts,
    rounding_collator,
    rows_like,
    standard_task,
)
from fedlora_priv.training.losses import model_losses
from fedlora_priv.training.preflight import preflight
from fedlora_priv.training.sampling import poisson_draw
from fedlora_priv.training.spending import PrivacySpent, Spending
from fedlora_priv.training.trainer import step_record
from protocols.prg import SecretStream
from protocols.redaction import Redacted

ExampleLosses = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""Given the model to call and a collated microbatch, returns one loss per example, (n,)."""

# The norm is of the noised gradient. Whatever starts with eval_ is public too: see `public_evaluation`.
_PUBLIC_LOGS = ("learning_rate", "grad_norm", "epoch")


@dataclass
class _Run:
    """One call of ``train()``: what is trained, its account, its secrets, and what its steps did. PRIVATE."""

    trained: dict[str, nn.Parameter] = field(repr=False)
    spending: Spending
    stream: SecretStream
    noiser: SecretNoiseOptimizer = field(repr=False)
    records: list[StepRecord] = field(default_factory=list, repr=False)
    check: StepCheck | None = field(default=None, repr=False)
    verified: bool = False


class PrivacyCallback(Redacted, TrainerCallback, ExportableState):
    """Makes a `Trainer` train with DP-SGD: call `attach` before ``trainer.train()``; never copied or pickled.

    The `TrainingArguments` mean what they say, with these readings. ``per_device_train_batch_size`` is the
    *expected* size of a Poisson batch: each row is drawn with probability that size / `declared_examples`, and
    the sum of clipped gradients is divided by it. An epoch is ⌈declared_examples / batch size⌉ steps; ``max_steps``,
    if set, is the number of steps. The learning rate, schedule, optimizer, weight decay and ``max_grad_norm``
    apply to noised gradients. Dropout of the base model is off. Settings of the data loader are not used. A
    language model's loss is the mean over each row's own tokens, not over the batch's.

    Args:
        ledger: open, of the data that `trainer.train_dataset` holds; everything is charged to it.
        epsilon, delta: what everything that this ledger charges may come to, earlier runs included.
        declared_examples: the public number of rows; never counted from private rows.
        clip_norm: L2 bound of one example's gradient over all trained arrays together.
        clipping, mode, gradient_checkpointing: as in `StepSettings`.
        max_tokens_per_microbatch: padded tokens computed at once; bounds memory, not the batch.
        example_losses: one loss per example, a function of that example alone, in place of the cross-entropy.
        public_evaluation: declares the evaluation rows public and not among the training rows.
        private_audit_file: where to note what each step did, for the owner's own auditor. PRIVATE.
        stream: the secret randomness of batches and noise; for tests only, as a stream that was used before
            gives the same batches and noise again.

    Guarantee:
        (epsilon, delta)-DP under add/remove of one row, for whoever sees the model after each step, the
        checkpoints and the logs. ``train()`` does not begin, or go on, where the ledger has no room.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        epsilon: float,
        delta: float,
        declared_examples: int,
        clip_norm: float = 1.0,
        clipping: Clipping = "flat",
        mode: Mode = "auto",
        gradient_checkpointing: bool = False,
        max_tokens_per_microbatch: int = 2048,
        example_losses: ExampleLosses | None = None,
        public_evaluation: bool = False,
        private_audit_file: str | Path | None = None,
        stream: SecretStream | None = None,
    ) -> None:
        try:
            require_delta_below(delta, declared_examples)
            self._budget = Budget(epsilon, delta)
        except AccountingError as error:
            raise ConfigError(str(error)) from error
        if not (math.isfinite(clip_norm) and clip_norm > 0 and max_tokens_per_microbatch > 0):
            raise ConfigError("clip_norm and max_tokens_per_microbatch must be positive")
        require_known(clipping=clipping, mode=mode)
        self._ledger = ledger
        self._declared = declared_examples
        self._clip_norm = clip_norm
        self._clipping: Clipping = clipping
        self._mode: Mode = mode
        self._gradient_checkpointing = gradient_checkpointing
        self._max_tokens = max_tokens_per_microbatch
        self._example_losses = example_losses
        self._public_evaluation = public_evaluation
        self._audit_file = private_audit_file
        self._stream = stream
        self._trainer: Any = None
        self._rows: CollatedRows | None = None
        self._run: _Run | None = None

    def attach(self, trainer: Any) -> PrivacyCallback:
        """Make `trainer` train privately, and return this callback.

        Raises:
            ConfigError: something in the trainer would break the guarantee.
        """
        if self._trainer is not None:
            raise ConfigError("this callback belongs to a trainer already", "make one for each trainer")
        self._trainer = trainer
        self._refuse()
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        for name, method in self._own_methods().items():
            setattr(trainer, name, method)
        return self

    def spent(self) -> PrivacySpent:
        """Return what is charged by now; raises ConfigError before ``train()`` has begun."""
        return self._running().spending.spent(self._declared)

    # --- what the Trainer asks of its callbacks --------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, *_args: Any, **_kwargs: Any) -> None:
        """Check everything, plan the steps that remain, and charge nothing yet.

        Raises:
            ConfigError: private training is not possible.
            DataError: a row does not fit the model; it is not said which.
            BudgetError: it is not affordable, or the checkpoint's steps are not in this ledger.
        """
        if self._trainer is None:
            raise ConfigError(
                "this trainer has a PrivacyCallback that is not attached, so it would train without privacy",
                "call callback.attach(trainer) instead of trainer.add_callback(callback)",
            )
        self._require_in_place()
        trained, model = self._refuse(), self._trainer.model
        preflight(
            model, trained=trained, device=args.device, examples=rows_like(self._private_rows(), model),
            losses=self._losses, mode=self._mode, clipping=self._clipping,
            gradient_checkpointing=self._gradient_checkpointing,
        )  # fmt: skip
        refuse_unfit(model, as_texts(self._private_rows(), model))
        spending = Spending(self._ledger, self._budget, self._sample_rate, self._clip_norm)
        if state.global_step:
            spending.resume(_statement(state), state.global_step)
        left = state.max_steps - state.global_step
        noise_multiplier = spending.plan(left) if left > 0 else 0.0
        stream = SecretStream() if self._stream is None else self._stream
        noiser = SecretNoiseOptimizer(
            # It never steps: the Trainer's own optimizer does.
            make_optimizer("sgd", list(trained.values()), 1.0),
            stream=stream,
            noise_multiplier=noise_multiplier,
            clip_norm=self._clip_norm,
            planned_batch_size=float(args.per_device_train_batch_size),
        )
        self._run = _Run(trained, spending, stream, noiser)

    def on_pre_optimizer_step(self, *_args: Any, **kwargs: Any) -> None:
        """Before the first step that is to change anything, remember what there is."""
        self._require_in_place()
        run = self._running()
        # At the beginning of a warm-up the learning rate is 0, and nothing should change.
        if not run.verified and all(group["lr"] > 0 for group in kwargs["optimizer"].param_groups):
            run.check = StepCheck(self._trainer.model, run.trained)

    def on_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        """After that step, require that exactly what is trained has changed."""
        run = self._running()
        if run.check is not None:
            run.check.require_changes(noised=True)
            run.check, run.verified = None, True

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Commit the steps of a finished stretch, before the Trainer writes its checkpoint."""
        self._running().spending.after_step(self._note)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: which run, and how far the ledger was. Nothing secret or private."""
        ledger = {} if self._run is None else self._run.spending.statement()
        return {"args": {}, "attributes": {"ledger": ledger}}

    # --- what takes the place of the Trainer's own ---------------------------------------------------------

    def _turns(self) -> DataLoader[Any]:
        """Return a loader with as many empty batches as an epoch has steps: rows are drawn in the step."""
        self._refuse()
        own = type(self._trainer).get_train_dataloader(self._trainer)
        self._rows = CollatedRows(
            own.dataset,
            rounding_collator(own.collate_fn),
            "custom" if self._example_losses is not None else standard_task(self._trainer.model),
        )
        size = self._trainer.args.per_device_train_batch_size
        return DataLoader(range(self._declared), batch_size=size, collate_fn=lambda _: {})  # type: ignore[arg-type]  # a range is indexed too

    def _training_step(self, model: nn.Module, inputs: Any, num_items: Any = None) -> Tensor:  # noqa: ARG002  # the Trainer's call
        """Set every trained parameter's gradient to that of a fresh secret batch, noised; return a loss of 0."""
        run, device = self._running(), self._trainer.args.device
        run.spending.before_step(self._stretch())
        run.noiser.zero_grad()
        rows = self._private_rows()
        # As charged: the Trainer's arguments may have been changed since.
        drawn = rows.subset(poisson_draw(run.stream, len(rows), run.spending.sample_rate))
        counts = []
        with per_example_clipping(
            self._trainer.model,
            run.trained,
            mode=self._mode,
            clipping=self._clipping,
            gradient_checkpointing=self._gradient_checkpointing,
        ) as engine:
            for part in drawn.microbatches(self._max_tokens):
                losses = partial(self._losses, batch=part.collate(device))
                counts.append(engine.add(losses, self._clip_norm))
        sums = run.noiser.clipped_sums()
        run.noiser.add_noise()
        run.records.append(step_record(len(drawn), counts, sums, run.noiser))
        return torch.zeros((), device=device)

    def _log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what is public; at the end of training also what was spent."""
        trainer = self._trainer
        if trainer.is_in_train:
            finished = "train_loss" in logs
            for name in [n for n in logs if n not in _PUBLIC_LOGS and not n.startswith("eval_")]:
                del logs[name]
            if finished:
                spent = self.spent()
                logs.update(privacy_epsilon=spent.epsilon, privacy_delta=spent.delta)
        type(trainer).log(trainer, logs, *args, **kwargs)

    # --- helpers ---------------------------------------------------------------------------------------------

    @property
    def _sample_rate(self) -> float:
        """The probability with which each row joins a step."""
        return float(self._trainer.args.per_device_train_batch_size / self._declared)

    def _own_methods(self) -> dict[str, Callable[..., Any]]:
        """Return what takes the place of the trainer's methods, by their names."""
        return {
            "get_train_dataloader": self._turns,
            "training_step": self._training_step,
            "log": self._log,
        }

    def _require_in_place(self) -> None:
        """Raise ConfigError if somebody has replaced a method of the trainer once more."""
        for name, method in self._own_methods().items():
            if getattr(self._trainer, name) != method:
                raise ConfigError(
                    f"trainer.{name} was replaced after the PrivacyCallback was attached: private rows or raw "
                    "gradients would go past it",
                    "attach the callback last",
                )

    def _refuse(self) -> dict[str, nn.Parameter]:
        """Return what is trained. Raises ConfigError if settings or model would break the guarantee."""
        refuse_settings(
            self._trainer,
            own_losses=self._example_losses is not None,
            public_evaluation=self._public_evaluation,
        )
        if self._sample_rate > 1:
            size = self._trainer.args.per_device_train_batch_size
            raise ConfigError(
                f"per_device_train_batch_size {size} is above the {self._declared} declared examples",
                "lower it",
            )
        return refuse_model(self._trainer.model)

    def _stretch(self) -> int:
        """Return how many steps there are from here to the next checkpoint, or to the end."""
        args, state = self._trainer.args, self._trainer.state
        strategy, every = args.save_strategy, state.save_steps
        if strategy == "best":  # a checkpoint follows an evaluation
            strategy, every = args.eval_strategy, state.eval_steps
        if strategy == "epoch":
            every = math.ceil(self._declared / args.per_device_train_batch_size)
        left = int(state.max_steps - state.global_step)
        if strategy == "no" or every < 1:
            return left
        return min(left, int(every - state.global_step % every))

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return one loss per example of a microbatch."""
        if self._example_losses is None:
            return model_losses(model, batch)
        losses = self._example_losses(model, batch.inputs)
        if not isinstance(losses, Tensor) or losses.shape != (len(batch),):
            raise ConfigError("example_losses must return one loss per example, of shape (n,)")
        return losses

    def _private_rows(self) -> CollatedRows:
        """Return what batches are drawn from."""
        if self._rows is None:
            raise ConfigError("the trainer has not begun to train")
        return self._rows

    def _running(self) -> _Run:
        """Return the run in progress, or the last one."""
        if self._run is None:
            raise ConfigError("nothing has been trained yet", "call trainer.train() first")
        return self._run

    def _note(self, number: int, reservation: int) -> str | None:
        """Note a stretch's steps for the owner's own auditor, if asked to, and return the note's digest."""
        run = self._running()
        steps, run.records = tuple(run.records), []
        if self._audit_file is None:
            return None
        dimension = sum(parameter.numel() for parameter in run.trained.values())
        record = AttemptRecord(
            self._ledger.client_id,
            run.spending.run,
            number,
            reservation,
            len(self._private_rows()),
            dimension,
            steps,
        )
        try:
            return private_audit.append(self._audit_file, record)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self._audit_file} ({error.strerror})", "free some space"
            ) from error


def _statement(state: Any) -> Mapping[str, Any]:
    """Return what a resumed checkpoint says of its ledger. Raises BudgetError if it says nothing."""
    saved = (state.stateful_callbacks or {}).get(PrivacyCallback.__name__)
    ledger = saved.get("attributes", {}).get("ledger") if isinstance(saved, dict) else None
    if not ledger:
        raise BudgetError(
            "the checkpoint says nothing of a ledger, so what its steps released is unknown",
            "resume from one that a PrivacyCallback was attached to, or begin a new run",
        )
    return ledger  # type: ignore[no-any-return]  # from JSON; only compared
