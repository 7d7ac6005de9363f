"""What this machine can do, and whether per-example gradients are right on it: ``fedlora doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from protocols.prg import SecretStream

LIBRARIES = ("numpy", "scipy", "cryptography", "dp-accounting", "torch", "opacus", "peft", "transformers")
TRAINING = ("torch", "opacus", "peft", "transformers")
LEAST_FREE_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: OK, WARN (slower or missing) or FAIL (a run would be wrong or stop)."""

    what: str
    status: Literal["OK", "WARN", "FAIL"]
    detail: str

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Return what was found, most basic first."""
    findings = [_python(), *_libraries(), _processor(), _disk(), _keystream(), _assets()]
    if all(_installed(name) for name in TRAINING):
        findings.append(_gradients())
    return findings


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


def _gradients() -> Finding:
    """Compare per-example gradients with brute force on a small random model."""
    from transformers import BertConfig, BertModel

    from fedlora_priv.errors import FedloraError
    from fedlora_priv.modeling import LoraSettings, attach_lora
    from fedlora_priv.pooling import MeanPoolingClassifier
    from fedlora_priv.training import preflight

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    base = MeanPoolingClassifier(BertModel(config), 2)
    model = attach_lora(base, LoraSettings(("query", "value"), rank=2), seed=0)
    try:
        checked = preflight(model)
    except FedloraError as error:
        return Finding("per-example gradients", "FAIL", str(error))
    detail = f"within {checked.brute_force_error:.0e} of brute force, {checked.arrays} arrays of a small BERT"
    return Finding("per-example gradients", "OK", detail)
