"""A client that resumes draws noise and batches afresh, and nothing on its disk would let anybody repeat them."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accounting import private_audit
from fedlora_priv.config import Experiment
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.client import UpdateStore
from fedlora_priv.federation.files import read_arrays
from fedlora_priv.federation.randomness import stream_factory
from fedlora_priv.federation.run import run
from fedlora_priv.federation.seats import make_clients
from fedlora_priv.training import dpsgd, trainer
from protocols import prg
from protocols.prg import SecretStream

from .lab import Lab

STEPS = 4


class Killed(Exception):
    """The process ends here."""


class Witness:
    """Notes every piece of noise and every batch as it is drawn, whatever becomes of the step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noise: list[bytes] = []
        self.batches: list[bytes] = []
        self.die_at = 0
        real_noise, real_draw = dpsgd.gaussian_noise, trainer.poisson_draw

        def noise(stream: SecretStream, n: int, stddev: float) -> Any:
            drawn = real_noise(stream, n, stddev)
            self.noise.append(drawn.tobytes())
            if len(self.noise) == self.die_at:
                raise Killed
            return drawn

        def draw(stream: SecretStream, n: int, rate: float) -> Any:
            drawn = real_draw(stream, n, rate)
            self.batches.append(drawn.tobytes())
            return drawn

        monkeypatch.setattr(dpsgd, "gaussian_noise", noise)
        monkeypatch.setattr(trainer, "poisson_draw", draw)


@pytest.fixture
def lab(experiment_file: Callable[..., Path]) -> Iterator[Lab]:
    made = Lab(experiment_file(federation={"rounds": 2, "local_steps": STEPS}))
    yield made
    for client in made.clients:
        client.close()
    made.folder.close()


def live_again(lab: Lab) -> None:
    """What a new process would do: nothing but the disk is left of the clients."""
    for client in lab.clients:
        client.close()
    lab.clients, _ = make_clients(lab.parts, lab.folder)
    lab.client = lab.clients[0]


def killed(*arguments: Any, **options: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("where", "lost", "charges"),
    [
        ("in the second step", 2, 2),
        ("after the last step, nothing stored", STEPS, 2),
        ("stored, not committed", 0, 1),
    ],
)
def test_no_step_of_either_life_repeats_noise_or_batch(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, where: str, lost: int, charges: int
) -> None:
    witness = Witness(monkeypatch)
    with monkeypatch.context() as crash:
        if where.startswith("in"):
            witness.die_at = 2
        elif where.startswith("after"):
            crash.setattr(UpdateStore, "save", killed)
        else:
            crash.setattr(lab.ledger, "commit", killed)
        with pytest.raises(Killed):
            lab.ask(lab.train())
    live_again(lab)
    assert lab.ask(lab.train()).kind == "trained"

    assert len(witness.noise) == lost + STEPS  # a stored update is not trained again
    assert len(set(witness.noise)) == len(witness.noise)
    # Equal coordinates anywhere in two steps' noise would be a shifted repetition; two float64 draws never agree.
    every = np.concatenate([np.frombuffer(noise) for noise in witness.noise])
    assert len(np.unique(every)) == len(every)
    # Two batches of 80 coins at q = 1/4 are equal with a chance of 1e-16.
    assert len(set(witness.batches)) == len(witness.batches) == lost + STEPS
    assert len(lab.ledger.charges()) == charges

    path = lab.folder.client_home("client-1").private_audit_path(lab.folder.run.hex())
    noted = [step.noise_digest for record in private_audit.read(path) for step in record.steps]
    assert len(set(noted)) == len(noted)


def test_no_file_of_a_run_holds_a_key_or_what_comes_out_of_it(
    experiment_file: Callable[..., Path], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key that a stream was given by the operating system, and every noise drawn, against every byte."""
    keys: list[bytes] = []

    def noted(size: int) -> bytes:
        keys.append(os.urandom(size))
        return keys[-1]

    witness = Witness(monkeypatch)
    monkeypatch.setattr(
        prg, "os", SimpleNamespace(urandom=noted, getpid=os.getpid)
    )  # of streams alone, not of identities
    outcome = run(Experiment.load(experiment_file(federation={"rounds": 2})), progress=silent)
    monkeypatch.undo()
    assert len(set(keys)) == len(keys) >= 2 * 5 * 2  # rounds x clients x (training, rounding)
    drawn = [
        noise for noise in witness.noise if np.frombuffer(noise).any()
    ]  # rehearsals take silent steps too
    assert len(drawn) > 2 * 5

    files = [path for path in outcome.folder.rglob("*") if path.is_file()]
    content = {path: path.read_bytes() for path in files}
    assert {"checkpoints", "clients"} <= {path.relative_to(outcome.folder).parts[0] for path in files}
    needles = [form for key in keys for form in (key, key.hex().encode(), base64.b64encode(key))]
    needles += [SecretStream(key).bytes(16) for key in keys]
    needles += [noise[i : i + 16] for noise in drawn for i in (0, len(noise) // 2)]
    needles += [np.frombuffer(noise)[:4].astype(np.float32).tobytes() for noise in drawn]
    for path, data in content.items():
        assert not [needle for needle in needles if needle in data], path
    require_only_what_resuming_needs(outcome.folder)


def require_only_what_resuming_needs(folder: Path) -> None:
    """No key, no counter, no position: there is no place for one."""
    checkpoints, updates = list((folder / "checkpoints").iterdir()), list(folder.rglob("update-*.npz"))
    assert (len(checkpoints), len(updates)) == (2, 5)
    for path in checkpoints:
        header, arrays = read_arrays(path)
        assert set(header) == {"version", "round", "findings", "history"}
        assert set(header["history"]) == {field.name for field in fields(History)}
        assert all(name.startswith(("state/", "spreads/", "scores/")) for name in arrays)
    for path in updates:
        header, arrays = read_arrays(path)
        assert set(header) == {"start", "reservation", "clip_norm", "private_audit"}
        assert all(name.endswith((".lora_A", ".lora_B", "weight", "bias")) for name in arrays)


def test_every_client_purpose_and_round_has_its_own_stream(experiment_file: Callable[..., Path]) -> None:
    """Also where a test has made them predictable: one key never serves two uses."""
    secret = Experiment.load(experiment_file())
    known = Experiment.load(experiment_file(training={"deterministic_noise": True}))
    uses = [
        (c, p, n)
        for c in ("client-1", "client-2", "client-1/train")
        for p in ("train", "round")
        for n in (1, 2)
    ]
    for experiment in (secret, known):
        starts = [stream_factory(experiment, client)(purpose, n).bytes(32) for client, purpose, n in uses]
        assert len(set(starts)) == len(uses)
    again = [stream_factory(secret, "client-1")("train", 1).bytes(32) for _ in range(8)]
    assert len(set(again)) == 8
