"""Secrets show neither in repr, nor in errors, nor in pickles; and importing costs little."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import protocols
from protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, SessionAborted
from protocols.prg import SecretStream
from protocols.secagg import keys
from protocols.secagg.codec import decode
from protocols.secagg.identity import Identity
from protocols.secagg.local import PHASES
from protocols.secagg.mask import Mask
from protocols.secagg.messages import Reveal

ROOT = Path(protocols.__file__).resolve().parent.parent
SECRET = bytes(range(1, 33))


def forms(secret: bytes) -> list[str]:
    """How a secret might show in text."""
    return [secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1]]


@pytest.mark.parametrize(
    "holder",
    [
        SecretStream(SECRET),
        Identity.from_private_bytes(SECRET),
        Mask(SECRET),
        keys.KeyPair.from_secret(SECRET * 3),
    ],
)
def test_secret_holders_are_redacted(holder: object) -> None:
    for text in (repr(holder), str(holder), f"{holder!r}"):
        assert not [form for form in forms(SECRET) if form in text]
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(LocalProtocolError):
            duplicate(holder)


@pytest.mark.parametrize("phase", [*PHASES, "done"])
def test_clients_are_redacted_in_every_phase(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    federation.drive(until=phase)
    client = federation.clients["client-1"]
    assert repr(client) == f"SecAggClient('client-1', phase={phase!r})"
    assert repr(client._state) == f"{type(client._state).__name__}(<secret>)"
    for held in (client, client._state):
        with pytest.raises(LocalProtocolError):
            pickle.dumps(held)
    assert len(repr(federation.server)) < 100


def test_messages_do_not_print_shares(federation: Any) -> None:
    inbox = federation.drive(until="reveal")
    message = decode(Reveal, federation.answer("client-1", "reveal", inbox["client-1"]), "test")
    assert not [s for s in message.shares for form in forms(s.share) if form in repr(message)]


def test_errors_carry_no_values(federation: Any) -> None:
    inbox = federation.drive(until="mask")
    client = federation.clients["client-1"]
    state = client._state
    secrets = [state.seed, state.master, state.box_secret]
    errors: list[ProtocolError] = []
    with pytest.raises(LocalProtocolError) as wrong:
        client.mask(inbox["client-1"], np.full(7, 777, dtype=np.uint32))
    errors.append(wrong.value)
    with pytest.raises(RemoteProtocolError) as bad:
        client.mask(inbox["client-1"][:-1], federation.vectors["client-1"])
    errors.append(bad.value)
    for error in errors:
        text = f"{error} {error!r} {error.args}"
        assert "777" not in text
        assert not [form for secret in secrets for form in forms(secret) if form in text]


def test_errors_say_who_and_survive_pickling() -> None:
    error = RemoteProtocolError("client-3", "its box does not open")
    aborted = SessionAborted("share", ("client-1",), "only 3 of at least 4 clients shared")
    assert str(error) == "client-3: its box does not open"
    assert "share" in str(aborted)
    assert "client-1" in str(aborted)
    for original in (error, aborted):
        again = pickle.loads(pickle.dumps(original))
        assert (type(again), str(again)) == (type(original), str(original))


def run_python(code: str) -> str:
    """Run code in a fresh interpreter that can import this repository."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_importing_loads_no_heavy_package() -> None:
    everything = (
        "import sys, protocols.packing, protocols.quantise, protocols.sparsify, protocols.secagg.local,"
        " protocols.secagg.guard; "
    )
    loaded = run_python(everything + "print('\\n'.join(sys.modules))").split()
    for heavy in ("torch", "scipy", "transformers", "fedlora_priv", "accounting", "requests"):
        assert heavy not in loaded
    bare = run_python("import sys, protocols; print('\\n'.join(sys.modules))").split()
    assert "numpy" not in bare


def test_importing_is_quick() -> None:
    # `import protocols` takes about a millisecond beyond the interpreter; 0.3 s leaves room for a loaded machine.
    code = "import time; t = time.perf_counter(); import protocols; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.3
