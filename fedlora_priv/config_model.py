"""The sections that say what is trained and how: [model], [lora] and [training]."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedlora_priv.config_base import Names, Section, demo_must_exist

DEMO_MODELS = ("demo:minilm", "demo:smollm2")
ALL_LINEAR: Literal["all-linear"] = "all-linear"
Ranks = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]
"""An array of ranks: TOML has arrays, not tuples."""


class ModelSection(Section):
    """The frozen transformer and what it is to learn."""

    source: str = Field(
        default="demo:minilm",
        min_length=1,
        description="'demo:minilm' (all-MiniLM-L6-v2, Apache-2.0), 'demo:smollm2' (SmolLM2-135M-Instruct, quantised "
        "to 4 bits, Apache-2.0; a language model, needs the extra 'gguf'), a local folder, or a hub model name.",
    )
    task: Literal["classification", "language-modelling"] = Field(
        default="classification",
        description="'classification': a text's label; 'language-modelling': the next tokens of a text (causal "
        "models), measured by perplexity.",
    )
    pooling: Literal["mean", "native"] = Field(
        default="mean",
        description="Classification only. 'mean': mean over the attention mask and a linear head (what sentence "
        "encoders are trained for); 'native': the architecture's own classification head.",
    )
    base_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the frozen weights. 'bfloat16' halves their memory and is fast where the hardware "
        "has it (`fedlora doctor` says); adapters, clipping and noise stay float32.",
    )
    max_length: int = Field(
        default=64,
        ge=4,
        le=8192,
        description="Longest input in tokens; what a row has beyond that is cut off.",
    )

    @property
    def metric(self) -> Literal["accuracy", "perplexity"]:
        """What the task is evaluated by."""
        return "accuracy" if self.task == "classification" else "perplexity"

    @field_validator("source")
    @classmethod
    def _known_demo(cls, source: str) -> str:
        """Refuse a demo model that there is not."""
        return demo_must_exist(source, DEMO_MODELS)


class LoraSection(Section):
    """Which low-rank adapters are trained."""

    rank: int = Field(default=8, ge=1, le=1024, description="Rank r of every adapter.")
    ranks: Ranks = Field(
        default=(),
        description="For 'flexlora' and 'flora': one rank per client, the largest of them `rank`. Public. Default: "
        "`rank` for all.",
    )
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the adapter is scaled by alpha / rank.")
    use_rslora: bool = Field(
        default=False,
        description="Scale the adapter by alpha / √rank instead (rank-stabilised LoRA, Kalajdzievski 2023).",
    )
    target_modules: Names = Field(
        default=("query", "value"),
        min_length=1,
        description='Name endings of the linear maps to adapt, such as ["q_proj", "v_proj"] of a Llama; or '
        '"all-linear": all of them but the head.',
    )
    train_head: bool = Field(
        default=True,
        description="Train the classification head too; it is clipped and noised with the rest. A language model "
        "has none.",
    )
    use_dora: bool = Field(default=False, description="Must be false: DoRA is refused under DP-SGD.")

    def scaling(self, rank: int) -> float:
        """Return by what an adapter of a rank is scaled.

        >>> LoraSection(alpha=16.0).scaling(4)
        4.0
        """
        return self.alpha / (rank**0.5 if self.use_rslora else rank)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear(cls, targets: Any) -> Any:
        """Take "all-linear" by itself as the array that holds nothing else."""
        if isinstance(targets, str) and targets != ALL_LINEAR:
            raise ValueError(f'is one text; give an array of names, ["{targets}"], or "{ALL_LINEAR}"')
        return (ALL_LINEAR,) if targets == ALL_LINEAR else targets

    @field_validator("target_modules")
    @classmethod
    def _all_or_some(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse all linear maps and some more."""
        if ALL_LINEAR in targets and len(targets) > 1:
            raise ValueError(f"{ALL_LINEAR!r} is already every linear map; name it alone")
        return targets

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
    learning_rate: float = Field(default=0.5, gt=0, le=1e6, description="Learning rate.")
    clip_norm: float = Field(
        default=1.0, gt=0, description="L2 bound of one example's gradient over all trained arrays."
    )
    clipping: Literal["flat", "per-layer", "adaptive"] = Field(
        default="flat",
        description="'flat': an example's whole gradient is scaled to clip_norm. 'per-layer': the part of each of L "
        "adapted maps (and the head) to clip_norm / √L; the same bound, so the same price. 'adaptive': the bound "
        "begins at clip_norm and follows noised counts of the gradients within it, which share the price.",
    )
    target_quantile: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="For 'adaptive': the share of gradients that should be within the bound.",
    )
    clip_learning_rate: float = Field(
        default=0.2,
        gt=0,
        le=10,
        description="For 'adaptive': how fast the bound follows; in a step at most by about the factor e to this.",
    )
    count_noise_stddev: float | None = Field(
        default=None,
        gt=0,
        description="For 'adaptive': noise on each step's count. Default: batch_size / 20. Less noise costs more.",
    )
    per_example: Literal["auto", "direct", "hooks", "ghost"] = Field(
        default="auto",
        description="How examples' gradients are clipped; all ways give the same sums up to rounding, and 'auto' takes "
        "the fastest that fits the model. 'direct': norms from LoRA's own factors; 'hooks' and 'ghost': Opacus.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations twice to keep fewer: less memory, more time, same result.",
    )
    device: str = Field(
        default="auto",
        description="Where the model runs: 'auto' (a GPU if there is one), 'cpu', 'cuda' or 'cuda:N'.",
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

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        """Refuse what is not a device that norms in float64 can be computed on."""
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
            raise ValueError(f"{device!r} is no device here; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
        return device
