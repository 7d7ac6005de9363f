"""What this machine can do, and whether per-example gradients are right on it: ``fedlora doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedlora_priv.errors import FedloraError
from protocols.prg import SecretStream

if TYPE_CHECKING:
    import torch
    from transformers import BertConfig

    from fedlora_priv.config import Experiment
    from fedlora_priv.federation.setup import Parts
    from fedlora_priv.methods import Role
    from fedlora_priv.training import PrivateTrainer, Rehearsal, StepSettings

LIBRARIES = ("numpy", "scipy", "cryptography", "dp-accounting", "torch", "opacus", "peft", "transformers")
TRAINING = ("torch", "opacus", "peft", "transformers")
LEAST_FREE_BYTES = 2 * 10**9
_GRADIENTS = "per-example gradients"
_PARTS = "parts of the model"
_TYPICAL = (4, 64)
"""Rows of a step and tokens of a row that a model of MiniLM's shape is measured with."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: OK, WARN (slower or missing) or FAIL (a run would be wrong or stop).

    `problem` is the error that a FAIL was found by, if it was one: a command leaves with its exit code.
    """

    what: str
    status: Literal["OK", "WARN", "FAIL"]
    detail: str
    problem: FedloraError | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON values."""
        return {"what": self.what, "status": self.status, "detail": self.detail}


def examine() -> list[Finding]:
    """Return what was found, most basic first."""
    findings = [_python(), *_libraries(), _processor(), _disk(), _keystream(), _assets()]
    if all(_installed(name) for name in TRAINING):
        findings += [_device(), *_small_model(), *_typical_model()]
    return findings


def examine_experiment(experiment: Experiment) -> list[Finding]:
    """Return what a rehearsal of an experiment's own steps saw, what one whole step takes here, and what its parts do.

    Costs no budget. The steps' rows are made up, each as long as the experiment allows, so they are as slow and
    as large as steps of that many rows can be.

    Raises:
        FedloraError: what `fedlora run` would raise: the experiment's data, model or plan cannot be had, or its steps
            would not train privately.
    """
    from fedlora_priv.federation.setup import assemble
    from fedlora_priv.reports.summary import environment_text

    parts = assemble(experiment, lambda _: None)
    setting = environment_text(parts.environment())
    return [_device(), *_rehearsed(parts.rehearse(), setting), _whole_step(parts), *_parts_of(parts)]


def _device() -> Finding:
    """Look at what computes, and whether it has bfloat16."""
    import torch

    from fedlora_priv.precision import has_bfloat16, resolve_device

    device = resolve_device("auto")
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    precision = "has bfloat16" if has_bfloat16(device) else 'no bfloat16: keep model.base_dtype = "float32"'
    return Finding("device", "OK", f"{device} ({name}), {precision}")


def _rehearsed(seen: Rehearsal, setting: str) -> list[Finding]:
    """Return a line for what was rehearsed, and one for each thing that was seen."""
    lines = [setting, *seen.lines(), f"rehearsed in {seen.seconds:.1f} s"]
    return [Finding(_GRADIENTS, "OK", line) for line in lines]


def _whole_step(parts: Parts) -> Finding:
    """Time one step of the planned batch, of rows as long as they may be, and measure its memory."""
    from dataclasses import replace

    from fedlora_priv.federation.environment import step_settings
    from fedlora_priv.memory import reset_peak
    from fedlora_priv.training.made_up import made_up_examples

    plan = next(iter(parts.plans.values()))
    settings = replace(step_settings(parts.experiment, plan), steps=1, sample_rate=1.0)
    rows, length = max(1, round(plan.planned_batch_size)), parts.experiment.model.max_length
    examples = made_up_examples(parts.trainer.model, (length,) * rows)
    reset_peak(parts.trainer.device)
    began = time.perf_counter()
    parts.trainer.train(
        examples, parts.initial, settings, stream=SecretStream(),
        trainable=parts.method.contract(parts.layout).trains,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    speed = f"{rows} rows of {length} tokens in {seconds:.2f} s, {rows / seconds:.0f} rows/s"
    return Finding("one private step", "OK", f"{speed}; {_peak(parts.trainer.device)}")


def _peak(device: torch.device) -> str:
    """Return the largest memory since it was last reset."""
    from fedlora_priv.memory import peak_bytes

    of = "on the GPU" if device.type == "cuda" else "all of the process"
    return f"peak {peak_bytes(device) / 1e9:.2f} GB, {of}"


def _parts_of(parts: Parts) -> list[Finding]:
    """Measure parts of the experiment's model, with the settings of its first client."""
    from fedlora_priv.federation.environment import step_settings

    plan = next(iter(parts.plans.values()))
    load = (max(1, round(plan.planned_batch_size)), parts.experiment.model.max_length)
    roles = parts.method.contract(parts.layout).trains
    return _holds(parts.trainer, step_settings(parts.experiment, plan), load, roles)


def _typical_model() -> list[Finding]:
    """Measure parts of a model of MiniLM's shape, with random weights."""
    from transformers import BertConfig

    from fedlora_priv.training.trainer import ALL_ROLES

    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    try:
        found = _holds(_random_model(config, rank=8), _private_step(), _TYPICAL, ALL_ROLES)
    except FedloraError as error:
        return [Finding(_PARTS, "FAIL", str(error))]
    named = (
        "a model of MiniLM's shape, LoRA on query and value (name an experiment's file to measure its own)"
    )
    return [Finding(_PARTS, "OK", named), *found]


def _holds(
    trainer: PrivateTrainer, settings: StepSettings, load: tuple[int, int], roles: frozenset[Role]
) -> list[Finding]:
    """Measure what parts of a model need, and say how much of it this machine can hold.

    Args:
        load: rows of a step, and tokens of a row.
        roles: that are trained.
    """
    from fedlora_priv import capacity
    from fedlora_priv.allocation.errors import AllocationError
    from fedlora_priv.allocation.measuring import measure
    from fedlora_priv.memory import usable_bytes

    try:
        measured = measure(trainer, settings, rows=load[0], length=load[1], trainable=roles)
    except AllocationError as problem:
        return [Finding(_PARTS, "OK", f"all of it or nothing: {problem}")]
    usable = usable_bytes(trainer.device)
    found = [Finding(_PARTS, "OK", line) for line in capacity.lines(measured, usable)]
    return [
        *found,
        Finding("to declare what this machine has", "OK", capacity.declaration(measured.cost, usable)),
    ]


def _python() -> Finding:
    """Look at the interpreter."""
    good = sys.version_info >= (3, 11)
    return Finding("python", "OK" if good else "FAIL", platform.python_version())


def _installed(name: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _libraries() -> list[Finding]:
    """Look at what is installed."""
    findings = []
    for name in LIBRARIES:
        if _installed(name):
            findings.append(Finding(name, "OK", importlib.metadata.version(name)))
        elif name in TRAINING:
            findings.append(Finding(name, "WARN", "needed to train: pip install 'fedlora-priv[train]'"))
        else:
            findings.append(Finding(name, "FAIL", "missing: pip install fedlora-priv"))
    return findings


def _processor() -> Finding:
    """Count the cores."""
    return Finding("processor", "OK", f"{os.cpu_count()} cores, {platform.machine()}")


def _disk() -> Finding:
    """Look at the free space where runs and assets go."""
    free = shutil.disk_usage(Path.cwd()).free
    status: Literal["OK", "WARN"] = "OK" if free > LEAST_FREE_BYTES else "WARN"
    return Finding("free disk", status, f"{free / 1e9:.1f} GB in the working folder")


def _keystream() -> Finding:
    """Time the keystream that masks and noise are made of."""
    stream, size = SecretStream(), 64 << 20
    stream.bytes(1 << 20)
    began = time.perf_counter()
    stream.bytes(size)
    speed = size / (time.perf_counter() - began) / 1e9
    return Finding("AES-256-CTR keystream", "OK" if speed > 1 else "WARN", f"{speed:.1f} GB/s")


def _assets() -> Finding:
    """Look for the demo's model and data in the cache."""
    from fedlora_priv.data.assets import MINILM, MOVIE_SNIPPETS, fetch, is_cached

    missing = [asset.name for asset in (MINILM, MOVIE_SNIPPETS) if not is_cached(asset)]
    if missing:
        return Finding("demo assets", "WARN", f"{', '.join(missing)}: the first run fetches them")
    return Finding("demo assets", "OK", f"cached, hashes right; the model is in {fetch(MINILM)}")


def _small_model() -> list[Finding]:
    """Rehearse private steps with a small random model."""
    from transformers import BertConfig

    from fedlora_priv.training import rehearse

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    try:
        seen = rehearse(_random_model(config, rank=2), _private_step())
    except FedloraError as error:
        return [Finding(_GRADIENTS, "FAIL", str(error))]
    return _rehearsed(seen, seen.preflight.setting())


def _random_model(config: BertConfig, rank: int) -> PrivateTrainer:
    """Return the trainer of a BERT with random weights, LoRA on query and value.

    Raises:
        FedloraError: it cannot be trained here.
    """
    from transformers import BertModel

    from fedlora_priv.modeling import LoraSettings, attach_lora
    from fedlora_priv.pooling import MeanPoolingClassifier
    from fedlora_priv.training import PrivateTrainer

    base = MeanPoolingClassifier(BertModel(config), 2)
    return PrivateTrainer(attach_lora(base, LoraSettings(("query", "value"), rank), seed=0))


def _private_step() -> StepSettings:
    """Return the settings of one private step of a made-up batch."""
    from fedlora_priv.training import StepSettings

    return StepSettings(
        steps=1,
        sample_rate=1.0,
        planned_batch_size=4.0,
        noise_multiplier=1.0,
        clip_norm=1.0,
        learning_rate=0.1,
    )
