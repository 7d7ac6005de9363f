"""The experiment file: every value that affects a result, typed, bounded and described.

One TOML file holds one `Experiment`; `Experiment.load` reads it, applies ``--set`` overrides, refuses unknown
keys, wrong types, values out of range and combinations that cannot be honoured, each with one line
(`ConfigError`). The sections are in `config_model`, `config_data`, `config_federation` and `config_allocation`, the
reading and the wording of errors in `config_file`, the combinations in `config_checks`; `docs/configuration.md` is
generated from the descriptions (``python -m fedlora_priv.config_reference``).

All of it is public: the file travels to every party and its digest enters the secure aggregation context. No
field may hold a secret or a private size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, model_validator

from fedlora_priv import config_checks, config_file
from fedlora_priv.config_allocation import AllocationSection
from fedlora_priv.config_base import Section
from fedlora_priv.config_data import DataSection
from fedlora_priv.config_federation import (
    AggregationSection,
    CommunicationSection,
    EngineSection,
    FederationSection,
    PrivacySection,
    SecureAggregationSection,
    SimulateSection,
)
from fedlora_priv.config_model import LoraSection, ModelSection, TrainingSection


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


class Experiment(Section):
    """Everything that affects a result; one TOML file, one table per section."""

    experiment: ExperimentSection
    model: ModelSection = Field(default_factory=ModelSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    data: DataSection = Field(default_factory=DataSection)
    federation: FederationSection = Field(default_factory=FederationSection)
    aggregation: AggregationSection = Field(default_factory=AggregationSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    privacy: PrivacySection
    secure_aggregation: SecureAggregationSection = Field(default_factory=SecureAggregationSection)
    communication: CommunicationSection = Field(default_factory=CommunicationSection)
    allocation: AllocationSection = Field(default_factory=AllocationSection)
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
        """Return the SHA-256 (hex) of all that affects the result: not names, speed, memory, evaluations or engines."""
        free = {
            "experiment": {"name", "output"},
            "federation": {"evaluate_every"},
            "training": {"max_tokens_per_microbatch", "per_example", "gradient_checkpointing", "device"},
            "engine": {"kind", "train_timeout_s", "phase_timeout_s", "join_timeout_s"},
        }
        values = self.model_dump(mode="json", exclude=free)
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(b"fedlora-priv experiment v1\0" + canonical.encode()).hexdigest()

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients' names, client-1 to client-N, in roster order."""
        return tuple(f"client-{index + 1}" for index in range(self.federation.clients))

    @property
    def declared_sizes(self) -> dict[str, int]:
        """The public number of examples that each client declares; empty where nothing is declared."""
        data = self.data
        each = data.declared_examples or (data.declared_examples_per_client,) * self.federation.clients
        return {
            client_id: size for client_id, size in zip(self.client_ids, each, strict=True) if size is not None
        }

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
