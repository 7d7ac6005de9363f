"""The sections that say who works together, and under which promise.

[federation], [aggregation], [privacy], [secure_aggregation], [communication], [engine] and [simulate].
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedlora_priv.config_base import Section

Phase = Literal["advertise", "share", "mask", "confirm", "reveal"]
"""A phase of secure aggregation at which a client can be lost, before it sends that phase's message."""


MethodName = Literal[
    "fedit", "ffa", "fra", "hybrid", "fedsvd", "flexlora", "hetlora", "fedask", "flora", "fedex", "rolora", "fedsa",
    "lora-fair", "fed-sb", "rac-lora",
]  # fmt: skip
"""The aggregation methods (`fedlora_priv.methods.METHODS`)."""


class FederationSection(Section):
    """How many clients, for how long, combined by which method."""

    clients: int = Field(default=5, ge=1, le=65_535, description="Number of clients: client-1 to client-N.")
    rounds: int = Field(default=12, ge=1, le=100_000, description="Rounds of training and aggregation.")
    method: MethodName = Field(
        default="ffa",
        description="How clients' adapters become one: `fedlora methods` lists and docs/methods.md compares them. "
        "'ffa': A frozen, B averaged; 'fra': the mean of the products B·A by a truncated SVD; 'hybrid': 'fra' first, "
        "then 'ffa'.",
    )
    local_steps: int = Field(
        default=1, ge=1, le=100_000, description="DP-SGD steps of each client in a round."
    )
    evaluate_every: int = Field(
        default=1, ge=1, description="Rounds between evaluations; the last round is always evaluated."
    )


class AggregationSection(Section):
    """Options of the method; what the chosen one does not use is refused (`fedlora methods NAME` lists its own)."""

    products: Literal["sketch", "two-pass", "exact"] = Field(
        default="sketch",
        description="How the mean of the products B·A is had from sums. 'sketch': from the factors and a sketch, about "
        "three times LoRA's upload; 'two-pass': a second exchange, nearer; 'exact': dense products, m·n coordinates a "
        "module.",
    )
    fallback: Literal["none", "two-pass", "exact"] = Field(
        default="none",
        description="For products = 'sketch': what a second exchange sends where the sketch has missed more than "
        "`tolerance`; 'none' never asks for one.",
    )
    tolerance: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="For `fallback`: the most that a sketch may miss, as a fraction of the norm of the mean product.",
    )
    switch_round: int | None = Field(
        default=None,
        ge=2,
        description="For 'hybrid': the first round of FFA-LoRA. Default: the first after half of the rounds.",
    )
    block_rounds: int = Field(
        default=1, ge=1, description="For 'rac-lora': rounds between two merges into the base weights."
    )
    largest_norm: float = Field(
        default=1.0,
        gt=0,
        description="For 'hetlora': the norm of a module's s·B·A from which on a client's weight is 1; smaller ones "
        "count in proportion, down to a sixteenth.",
    )
    server_optimizer: Literal["average", "momentum", "adam"] = Field(
        default="average",
        description="What the server makes of a mean change, for methods that only move arrays by it.",
    )
    server_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Step of the server optimiser. Default: 1, for 'adam' 0.001.",
    )
    server_momentum: float = Field(
        default=0.9, ge=0, lt=1, description="For 'momentum' and 'adam': what is kept of earlier changes."
    )

    def first_ffa_round(self, rounds: int) -> int:
        """Return the hybrid's first round of FFA-LoRA.

        >>> AggregationSection().first_ffa_round(12)
        7
        """
        return self.switch_round or rounds // 2 + 1


class PrivacySection(Section):
    """The promise: unit, epsilon and delta."""

    mode: Literal["local", "distributed", "client"] = Field(
        default="local",
        description="Who adds noise. 'local': every client in full. The others are refused: not built yet.",
    )
    epsilon: float = Field(gt=0, description="Target epsilon of every client over the whole run.")
    lifetime_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="Limit on what a client's ledger may amount to over all runs on its dataset, at `delta`. "
        "Default: epsilon.",
    )
    delta: float = Field(
        default=1e-5,
        ge=1e-9,
        lt=1,
        description="Delta, a probability; must be below 1 / all examples of the federation. Below 1e-9 nothing "
        "can be certified.",
    )
    unit: Literal["example"] = Field(
        default="example", description="What is protected: one example (a row), added or removed."
    )
    retry_rounds: int = Field(
        default=1,
        ge=0,
        description="Rounds that a client may have to train again after a crash, paid for in the noise.",
    )

    @property
    def ledger_limit(self) -> float:
        """The epsilon that a client's whole ledger may reach."""
        return self.epsilon if self.lifetime_epsilon is None else self.lifetime_epsilon

    @field_validator("mode")
    @classmethod
    def _built(cls, mode: str) -> str:
        """Refuse the modes that are not built yet."""
        if mode != "local":
            raise ValueError(f"{mode!r} is not built yet; use 'local'")
        return mode


class SecureAggregationSection(Section):
    """What the server may see, and how many losses and colluders a round survives."""

    mode: Literal["secure", "insecure"] = Field(
        default="secure",
        description="'secure': the server sees only masked vectors and their sum; 'insecure': it sees every "
        "update (baselines and tests).",
    )
    max_colluders: int = Field(
        default=1, ge=0, description="Clients that may collude with the server without breaking the masks."
    )
    quorum: int | None = Field(
        default=None,
        ge=1,
        description="Clients that must confirm a round; 2·quorum > clients + max_colluders. Default: the "
        "smallest such number.",
    )
    threshold: int | None = Field(
        default=None,
        ge=1,
        description="Shares that recover a lost client's masks; above max_colluders. Default: quorum; with "
        "`neighbours` two thirds of them and the client itself.",
    )
    min_survivors: int | None = Field(
        default=None,
        ge=1,
        description="Fewest clients in a sum; below it the round is lost. At least quorum, the default.",
    )
    neighbours: int | None = Field(
        default=None,
        ge=2,
        description="Clients that each one masks with, on a ring: even, and above max_colluders. Fewer cost fewer "
        "bytes and survive fewer losses (docs/parameters.md); `fedlora plan` says how many. Default: everybody.",
    )

    def thresholds(self, clients: int) -> tuple[int, int, int]:
        """Return (quorum, threshold, min_survivors) with the defaults filled in.

        >>> SecureAggregationSection(max_colluders=1).thresholds(5)
        (4, 4, 4)
        >>> SecureAggregationSection(max_colluders=1, neighbours=6).thresholds(20)
        (11, 5, 11)
        """
        quorum = self.quorum or (clients + self.max_colluders) // 2 + 1
        min_survivors = self.min_survivors or quorum
        return (
            quorum,
            self.threshold or self._default_threshold(clients, quorum, min_survivors),
            min_survivors,
        )

    def degree(self, participants: int) -> int:
        """Return how many neighbours each of the participants of a session masks with.

        >>> SecureAggregationSection(neighbours=6).degree(20), SecureAggregationSection(neighbours=6).degree(5)
        (6, 4)
        """
        return participants - 1 if self.neighbours is None else min(self.neighbours, participants - 1)

    def _default_threshold(self, clients: int, quorum: int, min_survivors: int) -> int:
        """Return the quorum; on a ring what is recommended for it, but never more than the smallest sum has clients."""
        degree = self.degree(clients)
        if degree == clients - 1:
            return quorum
        two_thirds = math.ceil(2 * (degree + 1) / 3)  # as `protocols.secagg.session.recommended`
        return min(max(self.max_colluders + 1, two_thirds), min_survivors)


class CommunicationSection(Section):
    """Which coordinates travel, at how many bits."""

    support: Literal["dense", "server-topk", "seeded-random-k", "voted-topk"] = Field(
        default="dense",
        description="Coordinates that travel, the same for every client: all; the largest public ones; drawn by the "
        "public seed; or those that most clients vote for, under masks of their own.",
    )
    density: float = Field(
        default=1.0, gt=0, le=1, description="Fraction of coordinates that travel; 1 for 'dense'."
    )
    densities: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)] = Field(
        default=(),
        description="Instead of `density`: one for each client, in roster order. Clients of one density are a tier; "
        "each tier's coordinates are part of the next wider one's. Who has which is public.",
    )
    vote_every: int = Field(
        default=1,
        ge=1,
        description="For 'voted-topk': rounds for which what was voted is kept; the first of them votes.",
    )
    whole_rounds: int | None = Field(
        default=None,
        ge=0,
        description="For 'server-topk': rounds at the beginning in which everything travels, so that there are sums to "
        "rank coordinates by. Default: 1; 0 with `densities`, and where there is no second round.",
    )
    exploration: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Fraction of a 'server-topk' support that is drawn at random, so that unused coordinates "
        "can grow.",
    )
    value_bits: int = Field(
        default=16,
        ge=2,
        le=16,
        description="Bits per travelling value, sign included, before the head room for summing clients is added.",
    )
    error_feedback: bool = Field(
        default=False,
        description="Whether a client keeps what coordinates and bits left out of a round, and adds it to what it "
        "sends in the next. For methods that only move arrays by their mean change.",
    )
    download_density: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of the coordinates that clients start from, those that have moved most; the others start "
        "as they were before the first round. The server keeps all. 1 sends every one that has moved. For methods that "
        "only move arrays by their mean change.",
    )
    train: Literal["all", "support"] = Field(
        default="all",
        description="What clients train: all coordinates, of which those of the support then travel; or those of the "
        "support alone, so that only they are clipped and noised. The second for methods that only move arrays by "
        "their mean change, and for supports that are known before training: not 'voted-topk'.",
    )

    @property
    def tiers(self) -> tuple[float, ...]:
        """The different densities, the narrowest first.

        >>> CommunicationSection(densities=(1.0, 0.25, 1.0)).tiers
        (0.25, 1.0)
        """
        return tuple(sorted(set(self.densities or (self.density,))))


class EngineSection(Section):
    """Where the clients run, and how long the server waits for them; no part of what they compute."""

    kind: Literal["local", "flower", "flower-simulation"] = Field(
        default="local",
        description="'local': all clients in this process; 'flower': each on a Flower SuperNode of its own (docs/"
        "flower.md); 'flower-simulation': all on this machine, in as many processes of Ray as it has cores.",
    )
    train_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="With Flower: seconds in which a client must answer a message that makes it train or evaluate; "
        "then it is lost for the round. Default: 3600.",
    )
    phase_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="With Flower: seconds in which a client must answer any other message. Default: 120.",
    )
    join_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="With Flower: seconds that the first round waits for nodes that are not there or are nobody's; it "
        "then begins without them. Default: 300.",
    )

    def timeouts(self) -> tuple[float, float, float]:
        """Return `train_timeout_s`, `phase_timeout_s` and `join_timeout_s` with the defaults filled in.

        >>> EngineSection(kind="flower", phase_timeout_s=30.0).timeouts()
        (3600.0, 30.0, 300.0)
        """
        return self.train_timeout_s or 3600.0, self.phase_timeout_s or 120.0, self.join_timeout_s or 300.0


class Dropout(Section):
    """One client lost in one round, on purpose."""

    round: int = Field(ge=1, description="Round of the loss; the first round is 1.")
    client_id: str = Field(description="Who is lost: 'client-1' to 'client-N'.")
    phase: Phase = Field(
        description="The client is lost BEFORE it sends this phase's message; in 'advertise' it has trained."
    )
    exchange: int = Field(
        default=0,
        ge=0,
        description="Exchange of the round, for methods that sum more than once; the first is 0.",
    )


class SimulateSection(Section):
    """Failures to act out."""

    dropouts: Annotated[tuple[Dropout, ...], Field(strict=False)] = Field(
        default=(), description="Clients to lose, as [[simulate.dropouts]] tables."
    )
