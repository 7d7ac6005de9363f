"""A training and, where it may be looked at, an evaluation `Dataset` from the experiment's [data] table.

Sources: the demo's movie snippets, a local tsv, csv, jsonl or (without labels) txt file, a local folder with
train.* and perhaps dev.*, or a dataset of the Hugging Face hub. Evaluation data that nobody declared public is
not even read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.config_data import DataSection
from fedlora_priv.data import hub, tables
from fedlora_priv.data.assets import MOVIE_SNIPPETS, Say, fetch, quietly
from fedlora_priv.data.tables import Columns, Table
from fedlora_priv.errors import ConfigError, DataError

HOLD_OUT_DOMAIN = 1
"""Separates the held-out draw from the partition's, which has the same public seed."""

_SNIPPETS_CREDIT = f"movie snippets ({MOVIE_SNIPPETS.licence}; {MOVIE_SNIPPETS.credit})"
_EVALUATION_NAMES = ("dev", "validation", "valid", "test")


@dataclass(frozen=True)
class Dataset:
    """Rows of one task: texts with labels, or texts for a language model. Its repr shows no text and no label.

    Args:
        texts: what to classify, or what to continue; with prompts, the answers.
        labels: indices into `label_names`; None for language modelling.
        label_names: empty for language modelling.
        prompts: what comes before each text and is not to be predicted; language modelling only.
    """

    texts: list[str] = field(repr=False)
    labels: list[int] | None = field(repr=False)
    label_names: list[str]
    prompts: list[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int] | NDArray[np.int64]) -> Dataset:
        """Return the examples at some indices, in that order."""
        chosen = [int(index) for index in indices]
        return Dataset(
            [self.texts[i] for i in chosen],
            None if self.labels is None else [self.labels[i] for i in chosen],
            self.label_names,
            None if self.prompts is None else [self.prompts[i] for i in chosen],
        )


@dataclass(frozen=True)
class Source:
    """What an experiment trains and evaluates on; `evaluation` is None where it may not be looked at."""

    train: Dataset
    evaluation: Dataset | None
    credit: str
    """Licence and authors where they are known, for the report; else the source's name."""


def load_source(experiment: Experiment, say: Say = quietly) -> Source:
    """Return the data of an experiment.

    Args:
        experiment: its [data] table says what to read, its public seed what to hold out.
        say: receives a line for every download.

    Raises:
        DataError: missing, unreadable, malformed or too little data.
        AssetError: the demo data cannot be fetched.
        ConfigError: the evaluation split is declared public but would be cut from private data.
    """
    data, columns = experiment.data, columns_of(experiment)
    _require_folder_for_files(data)
    if data.source.startswith("demo:"):
        return _with_held_out(_demo(experiment, say), experiment, _SNIPPETS_CREDIT)
    if Path(data.source).expanduser().exists():
        train, evaluation = _read_local(data, Path(data.source).expanduser(), columns)
    elif hub.is_hub_name(data.source):
        say(f"loading {data.source} from the hub")
        train, evaluation = hub.load(data.source, columns, _wants_evaluation(data))
    else:
        raise DataError(f"there is no {data.source}", "check data.source")
    names = _label_names(data, train)
    dataset = indexed(train, names, "the training data")
    credit = public_name(data.source)
    if evaluation is None:
        return _with_held_out(dataset, experiment, credit)
    return Source(dataset, indexed(evaluation, names, "the evaluation data"), credit)


def own_rows(experiment: Experiment, path: Path) -> Dataset:
    """Return the training rows of one party, from a file or a folder of its own.

    Args:
        experiment: says which columns and labels they have; its `data.source` is not read.
        path: where this party keeps them.

    Raises:
        DataError: missing, unreadable or malformed rows, or labels that the experiment does not declare.
    """
    if not path.exists():
        raise DataError(
            f"there is no {path}", "it should hold this party's own rows: mount it or mend the path"
        )
    file = _training_file(experiment.data, path) if path.is_dir() else path
    return _declared(experiment, file, "the training data")


def own_evaluation(experiment: Experiment, path: Path) -> Dataset:
    """Return public held-out rows from a file.

    Raises:
        DataError: as `own_rows`.
        ConfigError: the experiment does not declare them public.
    """
    if not experiment.data.evaluation_may_be_reported:
        raise ConfigError(
            f"{path} may not be evaluated: the experiment declares neither its data nor its evaluation data public",
            "leave it out, or agree on data.evaluation_public = true",
        )
    return _declared(experiment, path, "the evaluation data")


def _declared(experiment: Experiment, file: Path, what: str) -> Dataset:
    """Return a file's rows with the labels that the experiment declares."""
    table = tables.read_table(file, columns_of(experiment))
    return indexed(table, experiment.data.labels or (), what)


def columns_of(experiment: Experiment) -> Columns:
    """Return the columns that the experiment's task needs."""
    data = experiment.data
    if experiment.model.task == "language-modelling":
        return Columns(data.text_column, prompt=data.prompt_column)
    return Columns(data.text_column, label=data.label_column)


def _demo(experiment: Experiment, say: Say) -> Dataset:
    """Return the movie snippets, for language modelling without their labels."""
    texts, labels = read_movie_snippets(fetch(MOVIE_SNIPPETS, say) / next(iter(MOVIE_SNIPPETS.files)))
    if experiment.model.task == "language-modelling":
        return Dataset(texts, None, [])
    return Dataset(texts, labels, ["negative", "positive"])


def public_name(source: str) -> str:
    """Return what a report may call a source: a hub's full name, but of a local path its last part only."""
    local = Path(source).expanduser()
    return local.resolve().name if local.exists() else source


def read_movie_snippets(path: Path) -> tuple[list[str], list[int]]:
    """Return the texts and labels of `movieReviewSnippets_GroundTruth.txt`: id, mean rating, text by line.

    The label is the sign of the mean rating of 20 people (1 positive, 0 negative); exact zeros are dropped.

    Source: Hutto, Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text", ICWSM 2014.
    """
    texts, labels = [], []
    for line in tables.read_text(path).split("\n"):
        if line:
            _, rating, text = line.rstrip("\r").split("\t", 2)
            if float(rating) != 0:
                texts.append(text)
                labels.append(int(float(rating) > 0))
    return texts, labels


def _require_folder_for_files(data: DataSection) -> None:
    """Refuse file settings that nothing would read."""
    if (data.train_file or data.evaluation_file) and not Path(data.source).expanduser().is_dir():
        raise ConfigError(
            f"data.train_file and data.evaluation_file name files inside a folder; {data.source} is none",
            "set data.source to the folder, or remove them",
        )


def _wants_evaluation(data: DataSection) -> bool:
    """Whether evaluation data may be read at all."""
    return data.evaluation_may_be_reported


def _read_local(data: DataSection, path: Path, columns: Columns) -> tuple[Table, Table | None]:
    """Return the training and evaluation tables of a file or folder."""
    if path.is_file():
        return tables.read_table(path, columns), None
    train = tables.read_table(_training_file(data, path), columns)
    evaluation_path = _inside(path, data.evaluation_file, _EVALUATION_NAMES)
    if evaluation_path is None or not _wants_evaluation(data):
        return train, None
    return train, tables.read_table(evaluation_path, columns)


def _training_file(data: DataSection, folder: Path) -> Path:
    """Return the training file of a folder."""
    found = _inside(folder, data.train_file, ("train",))
    if found is None:
        raise DataError(
            f"{folder} holds no train.tsv, train.csv, train.jsonl or train.txt", "set data.train_file"
        )
    return found


def _inside(folder: Path, named: str | None, stems: Sequence[str]) -> Path | None:
    """Return the file of a folder that is named or, if none is, the first with a usual name."""
    if named is not None:
        if not (folder / named).is_file():
            raise DataError(f"{folder} holds no {named}", "check data.train_file and data.evaluation_file")
        return folder / named
    candidates = (folder / f"{stem}{suffix}" for stem in stems for suffix in tables.FORMATS)
    return next((path for path in candidates if path.is_file()), None)


def _label_names(data: DataSection, train: Table) -> list[str]:
    """Return the declared labels or, of public data, the distinct ones in ascending order, at least two."""
    if train.labels is None:
        return []
    if data.labels is not None:
        return list(data.labels)
    names = sorted(set(train.labels))  # a table's labels are all ints or all texts, so they have an order
    if len(names) < 2:
        raise DataError("the training data has only one label", "classification needs at least two")
    return [str(name) for name in names]


def indexed(table: Table, names: Sequence[str], what: str) -> Dataset:
    """Return a table as a dataset, its labels, if it has them, as indices into the names.

    Raises:
        DataError: it has other labels; says how many, not which.
    """
    if table.labels is None:
        return Dataset(table.texts, None, [], table.prompts)
    index = {name: position for position, name in enumerate(names)}
    unknown = {str(label) for label in table.labels} - index.keys()
    if unknown:
        raise DataError(
            f"{what} has {len(unknown)} label{'s' * (len(unknown) > 1)} besides the {len(names)} that are known",
            "check data.label_column and data.labels",
        )
    return Dataset(table.texts, [index[str(label)] for label in table.labels], list(names))


def _with_held_out(whole: Dataset, experiment: Experiment, credit: str) -> Source:
    """Return a source without an evaluation split of its own: held out if all is public, else none."""
    data = experiment.data
    if not data.public:
        if data.evaluation_public:
            raise ConfigError(
                f"data.evaluation_public is set, but {data.source} has no evaluation split: it would be cut "
                "from private data",
                "add one, set data.evaluation_public = false, or declare data.public = true",
            )
        return Source(whole, None, credit)
    if data.evaluation_examples >= len(whole):
        raise DataError(
            f"data.evaluation_examples = {data.evaluation_examples} leaves nothing of {len(whole)} examples",
            "hold out fewer",
        )
    generator = np.random.default_rng([experiment.experiment.seed, HOLD_OUT_DOMAIN])
    order = generator.permutation(len(whole))
    held_out, kept = order[: data.evaluation_examples], order[data.evaluation_examples :]
    return Source(whole.take(np.sort(kept)), whole.take(np.sort(held_out)), credit)
