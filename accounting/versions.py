"""Which code counted."""

from __future__ import annotations

import platform
from importlib import metadata


def library_versions() -> dict[str, str]:
    """Versions of what this package prices with; callers add their own (torch, opacus, code_sha256, ...)."""
    found = {"python": platform.python_version()}
    for distribution, name in (
        ("numpy", "numpy"),
        ("scipy", "scipy"),
        ("dp-accounting", "dp_accounting"),
        ("fedlora-priv", "fedlora_priv"),
    ):
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
