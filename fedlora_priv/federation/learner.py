"""The model of an experiment, with its tokenizer, and where both come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_priv.config import Experiment
from fedlora_priv.data.assets import MINILM, fetch
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
        """Return rows as the model takes them, each cut to the longest input."""
        return tokenise(self.tokenizer, rows.texts, rows.labels, max_length=self.max_length)


def load_learner(experiment: Experiment, label_names: Sequence[str], say: Say) -> Learner:
    """Return the experiment's model and tokenizer, as every party has them before the first round.

    Raises:
        AssetError: the model cannot be had.
        ConfigError: it cannot be trained privately.
    """
    if experiment.model.task == "language-modelling":
        raise ConfigError("model.task = 'language-modelling' is not built yet", "use 'classification'")
    origin = _origin(experiment, say)
    model = load_model(
        origin.folder,
        pooling=experiment.model.pooling,
        num_labels=len(label_names),
        lora=LoraSettings(**experiment.lora.model_dump()),
        seed=experiment.experiment.seed,
    )
    return Learner(model, load_tokenizer(origin.folder), origin, experiment.model.max_length)


def _origin(experiment: Experiment, say: Say) -> Origin:
    """Return where the model comes from, fetched first if it is a demo's."""
    source = experiment.model.source
    if source == "demo:minilm":
        return Origin(str(fetch(MINILM, say)), MINILM.credit, f"{MINILM.credit} ({MINILM.licence})")
    folder = str(Path(source).expanduser()) if source.startswith("~") else source
    return Origin(folder, public_name(source), public_name(source))
