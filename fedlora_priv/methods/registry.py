"""Every method by its name in an experiment file, and the one that an experiment asks for.

`Choice` says which of the experiment file's keys a method reads; `fedlora_priv.config_methods` refuses the others
where they are set, so that no value is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from fedlora_priv.config_allocation import AllocationSection
from fedlora_priv.config_federation import AggregationSection, FederationSection
from fedlora_priv.config_model import LoraSection
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedask import FedASK
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsa import FedSALoRA
from fedlora_priv.methods.fedsb import FedSB
from fedlora_priv.methods.fedsvd import FedSVD
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.hetlora import HetLoRA
from fedlora_priv.methods.lora_fair import LoRAFair
from fedlora_priv.methods.optimizers import Adam, Average, Momentum, ServerOptimizer
from fedlora_priv.methods.partial import Partial
from fedlora_priv.methods.raclora import RACLoRA
from fedlora_priv.methods.ranks import OfOwnRank
from fedlora_priv.methods.rolora import RoLoRA
from fedlora_priv.methods.schedule import hybrid

OPTIMIZER_KEYS = (
    "aggregation.server_optimizer",
    "aggregation.server_learning_rate",
    "aggregation.server_momentum",
)
"""The keys that methods read which move arrays by their mean change."""

PRODUCTS_KEY = "aggregation.products"
"""The key that full-rank methods read: how the mean of the products is had."""

_PRODUCTS = (PRODUCTS_KEY, "aggregation.fallback", "aggregation.tolerance")


class Asked(Protocol):
    """The part of an experiment that chooses a method."""

    @property
    def federation(self) -> FederationSection:
        """Which method, and for how many rounds."""

    @property
    def aggregation(self) -> AggregationSection:
        """Its options."""

    @property
    def allocation(self) -> AllocationSection:
        """Whether clients train parts of the model."""

    @property
    def lora(self) -> LoraSection:
        """The federation's rank."""


@dataclass(frozen=True)
class Options:
    """What an experiment file says to methods.

    Args:
        cross: how full-rank methods get the mean of the products.
        switch_round: the first round of FFA-LoRA in the hybrid.
        block_rounds: rounds between two merges of RAC-LoRA.
        largest_norm: from which on a client's weight in HetLoRA is 1.
        common: components that every client has.
    """

    cross: CrossTerm = CrossTerm()  # noqa: RUF009 - frozen
    switch_round: int = 2
    block_rounds: int = 1
    largest_norm: float = 1.0
    common: int = 0


@dataclass(frozen=True)
class Choice:
    """How a method is made of options, and the keys that it reads."""

    make: Callable[[Options], Method]
    reads: tuple[str, ...] = ()


_CHOICES: dict[str, Choice] = {
    "fedit": Choice(lambda options: FedIT()),
    "ffa": Choice(lambda options: FFALoRA()),
    "fra": Choice(lambda options: FRALoRA(options.cross), _PRODUCTS),
    "hybrid": Choice(
        lambda options: hybrid(options.switch_round, options.cross), (*_PRODUCTS, "aggregation.switch_round")
    ),
    "fedsvd": Choice(lambda options: FedSVD()),
    "flexlora": Choice(lambda options: FlexLoRA(cross=options.cross), (*_PRODUCTS, "lora.ranks")),
    "hetlora": Choice(
        lambda options: HetLoRA(largest=options.largest_norm, common=options.common),
        ("aggregation.largest_norm",),
    ),
    "fedask": Choice(lambda options: FedASK()),
    "flora": Choice(lambda options: FLoRA(cross=options.cross), (*_PRODUCTS, "lora.ranks")),
    "fedex": Choice(lambda options: FedEx(options.cross), _PRODUCTS),
    "rolora": Choice(lambda options: RoLoRA()),
    "fedsa": Choice(lambda options: FedSALoRA()),
    "lora-fair": Choice(lambda options: LoRAFair()),
    "fed-sb": Choice(lambda options: FedSB()),
    "rac-lora": Choice(lambda options: RACLoRA(options.block_rounds), ("aggregation.block_rounds",)),
}

METHODS: dict[str, Method] = {name: choice.make(Options()) for name, choice in _CHOICES.items()}
"""One instance of each, with default options, for listing."""


def get(name: str) -> Method:
    """Return the method of that name, with default options.

    Raises:
        KeyError: there is none; the message names the nearest and lists all.
    """
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name.lower(), METHODS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise KeyError(f"no method {name!r}{hint}; there are: {', '.join(METHODS)}")


def make(name: str, options: Options) -> Method:
    """Return the method of that name with these options."""
    return _CHOICES[name].make(options)


def reads(name: str) -> tuple[str, ...]:
    """Return the keys of the experiment file that the method of that name reads besides `federation.method`."""
    return _CHOICES[name].reads + (OPTIMIZER_KEYS if METHODS[name].moves_by_mean else ())


def for_experiment(experiment: Asked) -> Method:
    """Return the method that an experiment asks for, with its options; over parts, where clients train parts."""
    asked, allocation = experiment.aggregation, experiment.allocation
    fallback = None if asked.fallback == "none" else asked.fallback
    options = Options(
        cross=CrossTerm(asked.products, fallback=fallback, tolerance=asked.tolerance),
        switch_round=asked.first_ffa_round(experiment.federation.rounds),
        block_rounds=asked.block_rounds,
        largest_norm=asked.largest_norm,
        common=_common(experiment),
    )
    method = make(experiment.federation.method, options)
    if not allocation.in_parts or (allocation.strategy == "ranks" and isinstance(method, OfOwnRank)):
        return method
    return Partial(method)


def _common(experiment: Asked) -> int:
    """Return how many components every client has in every round, whatever it prunes."""
    asked = experiment.allocation
    smallest = min(asked.ranks, default=experiment.lora.rank)
    return smallest if asked.pruning is None else min(asked.pruning.least, smallest)


def server_optimizer_for(experiment: Asked) -> ServerOptimizer | None:
    """Return the server optimiser that an experiment asks for; None takes the means as they are."""
    asked = experiment.aggregation
    rate, momentum = asked.server_learning_rate, asked.server_momentum
    if asked.server_optimizer == "adam":
        return Adam(Adam.learning_rate if rate is None else rate, beta1=momentum)
    if asked.server_optimizer == "momentum":
        return Momentum(Momentum.learning_rate if rate is None else rate, momentum)
    return None if rate in (None, 1.0) else Average(rate)
