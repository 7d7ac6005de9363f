"""Files of a run: written so that a crash leaves the old bytes or the new ones, never half of either."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import RunFolderError


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a crash at any moment leaves either the old bytes or the new ones.

    Raises:
        RunFolderError: the file cannot be written (disk full, read-only, no such folder).
    """
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path} ({error.strerror})", "free some space or choose another output folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: POSIX promises that only after the folder itself is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_arrays(
    path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], mode: int = 0o644
) -> None:
    """Write arrays by name and a JSON header into one .npz file, atomically."""
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, header=text, **arrays)  # type: ignore[arg-type]  # numpy takes an array by any name
    write_atomically(path, buffer.getvalue(), mode)


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return header and arrays of a file of `write_arrays`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            header = json.loads(bytes(stored["header"]).decode())
            return header, {name: stored[name] for name in stored.files if name != "header"}
    except (OSError, EOFError, KeyError, TypeError, BadZipFile) as error:
        raise ValueError(type(error).__name__) from error


def write_metrics(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write metrics.jsonl of a run folder, one line a round."""
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    write_atomically(folder / "metrics.jsonl", lines.encode())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of a run folder.

    Raises:
        RunFolderError: it is not there, or damaged.
    """
    path = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read", "is this the folder of a finished run?") from error
