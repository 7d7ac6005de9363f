"""One run of the SST-2 study: a setting in, a line of results out; and the file that keeps the lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from accounting.planning import plan
from accounting.pricing import epsilon
from benchmarks.resumable import stored_as
from benchmarks.sst2_cache import Lowered, lowered
from fedlora_priv.adapters import read_state
from fedlora_priv.data import assets
from fedlora_priv.data.tables import Columns, read_table
from fedlora_priv.errors import DataError
from fedlora_priv.methods.layout import Role
from fedlora_priv.modeling import LoraSettings, attach_lora, load_model, load_tokenizer
from fedlora_priv.pooling import MeanPoolingClassifier, masked_mean
from fedlora_priv.precision import BaseDtype
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples, tokenise
from fedlora_priv.training.batching import microbatches
from protocols.prg import SecretStream

State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Setting:
    """Everything that a run depends on but its noise and its batches, which are fresh every time.

    Args:
        epsilon: what the whole run may cost at `delta`; None for no noise at all.
        steps, batch: DP-SGD steps, and the mean size of their Poisson batches.
        roles: what is trained: any of "A", "B" and "head".
        targets: ends of the names of the modules that get LoRA, such as "value" or "5.attention.self.value".
        upper_layers: how many of the encoder's layers get LoRA, from the top; the outputs of those below are then
            computed once (`sst2_cache`). 0 for all layers and no cache.
        base_dtype: of the frozen base; "bfloat16" is twice as fast on a CPU that has it.
        average: decay of an exponential moving average over the noised states, whose last value is the result;
            0 takes the last state itself. Either is post-processing.
        seed: of the initialisation of A and the head.
        max_tokens: padded tokens computed at once; bounds memory, not the batch.
    """

    epsilon: float | None
    steps: int
    batch: int
    learning_rate: float
    clip_norm: float
    rank: int = 8
    alpha: float = 16.0
    optimizer: str = "adam"
    targets: tuple[str, ...] = ("query", "value")
    roles: tuple[str, ...] = ("B", "head")
    upper_layers: int = 0
    base_dtype: BaseDtype = "float32"
    average: float = 0.0
    seed: int = 0
    delta: float = 1e-5
    max_length: int = 64
    max_tokens: int = 2048

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Setting:
        """Return the setting that `asdict` and JSON made `stored` of."""
        return stored_as(cls, stored)

    def changed(self, name: str, text: str) -> Setting:
        """Return this setting with one field as `text` says; names are separated by commas.

        Raises:
            DataError: no such field, or a text that is not of its kind.

        >>> Setting(3.0, 70, 2048, 2e-3, 1.0).changed("roles", "B,head").roles
        ('B', 'head')
        """
        if name not in {entry.name for entry in fields(self)}:
            raise DataError(f"a setting has no {name!r}", f"name one of {', '.join(asdict(self))}")
        return replace(self, **{name: parsed(getattr(self, name), text, name)})


def parsed(present: Any, text: str, name: str) -> Any:
    """Return a text as a value of the kind that is there at present.

    Raises:
        DataError: it is not of that kind.
    """
    try:
        if name == "epsilon":
            return None if text == "none" else float(text)
        return tuple(text.split(",")) if isinstance(present, tuple) else type(present)(text)
    except ValueError:
        raise DataError(f"{name} cannot be {text!r}") from None


@dataclass(frozen=True)
class Task:
    """SST-2 and the encoder that is adapted to it."""

    encoder: Path
    train: TokenisedExamples
    dev: TokenisedExamples
    _lowered: dict[int, Lowered] = field(default_factory=dict, repr=False)

    def model(self, setting: Setting) -> tuple[Any, TokenisedExamples, TokenisedExamples, float]:
        """Return a fresh model, what it trains on, what it is judged by, and CPU minutes spent on lower layers."""
        lora = LoraSettings(setting.targets, rank=setting.rank, alpha=setting.alpha)
        if not setting.upper_layers:
            model = load_model(
                self.encoder,
                pooling="mean",
                num_labels=2,
                lora=lora,
                seed=setting.seed,
                base_dtype=setting.base_dtype,
            )
            return model, self.train, self.dev, 0.0
        if setting.upper_layers not in self._lowered:
            both = (self.train, self.dev)
            self._lowered[setting.upper_layers] = lowered(self.encoder, both, setting.upper_layers)
        done = self._lowered[setting.upper_layers]
        return (
            attach_lora(done.base(setting.base_dtype), lora, setting.seed),
            *done.examples,
            done.cpu_minutes,
        )


def load_task(data: Path, *, max_length: int, encoder: Path | None = None, limit: int | None = None) -> Task:
    """Return the task from a folder with GLUE's train.tsv and dev.tsv; `limit` keeps the first rows only."""
    folder = assets.fetch(assets.MINILM, print) if encoder is None else encoder
    tokenizer = load_tokenizer(folder)

    def read(name: str) -> TokenisedExamples:
        table = read_table(data / name, Columns("sentence", label="label"))
        labels = [int(label) for label in (table.labels or [])[:limit]]
        return tokenise(tokenizer, table.texts[:limit], labels, max_length=max_length)

    return Task(folder, read("train.tsv"), read("dev.tsv"))


def run(setting: Setting, task: Task) -> dict[str, Any]:
    """Return what one run gave: accuracy on dev, noise, priced epsilon, share clipped, CPU minutes.

    The minutes are of training, and of the cache of lower layers where there is one.

    Guarantee: example-level (epsilon, delta) as priced, for the published state; not for the share that was
    clipped, nor for having chosen the setting by looking at other runs.
    """
    noise, spent = _noise(setting, len(task.train))
    model, train, dev, lower_minutes = task.model(setting)
    began = time.process_time()
    trainer = PrivateTrainer(model)
    average = Average(setting.average, lambda: read_state(model))
    settings = StepSettings(
        steps=setting.steps,
        sample_rate=setting.batch / len(task.train),
        planned_batch_size=setting.batch,
        noise_multiplier=noise,
        clip_norm=setting.clip_norm,
        learning_rate=setting.learning_rate,
        optimizer=setting.optimizer,
        max_tokens_per_microbatch=setting.max_tokens,
    )
    result = trainer.train(
        train,
        read_state(model),
        settings,
        stream=SecretStream(),
        trainable=cast(frozenset[Role], frozenset(setting.roles)),
        on_step=average.take,
    )
    minutes = lower_minutes + (time.process_time() - began) / 60
    drawn = sum(record.batch_size for record in result.private_audit)
    last = trainer.evaluate(dev, result.state).value
    return {
        "accuracy": trainer.evaluate(dev, average.state).value if setting.average else last,
        "accuracy_of_last": last,
        "noise_multiplier": noise,
        "spent": spent,
        "clipped": sum(record.clipped for record in result.private_audit) / max(1, drawn),
        "dimension": result.dimension,
        "cpu_minutes": minutes,
    }


def _noise(setting: Setting, examples: int) -> tuple[float, float | None]:
    """Return the noise multiplier, and the epsilon that the ledger's accountant asks for all steps with it."""
    if setting.epsilon is None:
        return 0.0, None
    planned = plan(
        client_id="sst2",
        target_epsilon=setting.epsilon,
        delta=setting.delta,
        declared_examples=examples,
        planned_batch_size=setting.batch,
        rounds=1,
        steps_per_round=setting.steps,
        clip_norm=setting.clip_norm,
    )
    return planned.noise_multiplier, epsilon([planned.round_event()], setting.delta)


class Average:
    """An average of the states after each step: of all of them until their number reaches 1/(1 - decay), then
    exponential, so that the start state has no share in it.

    Args:
        decay: weight of what was averaged so far; 0 keeps the last state only.
        read: returns the present state.
    """

    def __init__(self, decay: float, read: Callable[[], State]) -> None:
        self._decay, self._read = decay, read
        self.state: State = {}

    def take(self, step: int) -> None:
        """Take in the state after step number `step`, from 1."""
        keep = np.float32(min(self._decay, 1 - 1 / step))
        if self._decay:
            new = self._read()
            self.state = {
                name: keep * self.state.get(name, new[name]) + (1 - keep) * new[name] for name in new
            }


def probe(task: Task, *, inverse_penalty: float = 1.0) -> dict[str, Any]:
    """Return the accuracy of a logistic regression on the frozen encoder's mean-pooled features: no LoRA, no DP.

    Args:
        task: what to learn.
        inverse_penalty: C of the objective |w|²/2 + C·Σ log(1 + exp(-y·f(x))), the intercept unpenalised.
    """
    began = time.process_time()
    train, dev = (features(task.encoder, examples) for examples in (task.train, task.dev))
    weights = logistic_regression(train, _labels(task.train), inverse_penalty)
    predicted = dev @ weights[:-1] + weights[-1] > 0
    return {
        "accuracy": float((predicted == _labels(task.dev)).mean()),
        "dimension": len(weights),
        "cpu_minutes": (time.process_time() - began) / 60,
    }


def features(encoder: Path, examples: TokenisedExamples) -> NDArray[np.float64]:
    """Return the mean-pooled last hidden state of every example, (n, width)."""
    model: Any = MeanPoolingClassifier.from_pretrained(str(encoder), 2).encoder
    model.eval()
    found = np.empty((len(examples), int(model.config.hidden_size)))
    with torch.no_grad():
        for indices in microbatches(examples.lengths(), 4096):
            batch = examples.subset(indices).collate(torch.device("cpu")).inputs
            found[indices] = masked_mean(model(**batch).last_hidden_state, batch["attention_mask"]).numpy()
    return found


def logistic_regression(
    inputs: NDArray[np.float64], labels: NDArray[np.int64], inverse_penalty: float
) -> NDArray[np.float64]:
    """Return the weights and, last, the intercept of the penalised maximum likelihood, (width + 1,)."""
    signs = 2.0 * labels - 1

    def objective(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (inputs @ weights[:-1] + weights[-1])
        pull = -inverse_penalty * signs * np.exp(-np.logaddexp(0, margins))
        value = 0.5 * weights[:-1] @ weights[:-1] + inverse_penalty * np.logaddexp(0, -margins).sum()
        return float(value), np.append(weights[:-1] + inputs.T @ pull, pull.sum())

    start = np.zeros(inputs.shape[1] + 1)
    solution = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(solution.x)


def _labels(examples: TokenisedExamples) -> NDArray[np.int64]:
    """Return the labels, which SST-2's examples have."""
    assert examples.labels is not None
    return examples.labels


class Lines:
    """Finished runs, one JSON object a line; a line that an interruption cut short counts as not run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.split("\n"):
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def have(self, key: Mapping[str, Any]) -> bool:
        """Return whether a run with these entries is there."""
        wanted = json.loads(json.dumps(key))
        return any(all(line.get(name) == value for name, value in wanted.items()) for line in self)

    def add(self, key: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
        """Append one run."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({**key, **outcome, "finished": time.strftime("%Y-%m-%d %H:%M", time.gmtime())})
        with self._path.open("a+", encoding="utf-8") as file:
            file.seek(0, 2)
            whole = file.tell() == 0 or _last_character(self._path) == "\n"
            file.write(("" if whole else "\n") + line + "\n")


def _last_character(path: Path) -> str:
    """Return a file's last character; a line cut short has no line end."""
    return path.read_text(encoding="utf-8")[-1:]
