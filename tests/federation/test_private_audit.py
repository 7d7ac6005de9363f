"""What a client notes for its own auditor reaches nobody else, and a run does not depend on it."""

from __future__ import annotations

import logging
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accounting import private_audit
from accounting.chain import replay
from accounting.private_audit import AttemptRecord, StepRecord
from fedlora_priv.config import Experiment
from fedlora_priv.federation.run import run
from fedlora_priv.federation.seats import make_clients
from fedlora_priv.reports.html import render
from fedlora_priv.training import trainer

from .lab import Lab

# Numbers that nothing else produces: what is found anywhere else has leaked.
MARKED = StepRecord(
    73310017, 73310029, 73310031, 0.7331003737, 73310.04141, 7331004343.5, 7.3310047, "7331" * 4
)


class Told:
    """A progress that keeps everything it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: self.heard.append(repr(values))


@pytest.fixture
def lab(experiment_file: Callable[..., Path]) -> Iterator[Lab]:
    made = Lab(experiment_file(federation={"rounds": 2}))
    yield made
    for client in made.clients:
        client.close()
    made.folder.close()


def test_nothing_of_it_is_in_any_public_file(
    experiment_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A real federation whose private records hold recognisable values; every byte of every file is searched."""
    monkeypatch.setattr(trainer, "step_record", lambda *arguments: MARKED)
    caplog.set_level(logging.DEBUG)
    told = Told()
    outcome = run(Experiment.load(experiment_file(federation={"rounds": 2})), progress=told)

    files = [path for path in outcome.folder.rglob("*") if path.is_file()]
    private = [path for path in files if path.name.startswith("private-audit-")]
    records = [record for path in private for record in private_audit.read(path)]
    assert len(private) == 5
    assert len(records) == 10
    assert all(MARKED in record.steps for record in records)

    needles = [value for record in records for value in _texts_and_bytes(record)]
    searched = {path: path.read_bytes() for path in files if path not in private}
    assert {path.name for path in searched} >= {
        "report.json", "report.html", "ledger.jsonl", "ledger.sqlite", "metrics.jsonl", "run.toml",
    }  # fmt: skip
    out, err = capfd.readouterr()
    spoken = "\n".join(
        [*told.heard, out, err, caplog.text, repr(outcome), render(outcome.report, outcome.metrics)]
    )
    for path, content in {**searched, Path("spoken"): spoken.encode()}.items():
        assert not [needle for needle in needles if needle in content], path


def _texts_and_bytes(record: AttemptRecord) -> Iterator[bytes]:
    """Yield a record's private values as text and as memory holds them."""
    yield record.salt.encode()
    yield bytes.fromhex(record.salt)
    for name in StepRecord.__dataclass_fields__:
        value = getattr(MARKED, name)
        if value is None:  # a constant clip norm counts nothing
            continue
        yield repr(value).encode()
        if not isinstance(value, str):
            yield struct.pack("<q" if isinstance(value, int) else "<d", value)


def test_it_is_its_owners_alone_and_tied_to_the_ledger(lab: Lab) -> None:
    assert lab.ask(lab.train()).kind == "trained"
    run_id = lab.folder.run.hex()
    path = lab.folder.client_home("client-1").private_audit_path(run_id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (record,) = private_audit.read(path)
    (charge,) = lab.ledger.charges()
    assert (record.client_id, record.run, record.round) == ("client-1", run_id, 1)
    assert (record.reservation, record.digest) == (charge.reservation, charge.private_audit)
    assert len(record.steps) == charge.committed.steps
    assert record.examples == len(lab.parts.examples["client-1"])
    (chain,) = replay(lab.ledger.export_jsonl().splitlines()).values()
    assert chain.charges[charge.reservation].private_audit == record.digest


def test_deleting_it_breaks_nothing(lab: Lab) -> None:
    assert lab.ask(lab.train()).kind == "trained"
    path = lab.folder.client_home("client-1").private_audit_path(lab.folder.run.hex())
    path.unlink()
    assert lab.ask(lab.train()).kind == "trained", "the stored update is there, and its digest with it"
    lab.state = lab.server.skip(lab.state, lab.server.task(lab.state))
    assert lab.ask(lab.train()).kind == "trained"
    assert [record.round for record in private_audit.read(path)] == [2]


def test_a_resumed_client_commits_to_what_it_noted_before_the_crash(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the update was stored, before the commit."""

    class Killed(Exception):
        pass

    def killed(*arguments: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as crash:
        crash.setattr(lab.ledger, "commit", killed)
        with pytest.raises(Killed):
            lab.ask(lab.train())
    for client in lab.clients:
        client.close()
    lab.clients, _ = make_clients(lab.parts, lab.folder)
    lab.client = lab.clients[0]
    assert lab.ask(lab.train()).kind == "trained"
    (record,) = private_audit.read(
        lab.folder.client_home("client-1").private_audit_path(lab.folder.run.hex())
    )
    (charge,) = lab.ledger.charges()
    assert charge.private_audit == record.digest


def test_a_published_configuration_leaves_batches_and_noise_unpredictable(
    experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Two runs of one experiment, its seed known to all: other batches and other noise at the same client."""
    drawn: list[AttemptRecord] = []
    for name in ("first", "second"):
        output = {"name": "tiny", "seed": 3, "output": str(tmp_path / name)}
        made = Lab(experiment_file(experiment=output, federation={"rounds": 1, "local_steps": 20}))
        assert made.ask(made.train()).kind == "trained"
        home = made.folder.client_home("client-1")
        drawn += private_audit.read(home.private_audit_path(made.folder.run.hex()))
        for client in made.clients:
            client.close()
        made.folder.close()
    first, second = ([step.batch_size for step in record.steps] for record in drawn)
    # Two draws of Binomial(80, 1/4) are equal with probability .07, twenty pairs of them with 1e-23.
    assert first != second
    assert len({step.noise_digest for record in drawn for step in record.steps}) == 40
