"""What may not be asked for of clients that train parts of the model, [allocation]. Part of `config_checks`.

What needs the model (how many layers there are, what fits, whether counts form a shape) comes when it is loaded:
`fedlora_priv.federation.allocating`, before anything is charged. Here are the rules between keys of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedlora_priv.config_allocation import AllocationSection, Tier
from fedlora_priv.errors import ConfigError

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment

_READS: dict[str, frozenset[str]] = {
    "all": frozenset(),
    "geometric": frozenset({"shape"}),
    "random-geometric": frozenset({"shape"}),
    "fedra": frozenset(),
    "fisher": frozenset({"scores", "scores_of", "rescore_every"}),
    "fedpilot": frozenset({"scores", "scores_of", "rescore_every"}),
    "ranks": frozenset({"ranks", "pruning"}),
}
"""The keys that a strategy reads beside those that all read; a set one that it does not read is refused."""

_COUNTED = frozenset({"flexlora", "flora"})
"""Methods that count components themselves."""

_PADDED = frozenset({"hetlora"})
"""Methods that pad components with zeros."""

_BY_COMPONENT = frozenset({"fedit", "ffa", "rolora"})
"""Methods whose means can be taken component by component, and that keep nothing at home."""


def check(experiment: Experiment) -> None:
    """Raise unless the keys of the section go together, and with the rest of the file.

    Raises:
        ConfigError: names the first rule that is broken.
    """
    _idle_options(experiment)
    if not experiment.allocation.in_parts:
        return
    _needed(experiment)
    _rescoring(experiment)
    _tiers(experiment)
    _holders(experiment)
    _method(experiment)
    _pruning(experiment)
    _communication(experiment)


def _idle_options(experiment: Experiment) -> None:
    """Refuse keys that the strategy, or another key, leaves without effect."""
    asked = experiment.allocation
    for key in _set_keys(asked):
        if not asked.in_parts or (
            key in frozenset.union(*_READS.values()) and key not in _READS[asked.strategy]
        ):
            raise ConfigError(
                f"allocation.{key} has no effect with allocation.strategy = {asked.strategy!r}",
                "leave it out, or choose another strategy: see docs/heterogeneous.md",
            )
    if asked.holders is not None and asked.dropout_rate:
        raise ConfigError(
            "allocation.dropout_rate has no effect where allocation.holders says how many clients train a layer",
            "leave one of the two out",
        )
    if not asked.dropout_rate and "failure_probability" in _set_keys(asked):
        raise ConfigError(
            "allocation.failure_probability has no effect with allocation.dropout_rate = 0",
            "set the rate too",
        )


def _set_keys(asked: AllocationSection) -> list[str]:
    """Return the keys besides the strategy that are not at their default."""
    fields = type(asked).model_fields.items()
    return [
        key
        for key, field in fields
        if key != "strategy" and getattr(asked, key) != field.get_default(call_default_factory=True)
    ]


def _needed(experiment: Experiment) -> None:
    """Refuse a strategy without what it deals by, and scores that nobody calls public."""
    asked = experiment.allocation
    examples = {"shape": "'inverted'", "ranks": "[4, 8]", "scores": "one number a layer"}
    if asked.rescore_every is not None:
        del examples["scores"]  # the server measures them
    for key, example in examples.items():
        if key in _READS[asked.strategy] and not getattr(asked, key):
            raise ConfigError(
                f"allocation.{key} is missing: allocation.strategy = {asked.strategy!r} deals by it",
                f"set it, for example to {example}",
            )
    if (asked.scores or asked.rescore_every) and asked.scores_of is None:
        raise ConfigError(
            "allocation.scores_of is missing: scores of clients' own data would be a release that nothing covers",
            "name the public data that the scores were measured on, or choose a strategy without scores",
        )
    if asked.ranks and max(asked.ranks) != experiment.lora.rank:
        raise ConfigError(
            f"the largest of allocation.ranks is {max(asked.ranks)}, but lora.rank = {experiment.lora.rank}",
            "set lora.rank to the largest",
        )


def _rescoring(experiment: Experiment) -> None:
    """Refuse scores that the server would measure on rows nobody calls public, or that have no label, or never."""
    asked, rounds = experiment.allocation, experiment.federation.rounds
    if asked.rescore_every is None:
        return
    if not experiment.data.evaluation_may_be_reported:
        raise ConfigError(
            "allocation.rescore_every scores layers on the held-out rows, which are not declared public: scores of "
            "private rows would be a release that nothing covers",
            "set data.evaluation_public = true if they are, or leave it out",
        )
    if experiment.model.task != "classification":
        raise ConfigError(
            "allocation.rescore_every scores layers by the label's logit, and a language model has none",
            "leave it out, or give scores that were measured elsewhere",
        )
    if asked.scores and asked.rescore_every >= rounds:
        raise ConfigError(
            f"allocation.rescore_every = {asked.rescore_every} has no effect in {rounds} rounds that begin with scores",
            "lower it, or leave one of the two out",
        )


def _tiers(experiment: Experiment) -> None:
    """Refuse tiers of nobody's, clients in two of them, and limits that nothing is held to."""
    asked, known = experiment.allocation, set(experiment.client_ids)
    times = Counter(client_id for tier in asked.tiers for client_id in tier.clients)
    for client_id, count in times.items():
        if client_id not in known:
            raise ConfigError(
                f"allocation.tiers names {client_id!r}, which is not a client",
                f"the clients are client-1 to client-{experiment.federation.clients}",
            )
        if count > 1:
            raise ConfigError(f"allocation.tiers lists {client_id} {count} times", "keep it in one tier")
    for tier in asked.tiers:
        for key, why in _idle_limits(tier, asked, experiment.lora.rank):
            raise ConfigError(
                f"{key} of the tier of {tier.clients[0]} has no effect {why}", "leave it out, or set both"
            )


def _idle_limits(tier: Tier, asked: AllocationSection, rank: int) -> Iterator[tuple[str, str]]:
    """Yield the limits of a tier that nothing is held to, each with the reason."""
    if tier.memory_bytes is not None and not asked.cost.has_memory:
        yield "memory_bytes", "where [allocation.cost] does not say what memory training takes"
    if (tier.speed != 1.0 or tier.bytes_per_s is not None) and asked.cost.round_s is None:
        yield "speed or bytes_per_s", "without allocation.cost.round_s"
    if tier.speed != 1.0 and not asked.cost.has_time:
        yield "speed", "where [allocation.cost] does not say how long a step takes"
    if tier.max_rank is not None and asked.strategy != "ranks" and tier.max_rank < rank:
        yield "max_rank", f"with allocation.strategy = {asked.strategy!r}, which deals out layers"
    if tier.max_layers is not None and asked.strategy == "ranks":
        yield "max_layers", "with allocation.strategy = 'ranks', under which everybody trains all layers"


def _holders(experiment: Experiment) -> None:
    """Refuse counts under which a layer's sum would hide nobody, or that no layer can have."""
    asked, secure, clients = (
        experiment.allocation,
        experiment.secure_aggregation,
        experiment.federation.clients,
    )
    masked, least = secure.mode == "secure", asked.least_contributors(secure)
    if masked and least < secure.max_colluders + 2:
        raise ConfigError(
            f"allocation.min_contributors = {least}: beside {secure.max_colluders} colluders a client of a layer would "
            "be hidden by nobody",
            f"use at least {secure.max_colluders + 2}",
        )
    min_survivors = secure.thresholds(clients)[2]
    if masked and asked.min_contributors is not None and least > min_survivors:
        raise ConfigError(
            f"allocation.min_contributors = {least} is above secure_aggregation.min_survivors = {min_survivors}: the "
            "sum on the head is of all survivors",
            "raise min_survivors, or lower it",
        )
    if least > clients:
        raise ConfigError(
            f"a layer needs {least} clients and there are {clients}", "take more clients, or fewer colluders"
        )
    if asked.holders is not None and not least <= asked.holders <= clients:
        raise ConfigError(
            f"allocation.holders = {asked.holders} is not between min_contributors = {least} and the {clients} clients",
            "raise it, or leave it out",
        )


def _method(experiment: Experiment) -> None:
    """Refuse methods whose sums are not by module, or that keep arrays at home; and ranks of a second kind."""
    asked, name = experiment.allocation, experiment.federation.method
    if experiment.lora.ranks:
        raise ConfigError(
            f"lora.ranks and allocation.strategy = {asked.strategy!r} both say what clients train",
            "leave one of the two out",
        )
    if name in _COUNTED and asked.strategy != "ranks":
        raise ConfigError(
            f"federation.method = {name!r} counts components itself and cannot divide by a layer's clients",
            "choose another method, or allocation.strategy = 'ranks'",
        )
    if name == "fedsa":
        raise ConfigError(
            "federation.method = 'fedsa' keeps arrays at each client, and clients in parts are not built for that",
            "choose another method, or allocation.strategy = 'all'",
        )
    takes_ranks = _BY_COMPONENT | _COUNTED | _PADDED
    if asked.strategy == "ranks" and name not in takes_ranks:
        raise ConfigError(
            f"federation.method = {name!r} does not average by component, so its clients need one rank",
            f"choose {', '.join(sorted(takes_ranks))}",
        )


def _pruning(experiment: Experiment) -> None:
    """Refuse ranks that clients prune where none can be, and where what they announce would be of raw values."""
    rule, name, asked = experiment.allocation.pruning, experiment.federation.method, experiment.allocation
    if rule is None:
        return
    if name not in _PADDED:
        raise ConfigError(
            f"federation.method = {name!r} is not for ranks that clients prune by themselves",
            "choose 'hetlora', or leave [allocation.pruning] out",
        )
    if experiment.privacy.mode != "local":
        raise ConfigError(
            f"privacy.mode = {experiment.privacy.mode!r}: whether a client prunes its rank would tell of values that "
            "have no noise yet",
            "use 'local', or leave [allocation.pruning] out",
        )
    if max(asked.ranks) <= rule.least:
        raise ConfigError(
            f"allocation.pruning.least = {rule.least}: no rank on offer is above it, so none is pruned",
            "lower it, or leave [allocation.pruning] out",
        )


def _communication(experiment: Experiment) -> None:
    """Refuse to leave coordinates out besides those of layers that are not trained, or to carry any over."""
    communication = experiment.communication
    refused = {
        f"support = {communication.support!r}": communication.support != "dense",
        "error_feedback = true": communication.error_feedback,
        f"download_density = {communication.download_density:g}": communication.download_density < 1,
    }
    for what, is_set in refused.items():
        if is_set:
            raise ConfigError(
                f"communication.{what} does not go with allocation.strategy = {experiment.allocation.strategy!r}: what "
                "a client sends of a layer, and the count that it is divided by, must arrive whole in one round",
                "leave it out",
            )
