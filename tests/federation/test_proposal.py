"""Lines for a budget of bytes: they fit, the next choice does not, and what cannot be is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.communication.budget import parse_bytes
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.meter import most_uploaded
from fedlora_priv.config import Experiment
from fedlora_priv.federation.foretold import foretold
from fedlora_priv.federation.proposal import proposed
from fedlora_priv.federation.setup import assemble


@pytest.mark.parametrize(
    ("text", "size"),
    [("50kB", 50_000), ("1.5MiB", 1_572_864), ("900", 900), (" 2 GB ", 2 * 10**9), ("7B", 7), ("1KiB", 1024)],
)
def test_sizes_are_read_plainly(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "kB", "-5kB", "5kb", "5 bits", "1e3", "0", "0.5", "nan", "5kB5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(CommunicationError, match="write 50kB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("communication", "secure", "budget"),
    [({}, {}, 14_090), ({"support": "voted-topk", "density": 0.5}, {}, 28_080)],
)
def test_the_lines_fit_the_budget(
    experiment_file: Callable[..., Path], communication: dict[str, Any], secure: dict[str, Any], budget: int
) -> None:
    path = experiment_file(communication=communication, secure_aggregation=secure, federation={"rounds": 2})
    experiment = Experiment.load(path)
    found = proposed(experiment, budget)
    assert 0 < found["density"] < 1
    values = dict(line.split(" = ") for line in found["lines"][1:])
    changed = Experiment.load(path, [f"communication.{key}={value}" for key, value in values.items()])
    tables = [
        told.longest
        for told in foretold(replace(assemble(experiment, lambda line: None), experiment=changed))
    ]
    whole = found["whole_rounds"]
    assert whole == (0 if communication else 1)
    assert [0 <= found["whole"] - most_uploaded(table) <= 20 for table in tables[:whole]] == [True] * whole
    most = max(most_uploaded(table) for table in tables[whole:])
    assert most <= found["uploaded"] <= budget
    assert found["uploaded"] - most <= 20  # an anchor, or two with a vote, may count more rows
    assert budget - found["uploaded"] <= found["coordinates"]  # not even one more bit each would fit


def test_fewer_neighbours_are_named_where_they_help(experiment_file: Callable[..., Path]) -> None:
    ten = {"clients": 10, "rounds": 2}
    experiment = Experiment.load(experiment_file(federation=ten))
    with pytest.raises(
        CommunicationError, match=r"of 9 neighbours; set secure_aggregation\.neighbours = 4: then"
    ):
        proposed(experiment, 17_000)
    with pytest.raises(CommunicationError, match="keys, shares and framing alone take"):
        proposed(experiment, 5_000)
    tight = proposed(experiment, 27_100)
    assert tight["fewer_neighbours"]["neighbours"] == 4
    assert tight["fewer_neighbours"]["kept"] > tight["kept"]
    assert proposed(experiment, 10**6)["fewer_neighbours"] is None  # everything fits as it is
    assert proposed(experiment, 10**6)["lines"][1] == 'support = "dense"'


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"secure_aggregation": {"mode": "insecure"}}, "for masked uploads"),
        ({"federation": {"method": "fra"}, "aggregation": {"products": "two-pass"},
          "communication": {"support": "dense", "density": 1.0}}, "a budget is for one sum"),
        ({"communication": {"density": 1.0, "densities": [0.1, 0.3, 0.3, 0.3, 0.3]}}, "leave it out"),
    ],
)  # fmt: skip
def test_what_nothing_is_proposed_for(
    experiment_file: Callable[..., Path], sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(CommunicationError, match=words):
        proposed(Experiment.load(experiment_file(**sections)), 10**6)
