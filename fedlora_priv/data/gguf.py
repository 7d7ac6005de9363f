"""Models that come as one GGUF file: unpacked once into a folder that is loaded like any other.

GGUF holds weights, mostly quantised, and the tokenizer in one file. Unpacking takes a minute and the package
`gguf`, so the result is cached beside the file; like every cached file it is hashed again before use.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

from fedlora_priv.data.assets import Say, quietly
from fedlora_priv.data.package_index import file_sha256
from fedlora_priv.errors import AssetError

_HASHES = "unpacked.json"


def unpacked(folder: Path, say: Say = quietly) -> Path:
    """Return a folder with config.json, tokenizer and float32 weights of the one GGUF file in `folder`.

    Raises:
        AssetError: the package `gguf` is missing, or the disk is full.
    """
    target = folder.with_name(f"{folder.name}-unpacked")
    if _is_whole(target):
        return target
    say("unpacking the model, once")
    try:
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / target.name
            _convert(next(folder.glob("*.gguf")), fresh)
            hashes = {path.name: file_sha256(path) for path in fresh.iterdir()}
            (fresh / _HASHES).write_text(json.dumps(hashes), encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
    except OSError as error:
        if _is_whole(target):  # another process has won the race, which is as good
            return target
        raise AssetError(
            f"{folder.parent} cannot hold the unpacked model: {error.strerror or error}",
            "point the environment variable FEDLORA_CACHE at a writable folder with room",
        ) from None
    return target


def _convert(file: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file into a new folder."""
    if importlib.util.find_spec("gguf") is None:  # transformers reads the file with it
        raise AssetError(f"{file.name} needs the package gguf to be read", "pip install 'fedlora-priv[gguf]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    packed = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    config = type(packed.config).from_dict(
        {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    )
    # A fresh model, because transformers does not save one that it has read from GGUF.
    plain = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # so it does this
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(str(target))
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(str(target))


def _is_whole(target: Path) -> bool:
    """Return whether every file is there with the bytes that it was unpacked with."""
    try:
        hashes = json.loads((target / _HASHES).read_text(encoding="utf-8"))
        return all(file_sha256(target / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False
