"""What a federation of processes is deployed from: a small experiment, free ports, and an editor for parties' files."""

from __future__ import annotations

import contextlib
import secrets
import socket
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from fedlora_priv.config import Experiment


def tiny(model: Path, data: Path, /, **sections: dict[str, Any]) -> Experiment:
    """An experiment of five parties with rows of their own, one round; sections change values, None takes one out.

    Args:
        model, data: the fixtures `tiny_model` and `tiny_data`.
        sections: by name, what they say.
    """
    values: dict[str, dict[str, Any]] = {
        "experiment": {"name": "wards", "seed": 3},
        "model": {"source": str(model), "max_length": 16},
        "lora": {"rank": 2, "alpha": 4.0},
        "data": {
            "source": str(data),
            "public": True,  # else no deployment for trial would split it
            "dataset_id": "wards-2026",
            "labels": ["0", "1"],
            "declared_examples_per_client": 80,
        },
        "federation": {"clients": 5, "rounds": 1},
        "training": {"batch_size": 20, "learning_rate": 0.5},
        "privacy": {"epsilon": 8.0, "delta": 1e-4},
        "communication": {"value_bits": 8},
        "engine": {"kind": "flower", "train_timeout_s": 900, "phase_timeout_s": 900},
    }
    for name, section in sections.items():
        changed = {**values.get(name, {}), **section}
        values[name] = {key: value for key, value in changed.items() if value is not None}
    return Experiment.from_toml(tomli_w.dumps(values))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different, and none that the system gives to who calls out."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = 10_000 + secrets.randbelow(below - 10_000)
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def change(file: Path, section: str | None = None, **values: object) -> None:
    """Change what a party's file says, as its administrator would with an editor; None takes a key out."""
    read = tomllib.loads(file.read_text())
    place = read if section is None else read[section]
    place.update(values)
    for key in [key for key, value in values.items() if value is None]:
        del place[key]
    file.write_text(tomli_w.dumps(read))
