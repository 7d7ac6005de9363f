"""Secrets show neither in repr, nor in errors, nor in pickles; and importing costs little."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import logging
import os
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import protocols
from protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, SessionAborted
from protocols.prg import SecretStream
from protocols.redaction import Redacted
from protocols.secagg import keys
from protocols.secagg.codec import decode
from protocols.secagg.identity import Identity
from protocols.secagg.interface import PHASES
from protocols.secagg.local import SessionLog
from protocols.secagg.mask import Mask
from protocols.secagg.messages import Reveal
from protocols.secagg.server import SecAggServer
from protocols.secagg.server_state import SavedServer

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


SECRET_NAMES = ("seed", "master", "secret", "share", "salt", "escrow", "key", "box", "packed", "signature")


def library_classes() -> list[type]:
    """Every class of `protocols`."""
    found = []
    for module in pkgutil.walk_packages(protocols.__path__, "protocols."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and value.__module__ == module.name:
                found.append(value)
    return found


def test_every_field_that_sounds_secret_is_out_of_repr() -> None:
    sounding = {
        f"{kind.__name__}.{field.name}": field.repr
        for kind in library_classes()
        if dataclasses.is_dataclass(kind) and not issubclass(kind, Redacted)
        for field in dataclasses.fields(kind)
        if any(name in field.name for name in SECRET_NAMES)
        and not str(field.type).startswith("tuple")  # of records that are checked themselves
    }
    assert len(sounding) > 20
    public = {"VoteRules.tie_seed"}  # all must draw the same
    assert {name for name, printed in sounding.items() if printed} == public


def test_machines_states_and_snapshots_are_redacted_classes() -> None:
    names = {kind.__name__ for kind in library_classes() if issubclass(kind, Redacted)}
    assert names >= {
        "SecAggClient", "SecAggServer", "ServerState", "SavedServer", "_Snapshot", "Advertised", "Shared", "Masked",
        "Confirmed", "HeldShares", "Edge", "Mask", "KeyPair", "Identity", "SecretStream",
    }  # fmt: skip


class Recorded:
    """Entropy that remembers what it gave."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.given.append(os.urandom(size))
        return self.given[-1]


def shown(thing: object) -> str:
    """Everything that printing or pickling a thing gives away."""
    text = f"{thing!r} {thing!s} {getattr(thing, 'args', '')}"
    try:
        return text + pickle.dumps(thing).hex()
    except LocalProtocolError:
        return text


def test_nothing_shows_in_a_whole_session(
    make_federation: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    # Secrets: all randomness of the clients, what is derived from it, and the vectors. Looked at: both machines,
    # their states, every message in bytes and decoded, every error, the result, the log, standard output.
    caplog.set_level(logging.DEBUG)
    federation, entropy = make_federation(), Recorded()
    federation.clients = {name: federation.client(name, entropy=entropy) for name in federation.names}
    seen: list[object] = []
    inbox = federation.server.start()
    for phase in PHASES:
        answers = {name: federation.answer(name, phase, inbox[name]) for name in federation.names}
        forged = answers["client-5"][:-1] + bytes([answers["client-5"][-1] ^ 1])
        seen += [*inbox.values(), *answers.values()] if phase != "reveal" else [*inbox.values()]
        for name, answer in answers.items():
            client, server = federation.clients[name], federation.server
            seen += [client, client._state, client.transcript, client.survivors, server, server._state]
            broken = SecAggServer.restore(
                server.snapshot(), parameters=federation.parameters, roster=federation.roster
            )
            for sender, bad in (
                (name, answer[:-1]),
                (name, forged),
                ("nobody", answer),
            ):
                with pytest.raises(RemoteProtocolError) as caught:
                    broken.receive(sender, bad)
                seen.append(caught.value)
                broken = SecAggServer.restore(
                    server.snapshot(), parameters=federation.parameters, roster=federation.roster
                )
            server.receive(name, answer)
        with pytest.raises(LocalProtocolError) as misuse:
            getattr(federation.clients["client-1"], phase)(*((b"", None) if phase == "mask" else (b"",)))
        seen.append(misuse.value)
        inbox = federation.server.advance()
    seen += [federation.server.result().survivors, repr(federation.server.result()), SessionLog()]
    secrets = [value for value in entropy.given if len(value) >= 32]
    masters = [value for value in secrets if len(value) == 32]
    pairs = [
        keys.mask_key_pair(value, bytes(32), "client-1")._x25519.private_bytes_raw() for value in masters
    ]
    assert len(secrets) >= 5 * 5
    out, err = capfd.readouterr()
    text = "\n".join(map(shown, seen)) + caplog.text + out + err
    assert len(text) > 100_000
    assert not [value for value in (*secrets, *pairs) for form in forms(value) if form in text]
    assert caplog.text == out == err == ""


@pytest.mark.parametrize("phase", ["propose", *PHASES, "done"])
def test_servers_are_redacted_in_every_phase(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    if phase != "propose":
        federation.drive(until=phase)
    server = federation.server
    assert repr(server) == f"SecAggServer(n=5, phase={phase!r}, lost=0)"
    assert repr(server._state) == "ServerState(<secret>)"
    for held in (server, server._state, SavedServer(server._state, b"")):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(LocalProtocolError, match="neither copied nor pickled"):
                duplicate(held)


def test_a_servers_snapshot_holds_no_secret_of_a_client(make_federation: Any) -> None:
    federation, entropy = make_federation(), Recorded()
    federation.clients = {name: federation.client(name, entropy=entropy) for name in federation.names}
    inbox = federation.server.start()
    for phase in PHASES:
        for name in federation.names:
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
            snapshot = federation.server.snapshot()
            assert not [value for value in entropy.given if len(value) >= 32 and value in snapshot]
        inbox = federation.server.advance()
