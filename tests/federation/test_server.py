"""The server's half: tasks from public state, and state from sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.communication.scales import headroom
from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.exchange import ExchangeSum, Summed
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.federation.vectors import flatten
from fedlora_priv.methods import Layout, LoraModule, Shared, for_experiment, get
from fedlora_priv.methods.errors import SumError
from protocols.prg import SecretStream

LAYOUT = Layout(
    modules=tuple(LoraModule(f"layer.{i}.query", 12, 10, 2, 2.0) for i in range(3)),
    heads={"classifier.weight": (2, 12), "classifier.bias": (2,)},
)


def start_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    state = {name: rng.uniform(-0.3, 0.3, shape) for name, shape in LAYOUT.shapes().items()}
    return {
        name: np.zeros_like(v, np.float32) if name.endswith("lora_B") else v.astype(np.float32)
        for name, v in state.items()
    }


@pytest.fixture
def make_server(experiment_file: Callable[..., Path]) -> Callable[..., FederationServer]:
    def make(method: str = "ffa", **communication: object) -> FederationServer:
        options = {"products": "exact"} if method == "fra" else {}  # dense products, of which some may travel
        path = experiment_file(
            federation={"method": method}, aggregation=options, communication=communication
        )
        experiment = Experiment.load(path)
        return FederationServer(experiment, LAYOUT, for_experiment(experiment), start_state(), 1.0)

    return make


@pytest.mark.parametrize("method", ["fedit", "ffa", "fra"])
def test_the_sum_of_quantised_uploads_is_the_sum_within_one_step_each(
    make_server: Callable[..., FederationServer], method: str
) -> None:
    server = make_server(method, support="dense", density=1.0, value_bits=12)
    begun = server.begin()
    channel = server.task(begun).first.channel
    rng = np.random.default_rng(1)
    uploads = [
        {n: (b * rng.uniform(-1, 1, channel.shapes[n])).astype(np.float32) for n, b in channel.bounds.items()}
        for _ in range(5)
    ]
    total = np.zeros(len(channel.support), np.uint32)
    for upload in uploads:
        total += channel.encode(flatten(channel.shapes, upload), SecretStream())
    total &= np.uint32((1 << channel.quantiser.modulus_bits) - 1)
    sums = channel.sums(total, 5)
    for name, bound in channel.bounds.items():
        step = bound / channel.quantiser.levels
        truth = np.sum([u[name].astype(np.float64) for u in uploads], axis=0)
        assert (np.abs(sums[name] - truth) <= 5 * step * 1.001).all()


def test_first_bounds_fit_an_upload_of_the_planned_size(make_server: Callable[..., FederationServer]) -> None:
    """The rehearsal is of the right order: a fresh random walk of that size is hardly clipped, nor drowned."""
    for method in ("ffa", "fra"):
        server = make_server(method)
        begun = server.begin()
        rng = np.random.default_rng(9)
        spread = 0.5 * (1.0 / 20 + 1 / np.sqrt(sum(np.prod(s) for s in LAYOUT.shapes().values())))
        trained = {
            n: (a + spread * rng.normal(size=a.shape)).astype(np.float32)
            if LAYOUT.role(n) in server._method.contract(LAYOUT).trains
            else a
            for n, a in start_state().items()
        }
        upload = server._method.upload(LAYOUT, start_state(), trained, Shared(3, 1))
        for name, bound in server.task(begun).first.channel.bounds.items():
            size = np.sqrt(np.mean(upload[name] ** 2))
            assert (0.05 * bound < size).all(), (method, name)
            assert (np.abs(upload[name]) < 1.5 * bound).all(), (method, name)


def test_a_task_arrives_as_it_was_sent_and_its_context_binds_everything(
    make_server: Callable[..., FederationServer],
) -> None:
    server = make_server("ffa", density=0.3, whole_rounds=0)
    begun = server.begin()
    task = server.task(begun)
    message = wire.decode(wire.encode(task.to_message(begun.state)))
    assert set(message.blobs) == {"support", "bounds"}  # nothing has moved yet
    received = RoundTask.from_message(message, LAYOUT, get("ffa"), start_state(), server._experiment)

    def context(task: RoundTask, experiment: bytes = b"e" * 32, run: bytes = b"r" * 16) -> bytes:
        return task.context(experiment, run, task.first)

    assert context(received) == context(task)
    other_state = {**start_state(), "classifier.bias": np.array([0, 1e-7], np.float32)}
    bounds = {name: 2 * bound for name, bound in task.first.channel.bounds.items()}
    told = {"layer.0.query.basis": np.ones((12, 2), np.float32)}
    different = [
        replace(task, round=2),
        replace(task, state=other_state),
        replace(task, first=replace(task.first, channel=replace(task.first.channel, bounds=bounds))),
        replace(task, first=make_server("ffa", density=0.4, whole_rounds=0).task(begun).first),
        replace(task, first=replace(task.first, number=1)),
        replace(task, first=replace(task.first, announced=told)),
        replace(task, findings=Findings((1.0, 2.0))),
        replace(task, findings=Findings(ranks=(("client-1", 2),))),
    ]
    assert len({context(other) for other in (task, *different)}) == 9
    assert context(task) not in (context(task, experiment=b"f" * 32), context(task, run=b"s" * 16))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: replace(m, fields={**m.fields, "round": 0}), "cannot have the number"),
        (lambda m: replace(m, blobs={**m.blobs, "bounds": b""}), "0 bytes, not 4 for each of"),
        (
            lambda m: replace(m, blobs={**m.blobs, "bounds": bytes(len(m.blobs["bounds"]))}),
            "not positive and finite",
        ),
        (
            lambda m: replace(m, blobs={k: b for k, b in m.blobs.items() if k != "bounds"}),
            "0 bytes, not 4 for each of",
        ),
        (
            lambda m: replace(m, blobs={k: b for k, b in m.blobs.items() if k != "support"}),
            "lacks support",
        ),
        (lambda m: replace(m, blobs={**m.blobs, "support": b"\x07"}), "support of a round is garbled"),
        (lambda m: replace(m, blobs={**m.blobs, "state/extra": b"\0" * 4}), "not one support"),
        (lambda m: replace(m, blobs={**m.blobs, "findings/scores": bytes(16)}), "has found 'scores'"),
        (lambda m: replace(m, blobs={**m.blobs, "findings/ranks": b'{"client-1":1}'}), "has found 'ranks'"),
    ],
)
def test_a_garbled_task_is_refused(
    make_server: Callable[..., FederationServer], change: Callable, error: str
) -> None:
    server = make_server("ffa")
    message = server.task(server.begin()).to_message(start_state())
    with pytest.raises(FederationError, match=error):
        RoundTask.from_message(change(message), LAYOUT, get("ffa"), start_state(), server._experiment)


def test_support_follows_the_accumulated_sum_and_explores(
    make_server: Callable[..., FederationServer],
) -> None:
    server = make_server("ffa", support="server-topk", density=0.25, exploration=0.2, whole_rounds=0)
    begun = server.begin()
    contract = get("ffa").contract(LAYOUT)
    names = list(contract.uploads)
    scored = names[-1]  # an array without scores counts as zeros
    at = sum(math.prod(contract.uploads[name]) for name in names[:-1])
    scores = {scored: np.zeros(contract.uploads[scored], np.float32)}
    scores[scored].ravel()[:10] = -5.0  # magnitude counts, not sign
    supports = [server.task(replace(begun, scores=scores, round=r)).first.channel.support for r in (1, 2)]
    for support in supports:
        assert set(range(at, at + 10)) <= set(support.indices.tolist())
        assert len(support) == int(np.ceil(0.25 * contract.dimension))
    assert supports[0] != supports[1]  # the explored share differs from round to round


def test_spreads_follow_the_last_sum_by_a_factor_of_four_at_most(
    make_server: Callable[..., FederationServer],
) -> None:
    server = make_server("ffa", support="dense", density=1.0)
    begun = server.begin()
    task = server.task(begun)
    channel = task.first.channel
    first = {n: bound / headroom(channel.value_bits) for n, bound in channel.bounds.items()}
    nothing = np.zeros(len(channel.support), np.uint32)
    quiet = server.advance(begun, task, Summed((ExchangeSum(task.first, nothing, 5),)))
    loud = nothing + np.uint32(5 * channel.quantiser.levels)
    grown = server.advance(begun, task, Summed((ExchangeSum(task.first, loud, 5),)))
    for name, spread in first.items():
        assert quiet.spreads[name].shape == grown.spreads[name].shape == channel.bounds[name].shape
        assert (quiet.spreads[name] < spread).all()
        assert (quiet.spreads[name] >= 0.249 * spread).all()
        assert (grown.spreads[name] > spread).all()
        assert (grown.spreads[name] <= 4.01 * spread).all()
    with pytest.raises(
        SumError, match="somebody spoilt it"
    ):  # four honest clients cannot have added up to it
        server.advance(begun, task, Summed((ExchangeSum(task.first, loud, 4),)))
    assert quiet.round == grown.round == server.skip(begun, task).round == 1
