"""Federations whose clients mask with their neighbours on a ring: losses in every phase, later exchanges, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from accounting.masking import masks_digest
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout, SecureAggregationSection
from fedlora_priv.engines.base import Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation import wire
from fedlora_priv.federation.rounds import PHASES
from fedlora_priv.federation.session import masks, protection, session_parameters
from fedlora_priv.methods import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.fra import FRALoRA
from protocols.secagg.graph import MaskGraph
from protocols.secagg.session import SessionParameters, recommended

from .paper import DENSE, Meddling, Paper, proposed, proposing


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(
        clients: int, method: Method | None = None, dropouts: Sequence[Dropout] = (), **secure: Any
    ) -> Paper:
        sections = {
            "federation": {"clients": clients},
            "communication": DENSE,
            "secure_aggregation": secure,
        }
        return on_paper(method or FFALoRA(), sections, dropouts=dropouts)

    return make


def proposals(small: Paper) -> list[SessionParameters]:
    """What client-1 is proposed in a round."""
    seen = []

    def note(step: Step, client_id: str, data: bytes) -> bytes:
        if client_id == "client-1" and (parameters := proposed(data)) is not None:
            seen.append(parameters)
        return data

    engine = Meddling(small.clients, note)
    engine._dropouts = LocalEngine(small.clients, small.dropouts)._dropouts
    small.use(engine)
    small.round()
    return seen


@pytest.mark.parametrize(("n", "c", "k"), [(6, 1, 4), (10, 1, 4), (10, 2, 8), (30, 3, 8), (100, 10, 20)])
def test_the_default_threshold_is_the_recommended_one(n: int, c: int, k: int) -> None:
    counts = recommended(n, c, k)
    got = SecureAggregationSection(max_colluders=c, neighbours=k).thresholds(n)
    assert got == (counts.quorum, counts.threshold, counts.min_survivors)


def test_the_default_threshold_is_within_the_smallest_sum() -> None:
    """Seven left of twelve are a complete graph, in which nobody has eight shares."""
    assert recommended(12, 0, 10).threshold == 8
    assert SecureAggregationSection(max_colluders=0, neighbours=10).thresholds(12) == (7, 7, 7)
    assert SecureAggregationSection(max_colluders=0, neighbours=11).thresholds(12) == (7, 7, 7)


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_lost_in_any_phase_leaves_an_exact_sum(paper: Callable[..., Paper], phase: Any) -> None:
    lost = Dropout(round=1, client_id="client-2", phase=phase)
    ring = paper(9, dropouts=[lost], neighbours=4)
    plain = paper(9, mode="insecure")
    counted = phase in ("confirm", "reveal")
    if not counted:
        plain.use(LocalEngine([c for c in plain.clients if c.client_id != "client-2"]))
    for _ in range(2):  # it is back in the second, where nobody is lost
        masked, unmasked = ring.round(), plain.round()
        assert masked.summed is not None
        assert unmasked.summed is not None
        assert_array_equal(masked.summed.parts[0].ring_sum, unmasked.summed.parts[0].ring_sum)
        assert masked.record.survivors == unmasked.record.survivors
        plain.use(LocalEngine(plain.clients))


@pytest.mark.parametrize(("first", "second"), [("advertise", "mask"), ("share", "reveal"), ("mask", "mask")])
def test_as_many_losses_as_are_promised_are_survived(
    paper: Callable[..., Paper], first: Any, second: Any
) -> None:
    """The order of the ring is another one in each round; whoever is beside whom, the round has its sum."""
    lost = [
        Dropout(round=r, client_id=f"client-{r + i}", phase=phase)
        for r in (1, 2)
        for i, phase in enumerate((first, second))
    ]
    ring = paper(8, dropouts=lost, neighbours=4, threshold=2)
    assert protection(ring.experiment)["losses_survived"] == 2
    for _ in (1, 2):
        result = ring.round()
        assert result.record.aborted is None
        assert len(result.record.lost) == 2


@pytest.mark.parametrize(
    ("n", "secure"),
    [
        (8, {"neighbours": 4}),
        (9, {"neighbours": 4, "threshold": 2}),
        (9, {"neighbours": 6, "max_colluders": 2}),
        (10, {"neighbours": 2}),
        (7, {"neighbours": 4, "max_colluders": 0, "threshold": 3}),
        (7, {}),
    ],
)
def test_what_is_promised_of_losses_holds_for_every_set_of_them(
    experiment_file: Callable[..., Path], n: int, secure: dict[str, int]
) -> None:
    """Brute force over all sets of losses in one order of the ring: the others differ by their names alone."""
    experiment = Experiment.load(experiment_file(federation={"clients": n}, secure_aggregation=secure))
    stated = protection(experiment)
    graph, c = MaskGraph(n, stated["neighbours"], bytes(32)), stated["max_colluders"]

    def finishes(lost: set[int]) -> bool:
        left = set(range(n)) - lost
        holders = all(len(set(graph.holders(i)) & left) >= stated["threshold"] for i in range(n))
        return holders and graph.weakest_cut(left) > c

    for losses in range(1, n - stated["min_survivors"] + 1):
        sets = [set(some) for some in itertools.combinations(range(n), losses)]
        failed = sum(not finishes(lost) for lost in sets) / len(sets)
        if losses <= stated["losses_survived"]:
            assert failed == 0
        else:
            assert failed <= stated["abort_bounds"].get(str(losses), 1.0)
    bounds = list(stated["abort_bounds"].values())
    assert bounds == sorted(bounds)
    assert all(0 < bound <= 1 for bound in bounds)


def test_the_counts_of_bands_are_those_of_their_sessions(experiment_file: Callable[..., Path]) -> None:
    """Six send the narrow part, four the next one, three all: what a plan and a report state of each is proposed."""
    path = experiment_file(
        federation={"clients": 6},
        communication={"support": "server-topk", "density": 1.0, "densities": [0.1, 0.1, 0.3, 1.0, 1.0, 1.0]},
        secure_aggregation={"neighbours": 4},
    )
    experiment = Experiment.load(path)
    stated = protection(experiment)
    assert [(band["exchange"], band["clients"]) for band in stated["bands"]] == [(1, 4), (2, 3)]
    for band in stated["bands"]:
        senders = experiment.client_ids[-band["clients"] :]
        session = session_parameters(
            experiment, senders, round=1, exchange=band["exchange"], senders=len(senders), session_id=bytes(32),
            context=bytes(32), vector_length=1, modulus_bits=16, bound=1,
        )  # fmt: skip
        for name, value in (("quorum", session.quorum), ("threshold", session.threshold),
                            ("min_survivors", session.min_survivors), ("neighbours", session.degree)):  # fmt: skip
            assert band[name] == value
        assert band["losses_survived"] == len(senders) - max(session.threshold, session.min_survivors)
    assert "bands" not in protection(Experiment.load(path, ["communication.densities=[]"]))
    recorded = masks_digest(masks(experiment))
    assert recorded == masks_digest(stated), "what is derived is not recorded"
    stated["bands"][1]["threshold"] += 1
    assert recorded != masks_digest(stated)


def test_a_later_exchange_is_on_a_ring_of_those_who_are_left(paper: Callable[..., Paper]) -> None:
    lost = [Dropout(round=1, client_id="client-2", phase="mask")]
    for n, degrees in ((8, [4, 4]), (6, [4, 4]), (7, [6, 5])):
        small = paper(n, FRALoRA(CrossTerm("two-pass")), lost, neighbours=min(degrees[0], n - 1))
        seen = proposals(small)
        assert [each.degree for each in seen] == degrees
        assert [each.n for each in seen] == [n, n - 1]
        assert seen[1].min_survivors == n - 1
        assert small.state is not small.begun


@pytest.mark.parametrize("change", [{"degree": 4}, {"threshold": 2}])
def test_clients_refuse_a_thinner_graph_than_the_experiments(
    paper: Callable[..., Paper], change: dict[str, int]
) -> None:
    small = paper(9, neighbours=6)

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        return wire.encode(proposing(thinner)(wire.decode(data))) if step.proposes else data

    def thinner(parameters: SessionParameters) -> SessionParameters:
        changed = replace(parameters, **change)
        changed.validate()  # it is a sound one, only not this experiment's
        return changed

    small.use(Meddling(small.clients, meddle))
    result = small.round()
    assert {code for _, code in result.record.refused} == {"PolicyViolation"}
    assert len(result.record.refused) == 9


def test_a_ring_that_cannot_be_sound_is_refused_in_one_line(experiment_file: Callable[..., Path]) -> None:
    path = experiment_file(
        federation={"clients": 8},
        secure_aggregation={"neighbours": 4, "max_colluders": 4, "min_survivors": 8},
    )
    with pytest.raises(ConfigError, match="colluders all around a client"):
        Experiment.load(path)
