"""What an experiment may not ask for although every single value is in range.

Each rule refuses with one line that says why and what to do. Sources: the bounds of secure aggregation are
those of Bonawitz et al. 2017 with a quorum that makes any two survivor sets share an honest client.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedlora_priv import config_communication, config_methods, config_parts
from fedlora_priv.errors import ConfigError

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment

MAX_PLANNED_STEPS = 1_000_000
"""As in accounting/report.schema.json: a price of more would take minutes."""


def check(experiment: Experiment) -> None:
    """Raise unless the experiment can be honoured.

    Raises:
        ConfigError: names the first rule that is broken.
    """
    _private_ledgers(experiment)
    _private_sizes(experiment)
    _task(experiment)
    _private_labels(experiment)
    _lifetime(experiment)
    if declared := experiment.declared_sizes:
        check_delta(experiment.privacy.delta, sum(declared.values()))
    config_communication.check_keys(experiment)
    config_parts.check(experiment)
    if experiment.secure_aggregation.mode == "secure":
        _secure_aggregation(experiment)
    _adaptive_clipping(experiment)
    _recomputed_activations(experiment)
    _dropouts(experiment)
    _engine(experiment)
    config_methods.check(experiment)
    config_communication.check_choice(experiment)


def check_delta(delta: float, examples: int) -> None:
    """Raise unless delta is below 1 / `examples`, the rows of all clients together.

    Raises:
        ConfigError: at or above it, publishing one whole row at random would keep the promise.
    """
    if delta * examples >= 1:
        raise ConfigError(
            f"privacy.delta = {delta:g} is not below 1/{examples}, one over all examples of the federation",
            f"lower it, for example to {10.0 ** math.floor(math.log10(0.1 / examples)):g}",
        )


def _engine(experiment: Experiment) -> None:
    """Refuse time-outs where nobody waits, and losses where nobody acts them out."""
    engine = experiment.engine
    if engine.kind == "local" and (engine.train_timeout_s or engine.phase_timeout_s or engine.join_timeout_s):
        raise ConfigError(
            "engine's time-outs (train_, phase_ and join_timeout_s) have no effect with engine.kind = 'local'",
            "remove them, or set engine.kind = 'flower'",
        )
    if engine.kind != "local" and experiment.simulate.dropouts:
        raise ConfigError(
            f"simulate.dropouts are acted out by the local engine, not by {engine.kind!r}",
            "remove them, or set engine.kind = 'local'",
        )


def _private_ledgers(experiment: Experiment) -> None:
    """Refuse to name the ledger of private data after a path: moving the file would give a new budget."""
    if experiment.data.dataset_id is None and not experiment.data.public:
        raise ConfigError(
            "data.dataset_id is missing: the privacy ledger of private data is kept under that name, in every "
            "run and wherever the file lies",
            "choose one name for this dataset and keep it, or set data.public = true for public data",
        )


def _task(experiment: Experiment) -> None:
    """Refuse values that the task would ignore."""
    data, model = experiment.data, experiment.model
    if model.task == "classification":
        if data.prompt_column is not None:
            raise ConfigError(
                "data.prompt_column has no effect on classification",
                "remove it, or set model.task = 'language-modelling'",
            )
        return
    idle = {
        "data.labels": data.labels is not None,
        "data.label_column": data.label_column != type(data).model_fields["label_column"].default,
        f"data.partition = {data.partition!r}": data.partition != "iid",
        f"model.pooling = {model.pooling!r}": model.pooling != "mean",
    }
    for name, is_set in idle.items():
        if is_set:
            raise ConfigError(
                f"{name} has no meaning for model.task = 'language-modelling', whose rows have no labels",
                "remove it, or set model.task = 'classification'",
            )


def _private_labels(experiment: Experiment) -> None:
    """Refuse to learn the names of the labels from private rows: they end up in the adapter's card."""
    if experiment.model.task != "classification":
        return
    if experiment.data.labels is None and not experiment.data.public:
        raise ConfigError(
            "data.labels is missing: the names and number of the classes are released with the adapter, so they "
            "cannot be taken from private rows",
            'declare them, as in data.labels = ["negative", "positive"], or set data.public = true for public data',
        )


def _private_sizes(experiment: Experiment) -> None:
    """Refuse to plan from a size that nobody declared public."""
    data, clients = experiment.data, experiment.federation.clients
    if data.declared_examples and data.declared_examples_per_client is not None:
        raise ConfigError(
            "data.declared_examples and data.declared_examples_per_client both say how many examples there are",
            "leave one of the two out",
        )
    if data.declared_examples and len(data.declared_examples) != clients:
        raise ConfigError(
            f"data.declared_examples has {len(data.declared_examples)} numbers for {clients} clients",
            "give one for each, in roster order",
        )
    declared = experiment.declared_sizes
    if not declared and not data.public:
        raise ConfigError(
            "data.declared_examples_per_client is missing: the noise is planned from it, and the true size "
            "of private data would leak through the plan",
            "declare a public number of examples per client, or set data.public = true for public data",
        )
    for client_id, size in declared.items():
        if experiment.training.batch_size > size:
            raise ConfigError(
                f"training.batch_size = {experiment.training.batch_size} is above the {size} examples that "
                f"{_declared_key(experiment)} says of {client_id}: a sampling rate cannot exceed 1",
                "lower the batch size",
            )


def _declared_key(experiment: Experiment) -> str:
    """Return the key that declares sizes."""
    return "data.declared_examples" + ("" if experiment.data.declared_examples else "_per_client")


def _lifetime(experiment: Experiment) -> None:
    """Refuse a run that its clients' ledgers could never let finish, or that no report could state."""
    privacy = experiment.privacy
    steps = (experiment.federation.rounds + privacy.retry_rounds) * experiment.federation.local_steps
    if steps > MAX_PLANNED_STEPS:
        raise ConfigError(
            f"(federation.rounds + privacy.retry_rounds) · federation.local_steps = {steps:,} steps are more than "
            f"the {MAX_PLANNED_STEPS:,} that a report may plan",
            "lower one of them",
        )
    if privacy.ledger_limit < privacy.epsilon:
        raise ConfigError(
            f"privacy.lifetime_epsilon = {privacy.ledger_limit:g} is below privacy.epsilon = {privacy.epsilon:g}: "
            "no client could finish the run",
            "raise it or lower epsilon",
        )


def _secure_aggregation(experiment: Experiment) -> None:
    """Refuse thresholds under which the masks could be split, removed or would hide nothing."""
    clients, colluders = experiment.federation.clients, experiment.secure_aggregation.max_colluders
    _neighbours(experiment)
    quorum, threshold, min_survivors = experiment.secure_aggregation.thresholds(clients)
    for name, value in (("quorum", quorum), ("threshold", threshold), ("min_survivors", min_survivors)):
        if value > clients:
            raise ConfigError(
                f"secure_aggregation.{name} = {value} is above federation.clients = {clients}",
                f"lower {name} or max_colluders, or take more clients",
            )
    if 2 * quorum <= clients + colluders:
        raise ConfigError(
            f"secure_aggregation.quorum = {quorum} is too small: two quorums of {clients} clients may share "
            f"only colluders (2·quorum must exceed {clients} + {colluders})",
            f"use at least {(clients + colluders) // 2 + 1}",
        )
    if min_survivors < quorum:
        raise ConfigError(
            f"secure_aggregation.min_survivors = {min_survivors} is below quorum = {quorum}",
            f"use at least {quorum}",
        )
    if threshold <= colluders:
        raise ConfigError(
            f"secure_aggregation.threshold = {threshold} lets max_colluders = {colluders} clients remove "
            "anybody's masks",
            f"use at least {colluders + 1}",
        )
    if threshold > min_survivors:
        raise ConfigError(
            f"secure_aggregation.threshold = {threshold} is above min_survivors = {min_survivors}: so few "
            "survivors could not remove the masks of the lost",
            f"use at most {min_survivors}, or raise min_survivors",
        )
    if threshold > (holders := experiment.secure_aggregation.degree(clients) + 1):
        raise ConfigError(
            f"secure_aggregation.threshold = {threshold} is above {holders}, the neighbours of a client and itself: "
            "nobody else has a share",
            f"use at most {holders}, or raise neighbours",
        )
    # Imported here: reading a file needs no cryptography unless it asks for it.
    from fedlora_priv.federation.session import require_sound
    from protocols.errors import ProtocolError

    try:
        require_sound(experiment)
    except ProtocolError as error:
        raise ConfigError(
            f"secure_aggregation cannot protect {clients} clients: {error}",
            "take more clients or fewer colluders, or say secure_aggregation.mode = 'insecure'",
        ) from error


def _neighbours(experiment: Experiment) -> None:
    """Refuse rings that no client could go around, or that colluders could cut."""
    neighbours, others = experiment.secure_aggregation.neighbours, experiment.federation.clients - 1
    colluders = experiment.secure_aggregation.max_colluders
    if neighbours is None:
        return
    if neighbours > others:
        raise ConfigError(
            f"secure_aggregation.neighbours = {neighbours}, but each of {others + 1} clients has only {others} others",
            "leave it out: then everybody masks with everybody",
        )
    if neighbours < others and neighbours % 2:
        raise ConfigError(
            f"secure_aggregation.neighbours = {neighbours} is odd, and a ring has as many on each side",
            f"use {neighbours + 1}",
        )
    if neighbours <= colluders:
        raise ConfigError(
            f"secure_aggregation.neighbours = {neighbours} are not more than max_colluders = {colluders}: colluders "
            "all around a client could take its masks off",
            f"use at least {colluders + 1 + (colluders + 1) % 2}, or leave it out",
        )


def _adaptive_clipping(experiment: Experiment) -> None:
    """Refuse adaptive clipping over a coarse base, and its constants where the clip norm is a constant itself."""
    training = experiment.training
    if training.clipping == "adaptive":
        if experiment.model.base_dtype != "float32":
            raise ConfigError(
                "training.clipping = 'adaptive' needs model.base_dtype = 'float32': bfloat16 rounds so coarsely that "
                "one example could move what is counted of another",
                "choose 'float32', or 'flat' clipping",
            )
        return
    for name in ("target_quantile", "clip_learning_rate", "count_noise_stddev"):
        if getattr(training, name) != type(training).model_fields[name].default:
            raise ConfigError(
                f"training.{name} has no effect with training.clipping = {training.clipping!r}",
                "choose 'adaptive', or leave it out",
            )


def _recomputed_activations(experiment: Experiment) -> None:
    """Refuse ghost clipping with gradient checkpointing before anything is loaded."""
    training = experiment.training
    if training.gradient_checkpointing and training.per_example == "ghost":
        raise ConfigError(
            "training.per_example = 'ghost' runs backward twice, which the recomputed activations of "
            "training.gradient_checkpointing do not allow",
            "choose 'auto' or 'direct'",
        )


def _dropouts(experiment: Experiment) -> None:
    """Refuse losses that cannot happen."""
    seen: set[tuple[int, str]] = set()
    for dropout in experiment.simulate.dropouts:
        if dropout.client_id not in experiment.client_ids:
            raise ConfigError(
                f"simulate.dropouts names {dropout.client_id!r}, which is not a client",
                f"the clients are client-1 to client-{experiment.federation.clients}",
            )
        if dropout.round > experiment.federation.rounds:
            raise ConfigError(
                f"simulate.dropouts names round {dropout.round} of {experiment.federation.rounds}",
                "lower it or raise federation.rounds",
            )
        if (dropout.round, dropout.client_id) in seen:
            raise ConfigError(
                f"simulate.dropouts loses {dropout.client_id} twice in round {dropout.round}",
                "keep one of the two",
            )
        seen.add((dropout.round, dropout.client_id))
