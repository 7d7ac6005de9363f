"""The section that says who trains what, [allocation]; what may not be asked for in it is in `config_parts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedlora_priv.config_base import Names, Section

if TYPE_CHECKING:
    from fedlora_priv.config_federation import SecureAggregationSection

Strategy = Literal["all", "geometric", "random-geometric", "fedra", "fisher", "fedpilot", "ranks"]


class Tier(Section):
    """What some clients have, and so how much of the model they train; whatever is left out does not limit them."""

    clients: Names = Field(min_length=1, description="Whose: 'client-1' to 'client-N'.")
    max_layers: int | None = Field(default=None, ge=1, description="Layers that one of them trains at most.")
    max_rank: int | None = Field(default=None, ge=1, description="Rank that one of them trains at most.")
    memory_bytes: float | None = Field(
        default=None,
        gt=0,
        description="For training, the base model included; `[allocation.cost]` says what it takes.",
    )
    speed: float = Field(
        default=1.0, gt=0, description="How many times as fast as the machine whose seconds the costs are."
    )
    bytes_per_s: float | None = Field(default=None, gt=0, description="Of the connection, either way.")


class CostSection(Section):
    """What a step costs: fixed + layer·(layers from the lowest trained one up) + coordinate·(trained coordinates)."""

    memory_fixed_bytes: float = Field(default=0.0, ge=0, description="Memory in any case.")
    memory_layer_bytes: float = Field(
        default=0.0, ge=0, description="Memory of a layer that gradients pass through."
    )
    memory_coordinate_bytes: float = Field(default=0.0, ge=0, description="Memory of a trained coordinate.")
    step_fixed_s: float = Field(default=0.0, ge=0, description="Seconds of a step in any case, at speed 1.")
    step_layer_s: float = Field(
        default=0.0, ge=0, description="Seconds of a layer that gradients pass through."
    )
    step_coordinate_s: float = Field(default=0.0, ge=0, description="Seconds of a trained coordinate.")
    round_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds that a round may take a client: its steps, and what it sends and gets.",
    )

    @property
    def has_memory(self) -> bool:
        """Whether it says what memory a step takes."""
        return bool(self.memory_fixed_bytes or self.memory_layer_bytes or self.memory_coordinate_bytes)

    @property
    def has_time(self) -> bool:
        """Whether it says how long a step takes."""
        return bool(self.step_fixed_s or self.step_layer_s or self.step_coordinate_s)


class PruningSection(Section):
    """With this table, HetLoRA's clients give up their last components where these fade, and announce it."""

    keep: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="γ, the share of its components that a client keeps, rounded down. The others are its tail: where "
        "it is smaller after training than before, it is given up.",
    )
    penalty: float = Field(
        default=1e-3,
        ge=0,
        description="λ, what the tail ‖B‖·‖A‖ costs in training, by module; beside the noised gradient, of the weights "
        "alone.",
    )
    least: int = Field(default=1, ge=1, description="The rank below which nobody prunes.")


class AllocationSection(Section):
    """Which layers, at which rank, each client trains. Public, as what clients have is."""

    strategy: Strategy = Field(
        default="all",
        description="'all': everybody trains everything; 'geometric': the same layers every round, by `shape`; "
        "'random-geometric': layers drawn each round, by `shape`; 'fedra': drawn, all alike; 'fisher': drawn by score; "
        "'fedpilot': the layers of the largest score that fit; 'ranks': all layers at the largest of `ranks` that fits "
        "(docs/heterogeneous.md).",
    )
    shape: Literal["triangle", "inverted", "bottleneck", "uniform"] | None = Field(
        default=None,
        description="How many clients train each layer: most the lowest ('triangle'), the top ones ('inverted'), both "
        "ends ('bottleneck'), or all alike ('uniform').",
    )
    ranks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = Field(
        default=(), description="For 'ranks': those on offer; the largest is `lora.rank`."
    )
    scores: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] = Field(
        default=(),
        description="For 'fisher' and 'fedpilot': what each layer is worth, the lowest first, measured on PUBLIC data.",
    )
    scores_of: str | None = Field(
        default=None, min_length=1, description="The public data that scores are measured on."
    )
    rescore_every: int | None = Field(
        default=None,
        ge=1,
        description="For 'fisher' and 'fedpilot': after every so many rounds the server scores the layers again, at "
        "the global state, on 100 of the PUBLIC held-out rows, which `scores_of` names; before round 1 too where there "
        "are no `scores`. Needs data.evaluation_public or data.public.",
    )
    min_contributors: int | None = Field(
        default=None,
        ge=1,
        description="Fewest survivors whose sum on a layer, or a component of one, may be opened; a client refuses any "
        "session of fewer. Default: max_colluders + 2, or min_survivors where that is set and more; 1 without masks.",
    )
    holders: int | None = Field(
        default=None,
        ge=1,
        description="Clients that every layer and component is given to at the least. Default: as many as leave "
        "min_contributors of them with the two chances below.",
    )
    dropout_rate: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="For `holders`: the chance that a client is lost before it has masked.",
    )
    failure_probability: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="For `holders`: the chance of losing a round to that, at the most.",
    )
    tiers: Annotated[tuple[Tier, ...], Field(strict=False)] = Field(
        default=(),
        description="What clients have, as [[allocation.tiers]] tables; clients in none have no limits.",
    )
    cost: CostSection = Field(
        default_factory=CostSection, description="What training takes, for tiers by memory or time."
    )
    pruning: PruningSection | None = Field(
        default=None, description="How clients prune their ranks; without it they keep them."
    )

    @property
    def in_parts(self) -> bool:
        """Whether clients may train less than everything."""
        return self.strategy != "all"

    @property
    def finds(self) -> frozenset[str]:
        """What allocations follow from beside the file, and is found on the way."""
        kinds = {"scores": self.rescore_every, "ranks": self.pruning}
        return frozenset(kind for kind, asked in kinds.items() if asked is not None)

    def scored(self, round: int) -> bool:
        """Whether a round is dealt by scores that the server has measured."""
        return self.rescore_every is not None and (not self.scores or round > self.rescore_every)

    def scores_before(self, round: int) -> bool:
        """Whether the server measures between the round before and this one."""
        return self.rescore_every is not None and self.scored(round) and (round - 1) % self.rescore_every == 0

    def known_rounds(self, rounds: int) -> int:
        """Return of how many rounds, from the first on, the allocation follows from what is known before the run."""
        if self.pruning is not None:
            return 1
        return rounds if self.rescore_every is None else min(rounds, self.rescore_every)

    def least_contributors(self, secure: SecureAggregationSection) -> int:
        """Return `min_contributors` with the default filled in.

        >>> from fedlora_priv.config_federation import SecureAggregationSection
        >>> AllocationSection().least_contributors(SecureAggregationSection(max_colluders=1))
        3
        """
        if secure.mode == "insecure":
            return self.min_contributors or 1
        return self.min_contributors or max(secure.max_colluders + 2, secure.min_survivors or 0)
