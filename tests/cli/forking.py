"""Python processes that start with everything imported and nothing done, for tests that kill many.

`fedlora run` takes seconds to import torch and transformers. Here one process imports them, does nothing else, and
forks for every command: a child has the memory of an interpreter just started, and its death is its own. What an
interpreter draws when it starts is the same in all of them: no test of randomness belongs here.

usage: forking.py, which reads a command a line on its input (`Forks.run` writes them) and answers how each ended.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn

IMPORTED = (
    "fedlora_priv.cli",
    "fedlora_priv.federation.run",
    "fedlora_priv.reports.terminal",
    "dp_accounting.pld.privacy_loss_distribution",
    "jsonschema",
)
"""What takes long to import, once."""


@dataclass
class Forks:
    """The process that forks; `with` starts and ends it."""

    folder: Path
    _server: subprocess.Popen[str] | None = field(default=None, init=False)

    def __enter__(self) -> Forks:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.communicate()

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Return how ``python COMMAND`` ends, a script or ``-m`` and a module; its output, both kinds together."""
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        arguments = [str(part) for part in command]
        output = self.folder / "output"
        print(json.dumps([str(output), *arguments]), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, output.read_text(encoding="utf-8"))


def _serve() -> None:
    """Fork for every line of the input, one after the other; write what each child leaves with."""
    for module in IMPORTED:
        importlib.import_module(module)
    assert threading.active_count() == 1, "a fork has one thread only"
    for line in sys.stdin:
        output, *command = json.loads(line)
        child = os.fork()
        if not child:
            _become(Path(output), command)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(output: Path, command: Sequence[str]) -> NoReturn:
    """Do in this process what ``python COMMAND`` does, and end it."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code: object = 0
    try:
        if command[0] == "-m":
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve()
