"""The experiment file: every value that affects a result, typed, bounded and described.

One TOML file holds one `Experiment`; `Experiment.load` reads it, applies ``--set`` overrides, refuses unknown
keys, wrong types, values out of range and combinations that cannot be honoured, each with one line
(`ConfigError`). `docs/configuration.md` is generated from the descriptions below
(``python -m fedlora_priv.config_reference``); `config_file.py` holds the reading and the wording of errors.

All of it is public: the file travels to every party and its digest enters the secure aggregation context. No
field may hold a secret or a private size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedlora_priv import config_checks, config_file

Phase = Literal["advertise", "share", "mask", "confirm", "reveal"]
"""A phase of secure aggregation at which a client can be lost, before it sends that phase's message."""

DEMO_MODELS = ("demo:minilm",)
DEMO_DATASETS = ("demo:movie-snippets",)

Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has arrays, not tuples


def _demo_must_exist(source: str, demos: tuple[str, ...]) -> str:
    """Return the source, unless it names a demo that there is not."""
    if source.startswith("demo:") and source not in demos:
        raise ValueError(f"there is no {source!r}; the demos are {', '.join(demos)}")
    return source


class Section(BaseModel):
    """A table of the experiment file: immutable, no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ExperimentSection(Section):
    """Who this run is: its name, its public seed and where its files go."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the experiment: letters, digits, '.', '_' and '-', at most 64.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="PUBLIC seed of initialisation, data partition and support. Never of noise or sampling, "
        "which come from the operating system's entropy.",
    )
    output: str = Field(
        min_length=1, description="Run folder; relative to the working folder. Default: runs/<name>."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_output(cls, values: Any) -> Any:
        """Put the run folder under runs/ unless the file names one."""
        if isinstance(values, dict) and "output" not in values and isinstance(values.get("name"), str):
            return {**values, "output": f"runs/{values['name']}"}
        return values


class ModelSection(Section):
    """The frozen encoder and how a sentence becomes one vector."""

    source: str = Field(
        default="demo:minilm",
        min_length=1,
        description="'demo:minilm' (all-MiniLM-L6-v2, Apache-2.0), a local folder, or a hub model name.",
    )
    pooling: Literal["mean", "native"] = Field(
        default="mean",
        description="'mean': mean over the attention mask and a linear head (what sentence encoders are "
        "trained for); 'native': the architecture's own classification head.",
    )
    max_length: int = Field(
        default=64, ge=4, le=8192, description="Longest input in tokens; longer texts are truncated."
    )

    @field_validator("source")
    @classmethod
    def _known_demo(cls, source: str) -> str:
        """Refuse a demo model that there is not."""
        return _demo_must_exist(source, DEMO_MODELS)


class LoraSection(Section):
    """Which low-rank adapters are trained."""

    rank: int = Field(default=8, ge=1, le=1024, description="Rank r of every adapter.")
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the adapter is scaled by alpha / rank.")
    target_modules: Names = Field(
        default=("query", "value"), min_length=1, description="Name endings of the linear maps to adapt."
    )
    train_head: bool = Field(
        default=True, description="Train the classification head too; it is clipped and noised with the rest."
    )
    use_dora: bool = Field(default=False, description="Must be false: DoRA is refused under DP-SGD.")

    @field_validator("use_dora")
    @classmethod
    def _no_dora(cls, use_dora: bool) -> bool:
        """Refuse DoRA, with the reason."""
        if use_dora:
            raise ValueError(
                "cannot be honoured under DP-SGD: DoRA normalises the merged weight, of which no exact "
                "per-example gradients are to be had, so clipping would bound nothing; set it to false"
            )
        return use_dora


class DataSection(Section):
    """The text, its labels, its split over clients, and what about it is public."""

    source: str = Field(
        default="demo:movie-snippets",
        min_length=1,
        description="'demo:movie-snippets' (MIT; Hutto & Gilbert 2014), a local tsv/csv/jsonl file, a local "
        "folder with train.* and perhaps dev.*, or a hub dataset name.",
    )
    train_file: str | None = Field(
        default=None, min_length=1, description="Training file inside a source folder. Default: train.*."
    )
    evaluation_file: str | None = Field(
        default=None,
        min_length=1,
        description="Evaluation file inside a source folder. Default: dev.*, validation.* or test.*; "
        "without any, examples are held out of the training data if that is public.",
    )
    text_column: str = Field(default="sentence", min_length=1, description="Column that holds the text.")
    label_column: str = Field(default="label", min_length=1, description="Column that holds the label.")
    labels: Annotated[tuple[str, ...] | None, Field(strict=False)] = Field(
        default=None,
        min_length=2,
        description="PUBLIC names of the labels, in the order of the classes; rows with another label are "
        "refused. Required unless the data is public: names found in private rows would be released.",
    )
    evaluation_examples: int = Field(
        default=1000,
        ge=1,
        description="Examples held out of PUBLIC data for evaluation, drawn by the public seed, where the source "
        "has no evaluation split of its own. From private data nothing is held out.",
    )
    evaluation_public: bool = Field(
        default=False,
        description="Declare the evaluation split public. Otherwise no accuracy is reported (unless all data "
        "is public), because an accuracy over private rows is a release outside the guarantee.",
    )
    public: bool = Field(
        default=False,
        description="Declare all data public: the report then says that its privacy claim is a simulation.",
    )
    partition: Literal["iid", "dirichlet", "one-label-per-client"] = Field(
        default="iid", description="How training examples are split over the clients; disjoint."
    )
    dirichlet_alpha: float = Field(
        default=0.5,
        gt=0,
        description="Concentration of the 'dirichlet' partition; smaller is more skewed in labels.",
    )
    dataset_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Public, stable name of the dataset; a client keeps one privacy ledger for each.",
    )
    declared_examples_per_client: int | None = Field(
        default=None,
        ge=1,
        description="PUBLIC number of examples per client, from which sampling rate and noise "
        "are planned. Required unless the data is public: a true private size must not leak.",
    )

    @field_validator("source")
    @classmethod
    def _known_demo(cls, source: str) -> str:
        """Refuse a demo dataset that there is not."""
        return _demo_must_exist(source, DEMO_DATASETS)

    @property
    def accuracy_may_be_reported(self) -> bool:
        """Whether evaluating releases nothing private: all data, or its evaluation split, is public."""
        return self.public or self.evaluation_public


class FederationSection(Section):
    """How many clients, for how long, combined by which method."""

    clients: int = Field(default=5, ge=1, le=65_535, description="Number of clients: client-1 to client-N.")
    rounds: int = Field(default=12, ge=1, le=100_000, description="Rounds of training and aggregation.")
    method: Literal["fedit", "ffa", "fra"] = Field(
        default="ffa",
        description="'ffa': A frozen, B summed (exact); 'fedit': factors averaged (inexact product); 'fra': "
        "full-rank aggregation of B·A.",
    )
    local_steps: int = Field(
        default=1, ge=1, le=100_000, description="DP-SGD steps of each client in a round."
    )
    evaluate_every: int = Field(
        default=1, ge=1, description="Rounds between evaluations; the last round is always evaluated."
    )


class TrainingSection(Section):
    """The local DP-SGD step."""

    batch_size: int = Field(
        default=64,
        ge=1,
        description="EXPECTED examples per client and step; the true number is Poisson-sampled and secret.",
    )
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="Optimizer that consumes the clipped and noised gradient."
    )
    learning_rate: float = Field(default=0.5, gt=0, description="Learning rate.")
    clip_norm: float = Field(
        default=1.0, gt=0, description="L2 bound of one example's gradient over all trained arrays."
    )
    max_tokens_per_microbatch: int = Field(
        default=1024,
        ge=1,
        description="Padded tokens in one forward pass; bounds memory, does not change the result.",
    )
    deterministic_noise: bool = Field(
        default=False,
        description="Tests only: reproducible noise and sampling. There is NO privacy then, and the audit "
        "fails.",
    )


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
        description="Shares that recover a lost client's masks; above max_colluders. Default: quorum.",
    )
    min_survivors: int | None = Field(
        default=None,
        ge=1,
        description="Fewest clients in a sum; below it the round is lost. At least quorum, the default.",
    )

    def thresholds(self, clients: int) -> tuple[int, int, int]:
        """Return (quorum, threshold, min_survivors) with the defaults filled in.

        >>> SecureAggregationSection(max_colluders=1).thresholds(5)
        (4, 4, 4)
        """
        quorum = self.quorum or (clients + self.max_colluders) // 2 + 1
        return quorum, self.threshold or quorum, self.min_survivors or quorum

    def summary(self, clients: int) -> dict[str, int | str]:
        """Return what a plan and a report state of the sessions; without sessions, only that there are none."""
        if self.mode == "insecure":
            return {"mode": self.mode}
        quorum, threshold, min_survivors = self.thresholds(clients)
        return {
            "mode": self.mode,
            "clients": clients,
            "max_colluders": self.max_colluders,
            "quorum": quorum,
            "threshold": threshold,
            "min_survivors": min_survivors,
        }


class CommunicationSection(Section):
    """Which coordinates travel, at how many bits."""

    support: Literal["dense", "server-topk", "seeded-random-k"] = Field(
        default="dense",
        description="Coordinates that travel, the same for every client: all; the largest public ones; or "
        "drawn by the public seed.",
    )
    density: float = Field(
        default=1.0, gt=0, le=1, description="Fraction of coordinates that travel; 1 for 'dense'."
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
        le=24,
        description="Bits per travelling value before the head room for summing clients is added.",
    )


class EngineSection(Section):
    """Where the clients run."""

    kind: Literal["local"] = Field(default="local", description="'local': all clients in this process.")


class Dropout(Section):
    """One client lost in one round, on purpose."""

    round: int = Field(ge=1, description="Round of the loss; the first round is 1.")
    client_id: str = Field(description="Who is lost: 'client-1' to 'client-N'.")
    phase: Phase = Field(description="The client is lost BEFORE it sends this phase's message.")


class SimulateSection(Section):
    """Failures to act out."""

    dropouts: Annotated[tuple[Dropout, ...], Field(strict=False)] = Field(
        default=(), description="Clients to lose, as [[simulate.dropouts]] tables."
    )


class Experiment(Section):
    """Everything that affects a result; one TOML file, one table per section."""

    experiment: ExperimentSection
    model: ModelSection = Field(default_factory=ModelSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    data: DataSection = Field(default_factory=DataSection)
    federation: FederationSection = Field(default_factory=FederationSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    privacy: PrivacySection
    secure_aggregation: SecureAggregationSection = Field(default_factory=SecureAggregationSection)
    communication: CommunicationSection = Field(default_factory=CommunicationSection)
    engine: EngineSection = Field(default_factory=EngineSection)
    simulate: SimulateSection = Field(default_factory=SimulateSection)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Return the experiment in a TOML file, with ``section.key=value`` overrides applied.

        Raises:
            ConfigError: the file or an override cannot be read, or asks for what cannot be honoured.
        """
        return config_file.build(cls, config_file.read(Path(path)), overrides, origin=Path(path).name)

    @classmethod
    def from_toml(cls, text: str, overrides: Sequence[str] = (), origin: str = "experiment") -> Self:
        """Return the experiment in a TOML text; `origin` names it in errors.

        Raises:
            ConfigError: as `load`.
        """
        return config_file.build(cls, config_file.parse(text, origin), overrides, origin=origin)

    def to_toml(self) -> str:
        """Return the canonical TOML with every value resolved; reading it back gives an equal experiment."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of all that affects the result: not names, memory limits or evaluations."""
        free = {
            "experiment": {"name", "output"},
            "federation": {"evaluate_every"},
            "training": {"max_tokens_per_microbatch"},
        }
        values = self.model_dump(mode="json", exclude=free)
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(b"fedlora-priv experiment v1\0" + canonical.encode()).hexdigest()

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients' names, client-1 to client-N, in roster order."""
        return tuple(f"client-{index + 1}" for index in range(self.federation.clients))

    def require_delta_below(self, examples: int) -> None:
        """Raise unless delta is below 1 / `examples`, the rows of all clients together (a public number).

        Raises:
            ConfigError: at or above it a mechanism may publish a whole row and still keep its promise.
        """
        config_checks.check_delta(self.privacy.delta, examples)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse combinations that cannot be honoured."""
        config_checks.check(self)
        return self
