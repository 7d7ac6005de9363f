"""Runs `fedlora` and notes all noise and all batches as they are drawn; may kill itself in the middle of a step.

usage: witness.py FILE RESERVATIONS STEPS fedlora-arguments...

FILE gets a line for each reservation, and from the first on for each batch and each piece of noise, on disk before it
is used. The process dies right after the noise of step STEPS after reservation RESERVATIONS, counted from 1; never if
both are 0.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from accounting.ledger import Ledger
from fedlora_priv.training import dpsgd, trainer


def main() -> None:
    file, reservations, steps, *arguments = sys.argv[1:]
    seen = {"reserve": 0, "noise": 0, "batch": 0}

    def noted(owner: Any, name: str, kind: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            seen[kind] += 1
            if kind == "reserve":
                seen["noise"] = 0
            if not seen["reserve"]:
                return result  # a rehearsal, which repeats its made-up batches
            with Path(file).open("a") as lines:
                digest = "" if kind == "reserve" else hashlib.sha256(result.tobytes()).hexdigest()
                lines.write(f"{kind} {digest}\n")
                lines.flush()
                os.fsync(lines.fileno())
            if (seen["reserve"], seen["noise"]) == (int(reservations), int(steps)) and kind == "noise":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, wrapped)

    noted(Ledger, "reserve", "reserve")
    noted(dpsgd, "gaussian_noise", "noise")
    noted(trainer, "poisson_draw", "batch")
    from fedlora_priv.cli import app

    app(arguments)


if __name__ == "__main__":
    main()
