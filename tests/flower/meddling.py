"""What a server of somebody's own does to messages between real processes, at the place where Flower takes them.

round  step     what                                                            to whom
1      share    gets what is meant for the other (down)                         client-2 and client-3
2      mask     one bit of its answer is another (up)                           client-2
2      reveal   gets the message a second time, once it has answered (down)     client-3
3      train    gets what began round 2 (down)                                  client-2
3      confirm  its answer is dropped (up)                                      client-5
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECOND_ANSWER = "second-answer"
"""File in the trace: what the client says that is asked a second time."""


def meddle(folder: Path) -> None:
    """Have this process, which is about to become the ServerApp, do all of the above."""
    from fedlora_priv.engines.flower.engine import FlowerEngine

    real, began = FlowerEngine.exchange, {}

    def exchange(self: FlowerEngine, messages: Mapping[str, bytes], step: Any) -> Mapping[str, bytes]:
        sent, name = dict(messages), f"{step.round}.{step.name}"
        if step.phase == "train":
            began[step.round] = sent["client-2"]
        if name == "1.share":
            sent["client-2"], sent["client-3"] = sent["client-3"], sent["client-2"]
        if name == "3.train":
            sent["client-2"] = began[2]
        answers = dict(real(self, sent, step))
        if name == "2.mask":
            answers["client-2"] = flipped(answers["client-2"])
        if name == "2.reveal":
            again = real(self, {"client-3": sent["client-3"]}, step)
            (folder / SECOND_ANSWER).write_bytes(again["client-3"])
        if name == "3.confirm":
            del answers["client-5"]
        return answers

    FlowerEngine.exchange = exchange  # type: ignore[method-assign] # as a hostile server would


def flipped(data: bytes) -> bytes:
    """The same bytes but for one bit in the middle."""
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]
