"""What a server of somebody's own does to messages between real processes, at the place where Flower takes them.

round  step     what                                                            to whom
1      mask     gets what is meant for the other (down)                         client-2 and client-3
2      train    gets what began round 1 (down)                                  client-2
2      mask     one bit of its answer is another (up)                           client-5
2      reveal   gets the message a second time, once it has answered (down)     client-3

What drops messages is killed in test_kill_processes.py: to whoever waits that is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ANSWERS = "answers.json"
"""File in the trace: what the client says that is asked twice, in hex."""


def meddle(folder: Path) -> None:
    """Have this process, which is about to become the ServerApp, do all of the above."""
    from fedlora_priv.engines.flower.engine import FlowerEngine

    real, began = FlowerEngine.exchange, {}

    def exchange(self: FlowerEngine, messages: Mapping[str, bytes], step: Any) -> Mapping[str, bytes]:
        sent, name = dict(messages), f"{step.round}.{step.name}"
        if name == "1.train":
            began["client-2"] = sent["client-2"]
        if name == "2.train":
            sent |= began
        if name == "1.mask":
            sent["client-2"], sent["client-3"] = sent["client-3"], sent["client-2"]
        answers = dict(real(self, sent, step))
        if name == "2.mask":
            answers["client-5"] = flipped(answers["client-5"])
        if name == "2.reveal":
            again = real(self, {"client-3": sent["client-3"]}, step)
            (folder / ANSWERS).write_text(json.dumps([answers["client-3"].hex(), again["client-3"].hex()]))
        return answers

    FlowerEngine.exchange = exchange  # type: ignore[method-assign] # as a hostile server would


def flipped(data: bytes) -> bytes:
    """The same bytes but for one bit in the middle."""
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]
