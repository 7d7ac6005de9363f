"""What produced a release: versions, a hash of the code, the source of the randomness.

Each client writes it into every reservation of its ledger, so that a report which states anything else fails.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

import accounting
import fedlora_priv
import protocols
from accounting.report import OS_KEYED_AES_CTR
from accounting.versions import library_versions
from fedlora_priv.config import Experiment

DETERMINISTIC = "reproducible, from the public seed (tests only)"
LIBRARIES = ("torch", "opacus", "peft", "transformers", "cryptography")


def noise_source(experiment: Experiment) -> str:
    """Return where noise and batches come from."""
    return DETERMINISTIC if experiment.training.deterministic_noise else OS_KEYED_AES_CTR


@cache
def versions() -> dict[str, str]:
    """Return the versions of everything that counted, and a hash of this distribution's own source files."""
    found = library_versions()
    for name in LIBRARIES:
        found[name] = importlib.metadata.version(name)
    digest = hashlib.sha256()
    for package in (accounting, fedlora_priv, protocols):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {**found, "code_sha256": digest.hexdigest()}
