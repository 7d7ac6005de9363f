"""Whose rows this process holds: everybody's (a simulation), one client's (a node) or nobody's (a server).

What else an experiment says of its data is public and the same for all parties: the declared sizes, the names of the
labels, the held-out rows, if any, and of public data the split. So all three come to the same plans, and only the
rows differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlora_priv.config import Experiment
from fedlora_priv.data.partition import partition, partition_id
from fedlora_priv.data.sources import Dataset, Source, load_source, own_evaluation, own_rows, public_name
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation.learner import Say

OWN_ROWS = "each party's own rows"
"""What ledgers call the split of data that no party ever held whole."""


@dataclass(frozen=True)
class Holdings:
    """The rows in this process, and what is public of all rows.

    Args:
        rows: those of each client that lives in this process. Private.
        sizes: public number of examples of every client: declared, or true where the data is public.
        row_numbers: of public data split by the public seed, every client's positions in it; empty where each
            party brings its own rows.
        label_names: empty for language modelling.
        evaluation: public held-out rows, or None where nothing may be evaluated.
        partition_id: the public name of the split.
        credit: licence and authors, as far as they are known.
    """

    rows: Mapping[str, Dataset] = field(repr=False)
    sizes: Mapping[str, int]
    row_numbers: Mapping[str, tuple[int, ...]] = field(repr=False)
    label_names: list[str]
    evaluation: Dataset | None
    partition_id: str
    credit: str


def everybodys(experiment: Experiment, say: Say) -> Holdings:
    """Return all rows of an experiment's source, split over all clients.

    Raises:
        DataError: they cannot be had or split.
    """
    return _split(experiment, load_source(experiment, say), frozenset(experiment.client_ids))


def one_clients(
    experiment: Experiment, client_id: str, data: Path | None, evaluation: Path | None, say: Say
) -> Holdings:
    """Return the rows of one client.

    Args:
        experiment: the experiment, as agreed.
        client_id: whose.
        data: file or folder with that client's own rows; None for its part of the experiment's public source.
        evaluation: file of public held-out rows, with `data`.
        say: receives a line for every download.

    Raises:
        DataError: the rows cannot be had.
        ConfigError: the experiment does not say what parties with rows of their own must agree on.
    """
    if data is None:
        require_common_source(experiment)
        return _split(experiment, load_source(experiment, say), frozenset({client_id}))
    return _brought(experiment, {client_id: own_rows(experiment, data)}, evaluation)


def nobodys(experiment: Experiment, *, own_data: bool, evaluation: Path | None, say: Say) -> Holdings:
    """Return what a server knows: no rows but public held-out ones.

    Args:
        experiment: the experiment, as agreed.
        own_data: whether each party brings its own rows; else they are parts of the experiment's public source.
        evaluation: file of public held-out rows, where parties bring their own.
        say: receives a line for every download.

    Raises:
        DataError, ConfigError: as in `one_clients`.
    """
    if own_data:
        return _brought(experiment, {}, evaluation)
    require_common_source(experiment)
    return _split(experiment, load_source(experiment, say), frozenset())


def content_digest(rows: Dataset) -> bytes:
    """Return a digest of texts and labels or prompts. Private, as the rows are."""
    columns = [rows.texts, rows.labels] if rows.prompts is None else [rows.prompts, rows.texts]
    return hashlib.sha256(json.dumps(columns).encode()).digest()


def require_common_source(experiment: Experiment) -> None:
    """Raise unless every party may load the experiment's whole source.

    Raises:
        ConfigError: it is private, so a node that could load it would hold the others' rows.
    """
    if not experiment.data.public:
        raise ConfigError(
            "a node names no data of its own, and data.source is not public: no party may hold another's rows",
            "set data in its node.toml to the file or folder with that party's own rows",
        )


def agreed_sizes(experiment: Experiment) -> dict[str, int]:
    """Return the declared number of examples of every party that brings its own rows.

    Raises:
        ConfigError: the experiment leaves out something that parties cannot see in each other's rows.
    """
    data = experiment.data
    given = {"data.dataset_id": data.dataset_id is not None}
    given["data.labels"] = data.labels is not None or experiment.model.task != "classification"
    given["data.declared_examples_per_client"] = bool(experiment.declared_sizes)
    if all(given.values()):
        return experiment.declared_sizes
    missing = next(name for name, is_set in given.items() if not is_set)
    raise ConfigError(
        f"{missing} is missing: parties that bring their own rows cannot see it in each other's",
        "agree on it and write it into the experiment file of all",
    )


def _split(experiment: Experiment, source: Source, here: frozenset[str]) -> Holdings:
    """Return the parts of a source; of clients that live elsewhere only what is public."""
    # Rows without labels are split i.i.d., which looks at none.
    parts = partition(experiment, source.train.labels or [0] * len(source.train))
    indices = dict(zip(experiment.client_ids, parts, strict=True))
    true_sizes = {client_id: len(part) for client_id, part in indices.items()}
    return Holdings(
        rows={client_id: source.train.take(indices[client_id]) for client_id in indices if client_id in here},
        sizes=experiment.declared_sizes or true_sizes,
        row_numbers={client_id: tuple(part.tolist()) for client_id, part in indices.items()},
        label_names=source.train.label_names,
        evaluation=source.evaluation,
        partition_id=partition_id(experiment),
        credit=source.credit,
    )


def _brought(experiment: Experiment, rows: Mapping[str, Dataset], evaluation: Path | None) -> Holdings:
    """Return rows that a party has brought itself."""
    return Holdings(
        rows=rows,
        sizes=agreed_sizes(experiment),
        row_numbers={},
        label_names=list(experiment.data.labels or ()),
        evaluation=None if evaluation is None else own_evaluation(experiment, evaluation),
        partition_id=OWN_ROWS,
        credit=experiment.data.dataset_id or public_name(experiment.data.source),
    )
