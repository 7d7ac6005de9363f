"""A `Trainer`'s own rows and data collator, seen as the `Examples` that private training takes.

The collator pads one microbatch at a time, so what it does to one row must not depend on the others: `preflight`
asks that of made-up rows, which look like the data set's and hold nothing of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_priv.errors import ConfigError, DataError
from fedlora_priv.training.batching import WIDTH_STEP, microbatches
from fedlora_priv.training.examples import Batch, Indices, TokenisedExamples

Row = Mapping[str, Any]
Collator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
Task = Literal["classification", "language-modelling", "custom"]

_LABELS = ("label", "labels", "label_ids")
_PACKED = {"position_ids", "seq_lengths", "cu_seq_lens_q"}
_ONE_WIDTH, _ONE_LENGTH = (3, 7, 5), (7, 7, 7)  # made-up rows that training could put into one microbatch
_IGNORED = -100  # the label of a token that does not count
_OWN_LOSS = "pass example_losses, a function that gives one loss per example"


@dataclass(frozen=True)
class CollatedRows:
    """Rows of a data set, batched by a data collator.

    Args:
        rows: indexable; every row has ``input_ids`` of its own length.
        collator: makes a batch of a list of rows; each tensor's first dimension is the rows.
        task: "classification" (labels (n,)), "language-modelling" (labels (n, tokens), -100 where a token does
            not count), or "custom": everything is left among the inputs.
    """

    rows: Sequence[Row] = field(repr=False)
    collator: Collator
    task: Task

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Indices) -> CollatedRows:
        """Return the rows at `indices`, in that order."""
        return CollatedRows([self.rows[int(i)] for i in indices], self.collator, self.task)

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of each row, int64 (n,)."""
        return np.array([len(row["input_ids"]) for row in self.rows], dtype=np.int64)

    def microbatches(self, max_tokens: int) -> Iterator[CollatedRows]:
        """Yield the rows in parts of at most `max_tokens` padded tokens; see `batching.microbatches`.

        A row's padded width must be its own, whoever else was drawn. So where the collator does not round widths
        up, a part holds rows of one exact length.
        """
        lengths = self.lengths()
        for group in microbatches(lengths, max_tokens):
            parts = [group]
            if not _rounds(self.collator):
                parts = [group[lengths[group] == length] for length in np.unique(lengths[group])]
            yield from map(self.subset, parts)

    def collate(self, device: torch.device) -> Batch:
        """Return all of these rows in one batch on `device`.

        Raises:
            DataError: the collator does not give one row for each row, or gives labels of another task.
        """
        collated = self.collator([dict(row) for row in self.rows])
        inputs = {name: value.to(device) for name, value in collated.items() if isinstance(value, Tensor)}
        for name, value in inputs.items():
            if value.dim() == 0 or len(value) != len(self):
                raise DataError(
                    f"the data collator gives {name} another number of rows than it was given",
                    "rows must stay apart: use a collator that pads and does not pack or flatten",
                )
        if self.task == "custom":
            return Batch(inputs)
        labels = inputs.pop("labels", None)
        if labels is None or labels.is_floating_point() or "shift_labels" in inputs:
            raise DataError(
                "the data collator gives no labels, or none that are classes or tokens", _OWN_LOSS
            )
        if self.task == "classification" and labels.dim() == 1:
            return Batch(inputs, labels=labels.long())
        if self.task == "language-modelling" and labels.dim() == 2:
            return Batch(inputs, targets=_counted(labels, inputs["input_ids"]))
        raise DataError(f"labels of {labels.dim()} dimensions do not go with {self.task}", _OWN_LOSS)


def _counted(labels: Tensor, input_ids: Tensor) -> Tensor:
    """Return which tokens are to be predicted, bool (n, tokens); the first has nothing before it."""
    counted = labels != _IGNORED
    if labels.shape != input_ids.shape or not bool((labels == input_ids)[counted].all()):
        raise DataError("labels of a language model must be its own tokens, or -100", _OWN_LOSS)
    counted[:, 0] = False
    return counted


def rounding_collator(collator: Collator) -> Collator:
    """Return the collator, or where it can round padded widths up a copy that does, to multiples of `WIDTH_STEP`."""
    changed = copy.copy(collator)
    if hasattr(collator, "data_collator"):  # the Trainer's wrapper, which drops columns
        changed.data_collator = rounding_collator(collator.data_collator)  # type: ignore[attr-defined]  # hasattr says so
    elif hasattr(collator, "pad_to_multiple_of") and not _rounds(collator):
        changed.pad_to_multiple_of = WIDTH_STEP  # type: ignore[attr-defined]  # hasattr says so
    return changed


def _rounds(collator: Any) -> bool:
    """Return whether a collator makes widths multiples of `WIDTH_STEP`."""
    inner = getattr(collator, "data_collator", collator)
    multiple = getattr(inner, "pad_to_multiple_of", None)
    return multiple is not None and multiple % WIDTH_STEP == 0


def standard_task(model: Any) -> Task:
    """Return which cross-entropy a PEFT model is trained with: of its classes, or of the next token.

    Raises:
        ConfigError: neither; then the caller has to give the losses.
    """
    base = model.get_base_model()
    if type(base).__name__.endswith(("LMHeadModel", "ForCausalLM")):
        return "language-modelling"
    kind = getattr(base.config, "problem_type", None)
    if base.config.num_labels < 2 or kind not in (None, "single_label_classification"):
        raise ConfigError(
            "the standard loss is that of one class out of two or more, or of the next token", _OWN_LOSS
        )
    return "classification"


def rows_like(rows: CollatedRows, model: Any) -> CollatedRows:
    """Return three made-up rows that go through the same collator, for `preflight`.

    Of a row of the data set they have the columns' names and types, of no column a value.

    Raises:
        DataError: there are no rows, or they are not tokenised.
        ConfigError: a column for which nothing can be made up, or that says that rows are packs of texts.
    """
    if len(rows) == 0:
        raise DataError("the train_dataset is empty")
    kept = getattr(
        rows.collator, "signature_columns", rows.rows[0]
    )  # the Trainer's collator drops the others
    template = {name: value for name, value in rows.rows[0].items() if name in kept}
    if "input_ids" not in template:
        raise DataError("the rows have no input_ids", "tokenise them first, without padding")
    if packed := sorted(_PACKED & set(template)):
        raise ConfigError(
            f"the column {packed[0]} says that a row is a pack of several texts, which would be the unit of privacy",
            "train on rows that are not packed",
        )
    vocabulary = np.arange(model.get_base_model().config.vocab_size)
    tokens, generator = np.delete(vocabulary, _padding(model)), np.random.default_rng(1)
    lengths = _ONE_WIDTH if _rounds(rows.collator) else _ONE_LENGTH
    texts = [generator.choice(tokens, length).tolist() for length in lengths]
    made_up = [
        {name: _made_up(name, template, ids, number) for name in template} for number, ids in enumerate(texts)
    ]
    return CollatedRows(made_up, rows.collator, rows.task)


def as_texts(rows: CollatedRows, model: Any) -> TokenisedExamples:
    """Return the rows' tokens, and their classes where the task has them, for `fitting.refuse_unfit`."""
    ids = tuple(np.asarray(row["input_ids"], dtype=np.int64) for row in rows.rows)
    column = next((name for name in _LABELS if name in rows.rows[0]), None)
    classes = None
    if rows.task == "classification" and column is not None:
        classes = np.array([int(row[column]) for row in rows.rows], dtype=np.int64)
    return TokenisedExamples(ids, classes, _padding(model))


def _padding(model: Any) -> int:
    """Return the token that a PEFT model takes for padding; the first one if it has none."""
    pad = model.get_base_model().config.pad_token_id
    return pad if isinstance(pad, int) else 0


def _made_up(name: str, template: Row, ids: list[int], number: int) -> Any:
    """Return a value for one column of a made-up row."""
    if name == "input_ids":
        return ids
    value = np.asarray(template[name])
    if value.ndim == 0 and value.dtype.kind in "biuf":
        made_up = number % 2 if name in _LABELS else 0
        return float(made_up) if value.dtype.kind == "f" else made_up
    if value.ndim == 1 and len(value) == len(template["input_ids"]):
        return {"attention_mask": [1] * len(ids), "labels": list(ids)}.get(name, [0] * len(ids))
    raise ConfigError(
        f"the data set's column {name!r} is neither one number for each row nor one for each token",
        "remove it from the data set",
    )
