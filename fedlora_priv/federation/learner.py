"""The model of an experiment, with its tokenizer, and where both come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_priv.config import Experiment
from fedlora_priv.config_model import ALL_LINEAR
from fedlora_priv.data.assets import MINILM, SMOLLM2, fetch
from fedlora_priv.data.gguf import unpacked
from fedlora_priv.data.sources import Dataset, public_name
from fedlora_priv.errors import ConfigError
from fedlora_priv.modeling import LoraSettings, load_model, load_tokenizer
from fedlora_priv.training.examples import TokenisedExamples, tokenise

Say = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Args:
        folder: a local folder or a hub name to load.
        reference: what the adapter's card tells a reader to load the adapter onto.
        credit: licence and authors, as far as they are known.
    """

    folder: str
    reference: str
    credit: str


@dataclass(frozen=True)
class Learner:
    """A PEFT model in evaluation mode and its tokenizer."""

    model: Any
    tokenizer: Any
    origin: Origin
    max_length: int

    def examples(self, rows: Dataset) -> TokenisedExamples:
        """Return rows as the model takes them, each cut to the longest input; a newline ends a prompt."""
        prompts = None if rows.prompts is None else [f"{prompt}\n" for prompt in rows.prompts]
        return tokenise(self.tokenizer, rows.texts, rows.labels, max_length=self.max_length, prompts=prompts)


def load_learner(
    experiment: Experiment, label_names: Sequence[str], say: Say, folder: Path | None = None
) -> Learner:
    """Return the experiment's model and tokenizer, as every party has them before the first round.

    Args:
        experiment: which model, with which adapters.
        label_names: empty for language modelling.
        say: receives a line for every download.
        folder: where the model is on this machine, if not where the experiment says.

    Raises:
        AssetError: the model cannot be had.
        ConfigError: it cannot be trained privately.
    """
    wanted = experiment.model
    origin = _origin(experiment, say) if folder is None else _origin_at(folder, wanted.source)
    model = load_model(
        origin.folder,
        task=wanted.task,
        pooling=wanted.pooling,
        num_labels=len(label_names) or None,
        base_dtype=wanted.base_dtype,
        lora=_lora(experiment),
        seed=experiment.experiment.seed,
    )
    _require_positions(model, wanted.max_length)
    return Learner(model, load_tokenizer(origin.folder), origin, wanted.max_length)


def _lora(experiment: Experiment) -> LoraSettings:
    """Return which adapters are trained."""
    wanted = experiment.lora
    return LoraSettings(
        target_modules=ALL_LINEAR if wanted.target_modules == (ALL_LINEAR,) else wanted.target_modules,
        rank=wanted.rank,
        alpha=wanted.alpha,
        use_rslora=wanted.use_rslora,
        train_head=wanted.train_head,
    )


def _require_positions(model: Any, max_length: int) -> None:
    """Refuse rows that are longer than the model has positions: some models crash on them, some lose their way."""
    positions = getattr(model.get_base_model().config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from behind padding
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"model.max_length = {max_length} is above the {positions} positions that the model has",
            "lower it",
        )


def _origin(experiment: Experiment, say: Say) -> Origin:
    """Return where the model comes from, fetched first if it is a demo's."""
    source = experiment.model.source
    if source == "demo:minilm":
        return Origin(str(fetch(MINILM, say)), MINILM.credit, f"{MINILM.credit} ({MINILM.licence})")
    if source == "demo:smollm2":
        credit = f"{SMOLLM2.credit}, quantised to 4 bits ({SMOLLM2.licence})"
        return Origin(str(unpacked(fetch(SMOLLM2, say), say)), SMOLLM2.credit, credit)
    folder = str(Path(source).expanduser()) if source.startswith("~") else source
    return Origin(folder, public_name(source), public_name(source))


def _origin_at(folder: Path, source: str) -> Origin:
    """Return a model that lies elsewhere on this machine than the experiment, which names it, says.

    Raises:
        ConfigError: it is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no model in {folder}", "mend the path, or copy the agreed model there")
    return Origin(str(folder), public_name(source), public_name(source))
