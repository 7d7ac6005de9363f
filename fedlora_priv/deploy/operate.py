"""What whoever runs the server asks a running SuperLink for: to admit the nodes' keys, and to run the federation.

Flower's own commands do both. What they say is read here, because they leave with 0 whatever became of a run, and a
person wants one line.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fedlora_priv.deploy.check import check_admission, require_all
from fedlora_priv.deploy.start import Launch, admission, submission
from fedlora_priv.errors import FederationError, FedloraError

Say = Callable[[str], None]

LINE = "fedlora: "
"""How every line begins that the ServerApp says."""

FINISHED = "finished"
_STOPPED = re.compile(r"stopped \((\d+)\): (.*)")
_ADMITTED_BEFORE = "[code: 23]"


def stopped(error: FedloraError) -> str:
    """Return what a ServerApp says of the error that ends it, from which `run` makes that error again."""
    return f"stopped ({error.exit_code}): {error}"


def admit(file: Path) -> int:
    """Admit every node's key at the running SuperLink of a server.toml; return how many were not admitted before.

    Raises:
        FedloraError: no SuperLink answers as it should, or it does not take a key.
    """
    require_all(check_admission(file))
    launch = admission(file)
    done = subprocess.run(  # noqa: S603 - the arguments are this package's own
        launch.arguments, env=launch.whole_environment(), capture_output=True, text=True, check=False
    )
    answers = list(answers_in(done.stdout))
    keys = [Path(argument).stem for argument in launch.arguments if argument.endswith(".pub")]
    if len(answers) > len(keys):
        raise FederationError(
            f"Flower gave {len(answers)} answers for {len(keys)} keys: which is whose cannot be told",
            "see the SuperLink's own log",
        )
    said = done.stderr.strip() or done.stdout.strip()
    answers += [{"error-message": said}] * (len(keys) - len(answers))
    return sum(_was_new(client_id, answer) for client_id, answer in zip(keys, answers, strict=True))


def run(file: Path, say: Say) -> None:
    """Run the federation of a server.toml at its running SuperLink, saying what the ServerApp says, to its end.

    Raises:
        FedloraError: what ended the run before it was complete, with its exit code.
    """
    last = ""
    with _streaming(submission(file)) as lines:
        for line in lines:
            say(line.rstrip("\n"))
            last = line.strip().removeprefix(LINE) if line.startswith(LINE) else last
    if found := _STOPPED.fullmatch(last):
        raise _error_of(int(found[1]), found[2])
    if not last.startswith(FINISHED):
        raise FederationError(
            "the run has ended before it was complete, without a reason from the ServerApp",
            "look at what is above and at the SuperLink's own log; the same command goes on with it",
        )


@contextlib.contextmanager
def _streaming(launch: Launch) -> Iterator[Iterable[str]]:
    """Give a command's lines as they come; the command ends when this process is told to."""

    def ended(signal_number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal_number)

    before = signal.signal(signal.SIGTERM, ended)
    flower = subprocess.Popen(  # noqa: S603 - the arguments are this package's own
        launch.arguments,
        env={**launch.whole_environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        yield flower.stdout or ()
    finally:
        signal.signal(signal.SIGTERM, before)
        flower.terminate()
        flower.wait()
        if flower.stdout is not None:
            flower.stdout.close()


def answers_in(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that a text consists of, up to where it does not.

    >>> list(answers_in('{"success": true}\\n{"success": false}\\nTraceback'))
    [{'success': True}, {'success': False}]
    """
    read = json.JSONDecoder()
    while text := text.strip():
        try:
            answer, end = read.raw_decode(text)
        except ValueError:
            return
        if not isinstance(answer, dict):
            return
        yield answer
        text = text[end:]


def _was_new(client_id: str, answer: Mapping[str, Any]) -> bool:
    """Return whether a key that is admitted now was not before.

    Raises:
        FederationError: it is not admitted.
    """
    if answer.get("success"):
        return True
    said = str(answer.get("error-message") or "").strip() or "no reason given"
    if _ADMITTED_BEFORE in said:
        return False
    raise FederationError(
        f"the SuperLink did not admit {client_id}: {said.splitlines()[-1]}", "see its own log"
    )


def _error_of(code: int, text: str) -> FedloraError:
    """Return an error with that exit code."""
    kinds = {kind.exit_code: kind for kind in FedloraError.__subclasses__()}
    return kinds.get(code, FedloraError)(text)
