"""What may not be asked for of how uploads travel. Part of `config_checks`.

What a method's sums bear and what a vote needs are rules of `communication.choices.Choice`; here are those between
keys of the file, and that every sum has enough clients in it. No sum overflows: 16 bits for 65,535 clients fill 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlora_priv.errors import ConfigError

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment


def check_keys(experiment: Experiment) -> None:
    """Raise unless the keys of the section go together, and every band can have a sum; asked before any other rule.

    Raises:
        ConfigError: names the first rule that is broken.
    """
    _idle_options(experiment)
    _densities(experiment)


def _idle_options(experiment: Experiment) -> None:
    """Refuse options that another one leaves without effect, or makes impossible."""
    communication = experiment.communication
    if communication.density < 1 and (communication.support == "dense" or communication.densities):
        why = "support = 'dense'" if communication.support == "dense" else "one density for each client"
        raise ConfigError(
            f"communication.density = {communication.density:g} has no effect with {why}",
            "choose 'server-topk', 'seeded-random-k' or 'voted-topk', or density = 1"
            if communication.support == "dense"
            else "leave one of the two out",
        )
    for name, support in {"vote_every": "voted-topk", "exploration": "server-topk"}.items():
        value = getattr(communication, name)
        default = type(communication).model_fields[name].default  # resolved files say what was left out
        if value != default and communication.support != support:
            raise ConfigError(
                f"communication.{name} = {value:g} has no effect with support = {communication.support!r}",
                f"choose {support!r}, or leave it out",
            )
    if communication.whole_rounds is not None:
        _whole_rounds(experiment, communication.whole_rounds)
    if communication.train == "support" and experiment.training.per_example == "ghost":
        raise ConfigError(
            "training.per_example = 'ghost' takes the norms of whole arrays, of which communication.train = 'support' "
            "trains a part",
            "choose 'auto' or 'direct'",
        )
    if (
        communication.error_feedback
        and communication.support == "server-topk"
        and not communication.exploration
    ):
        raise ConfigError(
            "communication.error_feedback keeps what was left out for later rounds, and with support = 'server-topk' "
            "and exploration = 0 what has never been sent never is",
            "set exploration above 0, for example 0.25",
        )


def _whole_rounds(experiment: Experiment, whole: int) -> None:
    """Refuse whole rounds that rank nothing, that narrow tiers cannot send, or that leave no other."""
    communication, rounds = experiment.communication, experiment.federation.rounds
    if communication.support != "server-topk":
        raise ConfigError(
            f"communication.whole_rounds = {whole} has no effect with support = {communication.support!r}",
            "choose 'server-topk', or leave it out",
        )
    if communication.densities and whole:
        raise ConfigError(
            f"communication.whole_rounds = {whole} would have clients of every density send everything",
            "leave it out: tiers begin with coordinates drawn by the public seed",
        )
    if whole and whole >= rounds:
        raise ConfigError(
            f"communication.whole_rounds = {whole} leaves none of {rounds} rounds in which a density holds",
            "lower it, or choose support = 'dense'",
        )


def _densities(experiment: Experiment) -> None:
    """Refuse densities that are not one per client, and wide tiers in which masks would hide nobody."""
    given, clients = experiment.communication.densities, experiment.federation.clients
    if given and len(given) != clients:
        raise ConfigError(
            f"communication.densities has {len(given)} densities for {clients} clients",
            "give one for each, in roster order",
        )
    secure = experiment.secure_aggregation
    if not given or secure.mode == "insecure":
        return
    needed = max(secure.max_colluders + 2, secure.min_survivors or 0)
    for density in experiment.communication.tiers:
        holders = sum(mine >= density for mine in given)
        if holders < needed:
            raise ConfigError(
                f"{holders} of {clients} clients have a density of {density:g} or more, and what they send beyond "
                f"the others is a sum of its own, which needs {needed} to hide one of them",
                "give that density to more clients, or to none",
            )


def check_choice(experiment: Experiment) -> None:
    """Raise unless the method's sums bear it, and it shows no client's own choice; asked of a method that is sound.

    Raises:
        ConfigError: names the first rule that is broken.
    """
    # Imported here: this loads numpy, which reading a file needs no more than it needs cryptography.
    from fedlora_priv.communication.choices import Choice
    from fedlora_priv.communication.errors import CommunicationError
    from fedlora_priv.methods import Layout, for_experiment, phases

    masked = experiment.secure_aggregation.mode == "secure"
    found = phases(for_experiment(experiment), experiment.federation.rounds)
    try:
        choice = Choice.of(experiment.communication)
        for method, _ in found:
            contract = method.contract(Layout((), {}))
            choice.require_allowed(method, contract, experiment.privacy.mode, masked=masked)
    except CommunicationError as error:
        raise ConfigError(f"communication: {error}") from error
    if choice.vote_every > 1 and len(found) > 1:
        raise ConfigError(
            f"communication.vote_every = {choice.vote_every} keeps a support for other rounds, and federation.method = "
            f"{experiment.federation.method!r} sends other arrays in them",
            "set it to 1",
        )
