"""What a method may not be asked for: options that it does not use, or that its sums could not bear.

Part of `config_checks`. What needs the model's shapes comes later: a rank above a matrix is refused by the method
itself, before anything is charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedlora_priv.errors import ConfigError

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment
    from fedlora_priv.methods import Contract


def check(experiment: Experiment) -> None:
    """Raise unless the method can honour what is asked of it.

    Raises:
        ConfigError: names the first rule that is broken.
    """
    _idle_options(experiment)
    _rounds(experiment)
    _ranks(experiment)
    for contract in _contracts(experiment):
        _base(experiment, contract)
    _lost_exchanges(experiment)


def _idle_options(experiment: Experiment) -> None:
    """Refuse options that the method, or another option, leaves without effect."""
    from fedlora_priv.methods.registry import reads  # here and below: importing this loads no numpy

    asked, name = experiment.aggregation, experiment.federation.method
    why = {key: f"federation.method = {name!r}" for key in _set_options(experiment) if key not in reads(name)}
    if asked.products != "sketch":
        why.setdefault("aggregation.fallback", f"aggregation.products = {asked.products!r}")
    if asked.fallback == "none":
        why.setdefault("aggregation.tolerance", "aggregation.fallback = 'none'")
    if asked.server_optimizer == "average":
        why.setdefault("aggregation.server_momentum", "aggregation.server_optimizer = 'average'")
    for key in _set_options(experiment):
        if key in why:
            raise ConfigError(
                f"{key} has no effect with {why[key]}", f"leave it out, or see 'fedlora methods {name}'"
            )


def _set_options(experiment: Experiment) -> Iterator[str]:
    """Yield the keys of options that are not at their default."""
    for key, field in type(experiment.aggregation).model_fields.items():
        if getattr(experiment.aggregation, key) != field.default:
            yield f"aggregation.{key}"
    if experiment.lora.ranks:
        yield "lora.ranks"


def _rounds(experiment: Experiment) -> None:
    """Refuse a hybrid without one of its two phases, and a chain that never merges."""
    name, rounds = experiment.federation.method, experiment.federation.rounds
    switch, block = experiment.aggregation.first_ffa_round(rounds), experiment.aggregation.block_rounds
    if name == "hybrid" and not 2 <= switch <= rounds:
        raise ConfigError(
            f"a hybrid of {rounds} rounds cannot change to FFA-LoRA in round {switch}: one of its phases has none",
            "choose aggregation.switch_round from 2 to federation.rounds, or 'fra' or 'ffa' alone",
        )
    if name == "rac-lora" and block > rounds:
        raise ConfigError(
            f"aggregation.block_rounds = {block} is above federation.rounds = {rounds}: nothing would be merged",
            "lower it, or choose federation.method = 'ffa'",
        )


def _ranks(experiment: Experiment) -> None:
    """Refuse ranks that are not one per client, or of which the federation's is not the largest."""
    ranks, rank, clients = experiment.lora.ranks, experiment.lora.rank, experiment.federation.clients
    if ranks and len(ranks) != clients:
        raise ConfigError(
            f"lora.ranks has {len(ranks)} ranks for {clients} clients", "give one for each, in roster order"
        )
    if ranks and max(ranks) != rank:
        raise ConfigError(
            f"the largest of lora.ranks is {max(ranks)}, but lora.rank = {rank}",
            "set lora.rank to the largest",
        )
    if ranks and min(ranks) < rank:
        _require_company(experiment, ranks.count(rank))


def _require_company(experiment: Experiment, holders: int) -> None:
    """Refuse components of factors that so few clients hold that masks may not hide one behind another's.

    A sum of zero-padded factors is, on those components, a sum over their holders only.
    """
    secure, clients = experiment.secure_aggregation, experiment.federation.clients
    if secure.mode == "insecure" or experiment.aggregation.products == "exact":
        return
    lost = clients - secure.thresholds(clients)[2]
    needed = lost + secure.max_colluders + 2
    if holders < needed:
        raise ConfigError(
            f"{holders} of {clients} clients have the largest of lora.ranks, and sums over them alone must hide one: "
            f"{needed} are needed, as {lost} may be lost and {secure.max_colluders} collude",
            "give it to more clients, raise secure_aggregation.min_survivors, or set aggregation.products = 'exact'",
        )


def _contracts(experiment: Experiment) -> list[Contract]:
    """Return the contracts of the run's rounds, each once; what they say of shapes is not asked for here."""
    from fedlora_priv.methods import Layout, for_experiment, phases

    method, nothing = for_experiment(experiment), Layout((), {})
    return [phase.contract(nothing) for phase, _ in phases(method, experiment.federation.rounds)]


def _lost_exchanges(experiment: Experiment) -> None:
    """Refuse to act out the loss of a client in an exchange that its round does not have."""
    from fedlora_priv.federation.course import course
    from fedlora_priv.methods import Layout, for_experiment

    method = for_experiment(experiment)
    for dropout in experiment.simulate.dropouts:
        contract = method.at(dropout.round).contract(Layout((), {}))
        exchanges = len(course(experiment, contract, dropout.round))
        if dropout.exchange >= exchanges:
            raise ConfigError(
                f"simulate.dropouts names exchange {dropout.exchange} of round {dropout.round}, whose last is exchange "
                f"{exchanges - 1} with federation.method = {experiment.federation.method!r}",
                "exchanges count from 0; 'fedlora plan' lists them",
            )


def _base(experiment: Experiment, contract: Contract) -> None:
    """Refuse to add small changes to base weights that could not hold them."""
    if contract.changes_base and experiment.model.base_dtype != "float32":
        raise ConfigError(
            f"federation.method = {experiment.federation.method!r} changes the base weights, and "
            f"model.base_dtype = {experiment.model.base_dtype!r} would round its changes away",
            "use 'float32'",
        )
