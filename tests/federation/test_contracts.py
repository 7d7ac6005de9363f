"""What reports state of a method: every round's contract, once each, as the method itself gives it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tomli_w
from jsonschema import Draft202012Validator

from accounting import contract as accounted
from accounting import report as reports
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation import contracts
from fedlora_priv.federation.allocating import all_rounds, client_method
from fedlora_priv.methods import METHODS, for_experiment
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.layout import Layout, LoraModule

LAYOUT = Layout(
    (LoraModule("q", 12, 8, 4, 2.0), LoraModule("v", 8, 12, 4, 2.0)),
    {"head.weight": (2, 8), "head.bias": (2,)},
)
TOML = '[experiment]\nname = "stated"\n[data]\npublic = true\n[privacy]\nepsilon = 8.0\n'
BOTH = ("client-1", "client-2")
M, N, R, HEAD = 20, 20, 4, 18  # the modules' rows together, their columns, the rank, the head's coordinates


def stated(method: Method, layout: Layout, rounds: int, *more: str) -> dict[str, Any]:
    """As `contracts.stated`, of all rounds, with two clients that have the federation's model unless `more` says."""
    settings = [f"federation.rounds={rounds}", "federation.clients=2", "secure_aggregation.mode='insecure'"]
    experiment = Experiment.from_toml(TOML, [*settings, *more])
    return contracts.stated(experiment, method, layout, all_rounds(experiment, Findings()))


@pytest.mark.parametrize("name", METHODS)
def test_every_round_has_one_contract_which_is_the_methods(name: str) -> None:
    method = METHODS[name]
    block = stated(method, LAYOUT, 7)
    schema = reports.schema()
    Draft202012Validator({"$defs": schema["$defs"], **schema["properties"]["method"]}).validate(block)
    governing = accounted.by_round(block)
    assert sorted(governing) == [1, 2, 3, 4, 5, 6, 7]
    for number, found in governing.items():
        contract = method.at(number).contract(LAYOUT)
        assert len(found) == 1
        assert len(found[0]["exchanges"]) == contract.exchanges
        assert accounted.coordinates(found[0]) == found[0]["round_dimension"] == contract.round_dimension
        assert set(found[0]["trains"]) == contract.trains
        assert set(found[0]["stays_home"]) == contract.stays_home <= contract.trains
        assert found[0]["changes_base"] == contract.changes_base


def test_rolora_travels_b_in_odd_rounds_and_a_in_even_ones() -> None:
    odd, even = stated(METHODS["rolora"], LAYOUT, 5)["contracts"]
    assert (odd["rounds"], odd["exchanges"]) == (
        [1, 3, 5],
        [{"announced": {}, "travels": {"head": HEAD, "lora_B": R * M}}],
    )
    assert (even["rounds"], even["exchanges"]) == (
        [2, 4],
        [{"announced": {}, "travels": {"head": HEAD, "lora_A": R * N}}],
    )
    assert odd["round_dimension"] == HEAD + R * M


def test_a_hybrid_names_the_method_of_each_round() -> None:
    first, then = stated(METHODS["hybrid"], LAYOUT, 3)["contracts"]
    assert (first["rounds"], first["name"], then["rounds"], then["name"]) == ([1], "fra", [2, 3], "ffa")


def test_what_fedsa_keeps_at_home_is_said_and_does_not_travel() -> None:
    (contract,) = stated(METHODS["fedsa"], LAYOUT, 2)["contracts"]
    assert (contract["trains"], contract["stays_home"]) == (["A", "B", "head"], ["B", "head"])
    assert contract["exchanges"] == [{"announced": {}, "travels": {"lora_A": R * N}}]
    assert contract["noised"] == dict.fromkeys(BOTH, R * (M + N) + HEAD), (
        "what stays at home is noised all the same"
    )


def test_what_is_noised_follows_rounds_and_ranks() -> None:
    odd, even = stated(METHODS["rolora"], LAYOUT, 2)["contracts"]
    assert (odd["noised"], even["noised"]) == (
        dict.fromkeys(BOTH, R * M + HEAD),
        dict.fromkeys(BOTH, R * N + HEAD),
    )
    (square,) = stated(METHODS["fed-sb"], LAYOUT, 1)["contracts"]
    assert square["noised"] == dict.fromkeys(BOTH, 2 * R * R + HEAD)
    unequal = ("federation.method='flexlora'", "lora.rank=4", "lora.ranks=[4, 1]")
    (contract,) = stated(METHODS["flexlora"], LAYOUT, 1, *unequal)["contracts"]
    assert contract["noised"] == {"client-1": R * (M + N) + HEAD, "client-2": M + N + HEAD}


def test_fedask_announces_what_it_measured_with() -> None:
    first, second = stated(METHODS["fedask"], LAYOUT, 1)["contracts"][0]["exchanges"]
    assert first["travels"] == {"range": (R + 2) * M, "head": HEAD}
    assert (second["announced"], second["travels"]) == ({"basis": (R + 2) * M}, {"projected": (R + 2) * N})


def test_the_digest_of_a_round_is_of_all_that_is_stated_of_it() -> None:
    every = {name: stated(method, LAYOUT, 3) for name, method in METHODS.items()}
    digests = {accounted.round_digest(block, number) for block in every.values() for number in (1, 2, 3)}
    assert len(digests) == 3 * len(METHODS), "of another method or another round it is another"
    for number in (1, 2, 3):
        more = stated(METHODS["rolora"], LAYOUT, 7)
        assert accounted.round_digest(more, number) == accounted.round_digest(every["rolora"], number), (
            "what the other rounds are makes no difference"
        )
    for name in every["ffa"]["contracts"][0].keys() - {"rounds"}:
        (contract,) = every["ffa"]["contracts"]
        less = {**every["ffa"], "contracts": [{k: v for k, v in contract.items() if k != name}]}
        assert accounted.round_digest(less, 2) not in digests, name
    twice = {**every["ffa"], "contracts": every["ffa"]["contracts"] * 2}
    assert accounted.round_digest(twice, 2) not in digests


@pytest.mark.parametrize("name", ["fedit", "hetlora", "flexlora"])
def test_clients_of_unequal_ranks_state_what_the_server_does(name: str) -> None:
    """Each by the method as it has it itself, which knows of its own rank."""
    tiers = [{"clients": ["client-2", "client-3"], "max_rank": 1}]
    layout = Layout(
        tuple(replace(m, name=f"layer.{i}.q") for i, m in enumerate(LAYOUT.modules)), LAYOUT.heads
    )
    values: dict[str, Any] = {
        "experiment": {"name": "unequal"},
        "data": {"public": True},
        "privacy": {"epsilon": 8.0},
        "federation": {"clients": 6, "rounds": 3, "method": name},
        "lora": {"rank": R},
        "communication": {"support": "dense", "density": 1.0},
        "allocation": {"strategy": "ranks", "ranks": [1, R], "tiers": tiers},
    }
    experiment = Experiment.from_toml(tomli_w.dumps(values))
    method, found = for_experiment(experiment), all_rounds(experiment, Findings())
    servers = contracts.stated(experiment, method, layout, found)
    (contract,) = servers["contracts"]
    assert contract["noised"] == {
        f"client-{k}": (1 if k in (2, 3) else R) * (M + N) + HEAD for k in range(1, 7)
    }
    own = {1: layout, 2: layout.cut(1)}
    for k in own:
        mine = client_method(method, layout, own[k])
        assert contracts.stated(experiment, mine, layout, found) == servers, k
