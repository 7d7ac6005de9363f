"""Clients that train parts, on paper: sums and denominators under masks, losses, restarts, and servers that cheat."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fedlora_priv.allocation import AllocationError
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.federation import wire
from fedlora_priv.federation.allocating import allocation, client_method, presumed
from fedlora_priv.federation.release import open_session
from fedlora_priv.methods import State, for_experiment
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Proposal, Survivors
from protocols.secagg.session import ClientPolicy, CoordinateGroup, SessionParameters
from protocols.secagg.transcript import to_bitmap

from .paper import LAYOUT, Killed, Meddling, Paper, crash, proposed, proposing, trained
from .test_hostile_exchanges import meddled
from .test_suspension import Restarting

N, LEAST = 6, 3
SIX = tuple(f"client-{k}" for k in range(1, N + 1))
LAYERS = (("layer.0.query",), ("layer.1.value",))
NARROW = [{"clients": ["client-1", "client-2", "client-3"], "max_layers": 1}]
THIN = {"strategy": "geometric", "shape": "inverted", "tiers": NARROW}
"""All train the upper layer; client-4, client-5 and client-6 the lower one: just enough."""
OPENED = itertools.count()


def unequal(
    folder: Path, dealt: Mapping[str, Any], method: str = "fedit", losses: Any = (), **more: Any
) -> Paper:
    """A federation of six on paper, in which [allocation] is `dealt`."""
    values: dict[str, Any] = {
        "experiment": {"name": "parts", "seed": 3, "output": "nowhere"},
        "data": {"source": "nowhere", "public": True},
        "federation": {"clients": N, "rounds": 4, "method": method},
        "privacy": {"epsilon": 8.0, "delta": 1e-4},
        "training": {"deterministic_noise": True},
        "allocation": dict(dealt),
        **more,
    }
    experiment = Experiment.from_toml(tomli_w.dumps(values))
    server = for_experiment(experiment)
    first = allocation(experiment, LAYOUT, 1, presumed(experiment, LAYOUT))
    assert first is not None
    own = {
        client_id: client_method(server, LAYOUT, first.own(LAYOUT, client_id) or LAYOUT) for client_id in SIX
    }
    return Paper(experiment, server, folder / f"paper-{next(OPENED)}", own=own, dropouts=losses)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Paper]]:
    made: list[Paper] = []

    def make(*args: Any, **more: Any) -> Paper:
        made.append(unequal(tmp_path, *args, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def held(paper: Paper, number: int, client_id: str, module: str) -> int:
    """How many components of a module a client trains in a round."""
    dealt = allocation(paper.experiment, LAYOUT, number, paper.state.findings)
    assert dealt is not None
    place = next(i for i, names in enumerate(LAYERS) if module in names)
    (rank,) = (m.rank for m in LAYOUT.modules if m.name == module)
    part = dealt.parts[client_id]
    return min(rank, part.rank) if place in part.layers else 0


def plainly(paper: Paper, number: int, survivors: tuple[str, ...], state: State) -> dict[str, np.ndarray]:
    """The next global state by loops over clients and components: means over those of the survivors that have them."""
    roles = {"fedit": "AB", "ffa": "B", "rolora": "B" if number % 2 else "A"}[
        paper.experiment.federation.method
    ]
    trains = frozenset({*roles, "head"})
    after: dict[str, tuple[dict[str, np.ndarray], State]] = {}
    for client_id in survivors:
        start = {**state}
        ranks = [held(paper, number, client_id, m.name) or m.rank for m in LAYOUT.modules]
        for m, rank in zip(LAYOUT.modules, ranks, strict=True):
            start |= {m.a_name: state[m.a_name][:rank], m.b_name: state[m.b_name][:, :rank]}
        mask = {
            name: np.full(
                array.shape,
                name in LAYOUT.heads or bool(held(paper, number, client_id, name.rpartition(".")[0])),
            )
            for name, array in start.items()
        }
        after[client_id] = start, trained(client_id, start, trains, mask)
    found = {name: array.astype(float) for name, array in state.items()}
    for name in LAYOUT.heads:
        found[name] += np.mean(
            [end[name].astype(float) - start[name] for start, end in after.values()], axis=0
        )
    for m in LAYOUT.modules:
        for j in range(m.rank):
            those = [after[c] for c in survivors if held(paper, number, c, m.name) > j]
            for name, where in ((m.a_name, (j,)), (m.b_name, (slice(None), j))):
                if those and name.removeprefix(m.name)[-1] in roles:
                    changes = [end[name][where].astype(float) - start[name][where] for start, end in those]
                    found[name][where] += np.mean(changes, axis=0)
    return found


def enough(paper: Paper, number: int, survivors: tuple[str, ...]) -> bool:
    """Whether every component of every module has LEAST survivors."""
    every = [(m.name, j) for m in LAYOUT.modules for j in range(m.rank)]
    return all(sum(held(paper, number, c, name) > j for c in survivors) >= LEAST for name, j in every)


budgets = st.lists(st.integers(1, 2), min_size=N, max_size=N)
scores = st.lists(st.floats(0, 9), min_size=2, max_size=2)


@st.composite
def dealings(draw: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """A method, and an allocation of it."""
    name = draw(st.sampled_from(["geometric", "random-geometric", "fedra", "fisher", "fedpilot", "ranks"]))
    limit, least = ("max_rank", draw(st.integers(1, 2))) if name == "ranks" else ("max_layers", 1)
    tiers = [{"clients": [c], limit: least} for c, room in zip(SIX, draw(budgets), strict=True) if room == 1]
    dealt: dict[str, Any] = {"strategy": name, "tiers": tiers}
    if "geometric" in name:
        dealt["shape"] = draw(st.sampled_from(["triangle", "inverted", "uniform"]))
    if name in ("fisher", "fedpilot"):
        dealt |= {"scores": draw(scores), "scores_of": "public rows"}
    if name == "ranks":
        dealt["ranks"] = [1, 2, 3]
    return draw(st.sampled_from(["fedit", "ffa", "rolora"])), dealt


lost = st.dictionaries(
    st.sampled_from(SIX), st.sampled_from(["advertise", "share", "mask", "confirm", "reveal"]), max_size=2
)


@settings(max_examples=15, deadline=None)
@given(dealings(), st.lists(lost, min_size=2, max_size=2), st.sampled_from(["secure", "insecure"]))
def test_sums_and_denominators_are_those_of_whoever_is_left(
    tmp_path_factory: pytest.TempPathFactory,
    asked: tuple[str, dict[str, Any]],
    losses: list[dict[str, Any]],
    mode: str,
) -> None:
    """Every round is what loops over its survivors give, or is lost because a layer has too few of them."""
    method, dealt = asked
    dropouts = [
        Dropout(round=i, client_id=c, phase=p) for i, by in enumerate(losses, 1) for c, p in by.items()
    ]
    masked = mode == "secure"
    more = {"lora": {"rank": 3}, "secure_aggregation": {"mode": mode}}
    try:
        paper = unequal(tmp_path_factory.mktemp("parts"), dealt, method, dropouts if masked else (), **more)
        assert all(allocation(paper.experiment, LAYOUT, number, Findings()) for number in (1, 2))
    except AllocationError:
        reject()  # with so little room there is none
    try:
        for number in (1, 2):
            before = paper.state.state
            result = paper.round()
            gone = {
                c for c, phase in losses[number - 1].items() if masked and phase not in ("confirm", "reveal")
            }
            left = tuple(c for c in SIX if c not in gone)
            if masked and not enough(paper, number, left):
                assert result.summed is None
                assert result.record.aborted is not None
                assert all(np.array_equal(paper.state.state[name], array) for name, array in before.items())
                continue
            assert result.record.survivors == left, result.record.aborted
            for name, array in plainly(paper, number, left, before).items():
                change = np.linalg.norm(array - before[name])
                assert np.linalg.norm(paper.state.state[name] - array) <= 2e-3 * change + 1e-7, name
    finally:
        paper.close()


def test_the_bounds_of_a_layer_follow_its_own_clients(opened: Callable[..., Paper]) -> None:
    """A mean over three of six says as much of one client's values as three do, not as six."""
    paper = opened(THIN, "ffa")
    bounds = []
    for _ in range(4):
        bounds.append(paper.server.task(paper.state).first.values.bounds)
        paper.round()
    low, high = (bounds[-1][m.b_name].mean() for m in LAYOUT.modules)
    assert 0.6 < low / high < 1.6, "both layers move by steps of one size"


# What is kept and what is recorded.


@pytest.mark.parametrize("after", [3, 13, 27])
def test_a_crash_anywhere_leaves_the_same_sums(opened: Callable[..., Paper], after: int) -> None:
    dealt = {"strategy": "random-geometric", "shape": "uniform", "tiers": NARROW}
    whole, broken = opened(dealt), opened(dealt)
    for paper in (whole, broken):
        paper.round()
    crash(broken, after)
    mine, theirs = whole.round(), broken.round()
    assert mine.record.survivors == theirs.record.survivors == SIX
    assert all(np.array_equal(broken.state.state[name], array) for name, array in whole.state.state.items())
    assert broken.trainings == 2 * N, "what was trained is kept, and charged once"


def test_clients_that_are_another_process_at_every_message(opened: Callable[..., Paper]) -> None:
    whole, restarted = opened(THIN), opened(THIN)
    restarted.use(Restarting(restarted))
    for number in (1, 2):
        one, other = whole.round(), restarted.round()
        assert other.record.survivors == one.record.survivors == SIX, number
        assert all(np.array_equal(restarted.state.state[name], a) for name, a in whole.state.state.items())


# A server that wants a layer of few.


def sent_first(paper: Paper) -> bytes:
    """What the first client is sent to begin a round, which ends there."""
    sent: list[bytes] = []

    def stop(step: Step, client_id: str, data: bytes) -> bytes:
        sent.append(data)
        raise Killed

    paper.use(Meddling(paper.clients, stop))
    with pytest.raises(Killed):
        paper.round()
    return sent[0]


Forge = Callable[[SessionParameters], SessionParameters]


def everybody(parameters: SessionParameters) -> SessionParameters:
    """As if all trained everything: the lower layer's sum would look like one of six."""
    return replace(parameters, groups=())


def padded(parameters: SessionParameters) -> SessionParameters:
    """The same groups, with everybody listed in each: by the numbers there is nothing wrong with it."""
    groups = tuple(CoordinateGroup(g.start, g.stop, tuple(range(N))) for g in parameters.groups)
    return replace(parameters, groups=groups)


def others(parameters: SessionParameters) -> SessionParameters:
    """As many clients in each group, but others."""
    swapped = (
        replace(g, contributors=(0, 1, 2)) if len(g.contributors) == LEAST else g for g in parameters.groups
    )
    return replace(parameters, groups=tuple(swapped))


def thin(parameters: SessionParameters) -> SessionParameters:
    """One client fewer than a sum may have."""
    cut = (replace(g, contributors=g.contributors[:2]) for g in parameters.groups)
    return replace(parameters, groups=tuple(cut))


def test_groups_may_make_a_proposal_longer(opened: Callable[..., Paper]) -> None:
    """Hundreds of clients of many ranks have more groups than fit what is read of a proposal without any."""
    paper = opened(THIN)
    task, names = paper.server.task(paper.state), tuple(f"client-{k}" for k in range(600))
    runs = tuple((1, frozenset(names[: 600 - k % 2])) for k in range(1000))
    exchange = replace(task.first, channel=replace(task.first.values, contributors=runs))
    parameters = proposed(sent_first(paper))
    assert parameters is not None
    many = replace(parameters, roster=names, groups=exchange.channel.form_on(names).groups)
    assert ClientPolicy.max_proposal_bytes < len(encode(Proposal(many))) <= exchange.most_proposal_bytes
    assert (
        open_session(paper.clients[0]._setup, task, exchange)._policy.max_proposal_bytes
        == exchange.most_proposal_bytes
    )


@pytest.mark.parametrize("forge", [everybody, padded, others, thin])
def test_groups_that_a_client_has_not_made_itself_are_refused(
    opened: Callable[..., Paper], forge: Forge
) -> None:
    paper = opened(THIN)

    result = meddled(paper, "train", proposing(forge), exchange=0)
    assert result.summed is None
    assert result.record.refused == [(client_id, "PolicyViolation") for client_id in SIX]
    assert not any(client._setup.ledger.charges() for client in paper.clients), (
        "nothing was spent, nor has left"
    )


def test_fewer_contributors_than_the_experiment_asks_for_are_refused(opened: Callable[..., Paper]) -> None:
    dealt = {
        "strategy": "fedra",
        "min_contributors": 4,
        "tiers": [{"clients": ["client-1"], "max_layers": 1}],
    }
    paper = opened(dealt)

    forged = proposing(lambda parameters: replace(parameters, min_contributors=3))
    assert meddled(paper, "train", forged, exchange=0).record.refused == [(c, "PolicyViolation") for c in SIX]


def test_an_allocation_of_another_seed_is_refused(opened: Callable[..., Paper]) -> None:
    """The server deals by a seed of its own: clients know theirs, and nothing that they mask would cancel."""
    dealt = {"strategy": "fedra", "tiers": NARROW}
    paper = opened(dealt)
    other = unequal(paper.folder, dealt, experiment={"name": "parts", "seed": 4, "output": "nowhere"})
    other.close()
    assert allocation(other.experiment, LAYOUT, 1, Findings()) != allocation(
        paper.experiment, LAYOUT, 1, Findings()
    )
    paper.server, paper.conductor = other.server, paper.conductor
    paper.conductor._experiment = other.experiment
    result = paper.round()
    assert result.summed is None
    assert {code for _, code in result.record.refused} == {"PolicyViolation"}


def test_survivors_without_the_holders_of_a_layer_are_refused(opened: Callable[..., Paper]) -> None:
    """All have masked; then the server says that client-5 and client-6 are lost, so that client-4 would be alone."""
    paper = opened(THIN)

    def change(message: wire.Message) -> wire.Message:
        statements = decode(Survivors, message.blobs["body"], "test").statements
        kept = tuple(statement for statement in statements if statement.index not in (4, 5))
        return replace(message, blobs={"body": encode(Survivors(to_bitmap({0, 1, 2, 3}, N), kept))})

    result = meddled(paper, "confirm", change, exchange=0)
    assert result.summed is None
    refused = dict(result.record.refused)
    assert set(SIX[:4]) <= set(refused), "holders, and those that have nothing in that layer"


def test_a_client_that_trains_what_it_does_not_hold_sends_nothing(
    opened: Callable[..., Paper], monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = opened(THIN)
    monkeypatch.setattr(
        "fedlora_priv.federation.client.part_of", lambda *_: None
    )  # so that it trains everything
    result = paper.round()
    assert result.summed is None
    assert {c for c, _ in result.record.refused} | {c for c, _ in result.record.lost} >= {"client-1"}
