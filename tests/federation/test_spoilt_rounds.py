"""What does not fit is a typed error before anything is released, and what spoils a sum loses the round alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.federation.client import LocalResult
from fedlora_priv.federation.exchange import Summed
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.federation.vectors import unflatten
from fedlora_priv.methods import Layout
from fedlora_priv.methods.errors import AssumptionError, SumError
from tests.federation.test_rounds import Federation

WHOLE = {"support": "dense", "density": 1.0, "value_bits": 16}


@pytest.fixture
def federation(experiment_file: Callable[..., Path]) -> Iterator[Callable[..., Federation]]:
    made: list[Federation] = []

    def make(method: str, **sections: dict[str, Any]) -> Federation:
        file = experiment_file(federation={"method": method}, communication=WHOLE, **sections)
        made.append(Federation(file))
        return made[-1]

    yield make
    for small in made:
        small.close()


class Foreign:
    """A trainer of another model, as far as anybody asks before the first round."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


CHANGES: dict[str, tuple[Callable[[Layout], Layout], str]] = {
    "alpha": (lambda own: replace(own, modules=tuple(replace(m, scaling=9.0) for m in own.modules)), "scaling 9"),
    "rank": (lambda own: replace(own, modules=tuple(replace(m, rank=3) for m in own.modules)), "rank 3 at a client"),
    "shape": (lambda own: replace(own, modules=tuple(replace(m, in_features=31) for m in own.modules)), "in_features"),
    "module": (lambda own: replace(own, modules=own.modules[1:]), "does not adapt"),
    "head": (lambda own: replace(own, heads={}), "head has other shapes"),
}  # fmt: skip


@pytest.fixture
def parts(experiment_file: Callable[..., Path]) -> Parts:
    path = experiment_file(federation={"method": "fra"}, communication=WHOLE)
    return assemble(Experiment.load(path), lambda line: None)


def test_a_client_with_another_model_takes_no_part(parts: Parts) -> None:
    for change, why in CHANGES.values():
        foreign: Any = Foreign(change(parts.layout))
        mixed = replace(parts, trainers={**parts.trainers, "client-2": foreign})
        with pytest.raises(AssumptionError, match=why):
            mixed.method_of("client-2")


def not_numbers(client: Any) -> None:
    """Have a client's training end in NaN."""
    real = client._setup.train

    def train(*arguments: Any) -> LocalResult:
        result = real(*arguments)
        return replace(result, state={name: array * np.nan for name, array in result.state.items()})

    object.__setattr__(client._setup, "train", train)


def test_a_client_whose_training_gave_no_numbers_uploads_nothing(
    federation: Callable[..., Federation],
) -> None:
    small = federation("fra")
    not_numbers(small.clients[1])
    result = small.round()
    assert result.record.refused == [("client-2", "UploadError")]
    assert "client-2" not in result.record.survivors
    assert len(result.record.survivors) == 4
    releases = [charge.releases for charge in small.clients[1]._setup.ledger.charges()]
    assert not any(releases)


@pytest.mark.parametrize("counts", [0, 6, -1])
def test_a_sum_without_a_holder_or_with_too_many_loses_the_round(
    counts: int, federation: Callable[..., Federation]
) -> None:
    """Zero survivors for a module, more than there are, or fewer than none: a client has spoilt the counts."""
    small = federation("flexlora", lora={"rank": 2, "ranks": [2, 2, 1, 2, 2]})
    task = small.server.task(small.state)
    result = small.conductor.conduct(task, partial(small.server.announce, small.state, task))
    assert result.summed is not None
    (part,) = result.summed.parts
    exchange, total = part.exchange, part.ring_sum
    named = unflatten(exchange.values.shapes, np.arange(len(total), dtype=float))
    at = named[next(name for name in named if name.endswith(".held_by"))].astype(int)
    levels, ring = exchange.channel.quantiser.levels, 2**exchange.channel.quantiser.modulus_bits
    spoilt = total.copy()
    spoilt[at] = (counts * levels) % ring
    with pytest.raises(SumError):
        small.server.advance(small.state, task, Summed((replace(part, ring_sum=spoilt),)))
    assert small.server.advance(small.state, task, result.summed).round == 1  # as it was, it is good
