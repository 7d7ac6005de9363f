"""Runs `fedlora` in this process and kills it, as `kill -9` would, at the n-th call of a named function.

usage: killer.py MODULE FUNCTION before|after N fedlora-arguments...
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def main() -> None:
    module_name, function, when, count, *arguments = sys.argv[1:]
    owner: Any = importlib.import_module(module_name)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == int(count) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls[0] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)
    from fedlora_priv.cli import app

    app(arguments)


if __name__ == "__main__":
    main()
