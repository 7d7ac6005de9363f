"""Datasets of the Hugging Face hub by name, with a quick and clear refusal when it cannot be reached."""

from __future__ import annotations

import re
from typing import Any

from fedlora_priv.data.tables import Columns, RawLabel, Table
from fedlora_priv.errors import DataError

PROBE_TIMEOUT_S = 10

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
_FILE_SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".txt", ".parquet")
_EVALUATION_SPLITS = ("validation", "dev", "test")
_OFFLINE = "offline, set data.source to a local tsv, csv, jsonl or txt file"


def is_hub_name(source: str) -> bool:
    """Return whether a source can be a hub name: ``name`` or ``owner/name``, perhaps with ``:config``.

    >>> is_hub_name("nyu-mll/glue:sst2"), is_hub_name("./data"), is_hub_name("data/train.tsv")
    (True, False, False)
    """
    return _NAME.fullmatch(source) is not None and not source.endswith(_FILE_SUFFIXES)


def load(source: str, columns: Columns, evaluation: bool) -> tuple[Table, Table | None]:
    """Return the training and, if wanted and there, the evaluation table of a hub dataset.

    Raises:
        DataError: the hub cannot be reached, has no such dataset, or the dataset lacks a column or split.
    """
    name, _, config = source.partition(":")
    splits = _load_splits(name, config or None)
    if "train" not in splits:
        raise DataError(f"{source} has no split 'train'; its splits are {', '.join(splits)}")
    train = _table(splits["train"], source, columns)
    chosen = next((split for split in _EVALUATION_SPLITS if split in splits), None)
    if not evaluation or chosen is None:
        return train, None
    return train, _table(splits[chosen], f"{source} ({chosen})", columns)


def _load_splits(name: str, config: str | None) -> Any:
    """Return every split of a dataset; probes first, because the loader itself retries for minutes."""
    try:
        import datasets
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise DataError(
            "hub datasets need the packages of the extra 'train'", "pip install 'fedlora-priv[train]'"
        ) from None
    try:
        if not constants.HF_HUB_OFFLINE:  # set offline, the loader goes to its own cache at once
            HfApi().dataset_info(name, timeout=PROBE_TIMEOUT_S)
        return datasets.load_dataset(name, config)
    except Exception as error:
        # Dozens of types across the loader's own dependencies; the class name is what helps the user.
        raise DataError(
            f"{name} is no local file and cannot be loaded from the hub ({type(error).__name__})", _OFFLINE
        ) from error


def _table(split: Any, where: str, columns: Columns) -> Table:
    """Return one split's rows."""
    columns.require_in(where, split.column_names)
    return Table(
        _texts(split, where, columns.text),
        None if columns.label is None else _labels(split, where, columns.label),
        None if columns.prompt is None else _texts(split, where, columns.prompt),
    )


def _texts(split: Any, where: str, column: str) -> list[str]:
    """Return a column of texts."""
    texts = list(split[column])
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: column {column!r} does not hold texts")
    return texts


def _labels(split: Any, where: str, column: str) -> list[RawLabel]:
    """Return a column of labels, by the names of the classes where the dataset has them."""
    labels = list(split[column])
    class_names = getattr(split.features[column], "names", None)
    if any(label is None or (class_names and not 0 <= label < len(class_names)) for label in labels):
        raise DataError(f"{where}: some rows have no label", "use a labelled split")
    if class_names:
        return [class_names[label] for label in labels]
    if not all(isinstance(label, int | str) for label in labels):
        raise DataError(f"{where}: column {column!r} holds neither texts nor whole numbers")
    return labels
