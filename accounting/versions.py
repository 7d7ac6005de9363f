"""Which code counted."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata


def library_versions() -> dict[str, str]:
    """Versions of what this package prices with; callers add their own (torch, opacus, code_sha256, ...)."""
    return {"python": platform.python_version(), **dict(_installed())}


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Return the libraries' versions: parsed once in a process, which opens many ledgers."""
    return tuple(
        (name, _version(distribution))
        for distribution, name in (
            ("numpy", "numpy"),
            ("scipy", "scipy"),
            ("dp-accounting", "dp_accounting"),
            ("fedlora-priv", "fedlora_priv"),
        )
    )


def _version(distribution: str) -> str:
    """Return a distribution's version, or that it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
