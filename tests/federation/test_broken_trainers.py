"""Trainers that do not do what is charged, on the production path: their own records give them away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accounting import private_audit
from accounting.case import Case, Evidence, Verdict
from accounting.chain import replay
from accounting.checks import CHECKS
from fedlora_priv.training import dpsgd, engine, trainer
from protocols.prg import SecretStream

from .lab import Lab

STEPS = 60


@pytest.fixture
def lab(experiment_file: Callable[..., Path]) -> Iterator[Lab]:
    made = Lab(
        experiment_file(
            federation={"rounds": 1, "local_steps": STEPS},
            training={"batch_size": 8, "learning_rate": 0.1},
            privacy={"retry_rounds": 0},
        )
    )
    yield made
    for client in made.clients:
        client.close()
    made.folder.close()


def audited(lab: Lab) -> dict[int, Verdict]:
    """One round of client-1, and what checks 6 and 7 say of its ledger and private file."""
    assert lab.ask(lab.train()).kind == "trained"
    run = lab.folder.run.hex()
    (chain,) = replay(lab.ledger.export_jsonl().splitlines()).values()
    records = private_audit.by_client([lab.folder.client_home("client-1").private_audit_path(run)])
    report = {
        "run": run,
        "plan": {"client-1": lab.parts.plans["client-1"].to_json()},
        "method": lab.parts.stated_method,
    }
    case = Case(report, {"client-1": chain}, None, None, Evidence(records))
    return {number: CHECKS[number - 1](case) for number in (6, 7)}


def test_the_real_trainer_is_believed(lab: Lab) -> None:
    found = audited(lab)
    assert {verdict.status for verdict in found.values()} == {"PASS"}, found


def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, n, stddev: np.zeros(n))


def too_little_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dpsgd.gaussian_noise
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, n, stddev: real(stream, n, 0.9 * stddev))


def clamped_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dpsgd.gaussian_noise
    monkeypatch.setattr(
        dpsgd, "gaussian_noise",
        lambda stream, n, stddev: np.clip(real(stream, n, stddev), -2.5 * stddev, 2.5 * stddev),
    )  # fmt: skip


def noise_on_some_arrays_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that are not uploaded left without noise: they reach later uploads through training."""
    real = dpsgd.gaussian_noise

    def first_half(stream: SecretStream, n: int, stddev: float) -> Any:
        noise = real(stream, n, stddev)
        noise[n // 2 :] = 0
        return noise

    monkeypatch.setattr(dpsgd, "gaussian_noise", first_half)


def repeated_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    real, key = dpsgd.gaussian_noise, bytes(32)
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, n, stddev: real(SecretStream(key), n, stddev))


def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients as long as they are, noise as planned."""
    real = engine.clip_factors
    monkeypatch.setattr(engine, "clip_factors", lambda squares, clip_norm: real(squares, 1e9 * clip_norm))


def sums_scaled_up_after_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms are clipped as they should be, and the sum then multiplied."""
    real = engine.add_to_sum
    monkeypatch.setattr(engine, "add_to_sum", lambda parameter, total: real(parameter, 10.0 * total))


def fixed_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trainer, "poisson_draw",
        lambda stream, n, q: np.sort(np.argsort(stream.uniform(n))[: round(n * q)]),
    )  # fmt: skip


def twice_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.poisson_draw
    monkeypatch.setattr(trainer, "poisson_draw", lambda stream, n, q: real(stream, n, 2 * q))


@pytest.mark.parametrize(
    ("broken", "check", "reason"),
    [
        (no_noise, 7, "size of the noise"),
        (too_little_noise, 7, "size of the noise"),
        (clamped_noise, 7, "the noise is not Gaussian"),
        (noise_on_some_arrays_only, 7, "size of the noise"),
        (repeated_noise, 7, "the same noise was added twice"),
        (no_clipping, 7, "a clipped gradient is longer than the clip norm"),
        (sums_scaled_up_after_clipping, 7, "a sum is longer than its batch"),
        (fixed_batches, 6, "batch sizes are not Binomial"),
        (twice_the_rate, 6, "batch sizes are not Binomial"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_trainer_is_found_by_its_own_records(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[pytest.MonkeyPatch], None],
    check: int,
    reason: str,
) -> None:
    broken(monkeypatch)
    torch.manual_seed(0)
    found = audited(lab)
    assert found[check].status == "FAIL"
    assert reason in found[check].evidence
    other = found[13 - check]
    assert other.status == "PASS", other
