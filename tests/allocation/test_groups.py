"""Allocations through real sessions: sums and denominators under masks, and servers that want a thin layer alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fedlora_priv.allocation import (
    Allocation,
    AllocationError,
    FedRA,
    Geometric,
    Part,
    Profile,
    RandomGeometric,
    RankByCapability,
    coordinate_groups,
    vector_form,
)
from fedlora_priv.allocation.layers import layers_of
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.hetlora import HetLoRA, weight_name
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.partial import holders_name
from protocols.errors import SessionAborted
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.codec import decode, encode
from protocols.secagg.local import run_session
from protocols.secagg.messages import Proposal, Survivors
from protocols.secagg.session import CoordinateGroup
from protocols.secagg.transcript import to_bitmap
from tests.allocation.lab import SEED, layout, public, tiers
from tests.methods.lab import random_state
from tests.protocols.conftest import Federation

N = 6
NAMES = tuple(f"client-{i + 1}" for i in range(N))
SHARED = Shared(SEED, 1)
LARGEST = 20.0


class Lab:
    """A federation that runs one round of an allocation through a session, quantised to 20 bits."""

    def __init__(self, model: Layout, allocation: Allocation, method: Method, min_contributors: int) -> None:
        self.layout, self.allocation, self.method = model, allocation, method
        rng = np.random.default_rng(1)
        self.start = random_state(model, rng)
        self.shapes = self.half().contract(model).uploads
        self.trained = {name: self._train(name, rng) for name in NAMES}
        uploads = {name: self._upload(name) for name in NAMES}
        bound = max(1.0, *(float(np.abs(upload).max()) for upload in uploads.values()))
        self.quantiser = Quantiser(bound, 20, N)
        self.groups = coordinate_groups(allocation, model, self.shapes, NAMES)
        self.federation = Federation(
            N,
            groups=self.groups,
            min_contributors=min_contributors,
            vector_length=sum(int(np.prod(shape)) for shape in self.shapes.values()),
            modulus_bits=self.quantiser.modulus_bits,
            bound=self.quantiser.levels,
        )
        stream = SecretStream(b"t" * 32)
        self.federation.vectors = {name: self.quantiser.quantise(up, stream) for name, up in uploads.items()}

    def half(self, name: str | None = None) -> Method:
        """A client's half of the method, or the server's."""
        return self.allocation.method(self.method, self.layout, name)

    def _train(self, name: str, rng: np.random.Generator) -> dict:
        part = self.half(name)
        own, trains = dict(part.start(self.layout, self.start, SHARED)), self.allocation.trains(name)
        for key, shape in part.shapes(self.layout).items():
            role = self.layout.role(key)
            held = role == "head" or key.rpartition(".")[0] in trains
            if held and role in part.contract(self.layout).trains:
                own[key] = (own[key] + rng.normal(size=shape)).astype(np.float32)
        return own

    def _upload(self, name: str) -> np.ndarray:
        arrays = self.half(name).upload(self.layout, self.start, self.trained[name], SHARED)
        return np.concatenate([arrays[key].ravel() for key in self.shapes])

    def combined(self, ring_sum: np.ndarray, n: int) -> tuple[dict, dict]:
        """The sums and the next state."""
        vector, sums, at = self.quantiser.dequantise_sum(ring_sum), {}, 0
        for key, shape in self.shapes.items():
            size = int(np.prod(shape))
            sums[key], at = vector[at : at + size].reshape(shape), at + size
        return sums, self.half().combine(self.layout, self.start, sums, n, SHARED)

    def check(self, survivors: tuple[str, ...], ring_sum: np.ndarray) -> None:
        """Every component of every array is the plain mean over the survivors that hold it."""
        sums, state = self.combined(ring_sum, len(survivors))
        roles = self.method.contract(self.layout).trains
        for number, layer in enumerate(self.allocation.layers):
            for module in layer.modules:
                for j in range(module.rank):
                    held = [name for name in self.allocation.holders(number, j) if name in survivors]
                    assert round(float(sums[holders_name(module)][j])) == len(held) >= 1
                    for key in (module.a_name, module.b_name):
                        mean = np.mean([component(self.trained[name], key, j) for name in held], axis=0)
                        wanted = mean if self.layout.role(key) in roles else component(self.start, key, j)
                        assert_allclose(component(state, key, j), wanted, atol=1e-4)
        for key in self.layout.heads:
            mean = np.mean([self.trained[name][key] for name in survivors], axis=0)
            assert_allclose(state[key], mean, atol=1e-4)


class PaddedLab(Lab):
    """The same under HetLoRA, which takes clients of unequal ranks itself."""

    def half(self, name: str | None = None) -> Method:
        own = None if name is None else self.allocation.own(self.layout, name)
        return self.method if own is None else self.method.at_client(own)

    def check(self, survivors: tuple[str, ...], ring_sum: np.ndarray) -> None:
        """Factors are those of all survivors, padded with zeros and weighed by the norms of their products."""
        sums, state = self.combined(ring_sum, len(survivors))
        for m in self.layout.modules:
            a, b, total = np.zeros((m.rank, m.in_features)), np.zeros((m.out_features, m.rank)), 0.0
            for name in survivors:
                trained_a, trained_b = (self.trained[name][key].astype(float) for key in (m.a_name, m.b_name))
                rank = self.allocation.parts[name].rank
                assert trained_a.shape[0] == rank
                weight = np.clip(np.linalg.norm(m.scaling * trained_b @ trained_a) / LARGEST, 1 / 16, 1)
                a[:rank] += weight * trained_a
                b[:, :rank] += weight * trained_b
                total += weight
            assert_allclose(sums[weight_name(m)], [total], atol=1e-4)
            assert_allclose(state[m.a_name], a / total, atol=1e-4)
            assert_allclose(state[m.b_name], b / total, atol=1e-4)
        for key in self.layout.heads:
            mean = np.mean([self.trained[name][key] for name in survivors], axis=0)
            assert_allclose(state[key], mean, atol=1e-4)


def component(state: dict, key: str, j: int) -> np.ndarray:
    """Row j of A or column j of B."""
    return state[key][j] if key.endswith("lora_A") else state[key][:, j]


def allocate(kind: str, budgets: list[int], number: int) -> Allocation:
    """Four layers of rank 4 with at least three holders each; `budgets` are of layers or ranks."""
    known = public(4)
    match kind:
        case "gd-triangle":
            some = [min(budget, 3) for budget in budgets[:3]]
            return Geometric("triangle", 3).allocate(number, tiers(*some, 4, 4, 4), known)
        case "rgd-bottleneck":
            return RandomGeometric("bottleneck", 3).allocate(number, tiers(*budgets), known)
        case "fedra":
            return FedRA(3).allocate(number, tiers(*budgets), known)
        case _:
            ranks = [*(budget - 1 for budget in budgets[:3]), 4, 4, 4]
            profiles = {name: Profile(max_rank=rank) for name, rank in zip(NAMES, ranks, strict=True)}
            return RankByCapability([1, 2, 3, 4], 3).allocate(number, profiles, known)


@given(
    kind=st.sampled_from(["gd-triangle", "rgd-bottleneck", "fedra", "ranks"]),
    budgets=st.lists(st.integers(2, 4), min_size=N, max_size=N),
    number=st.integers(1, 9),
    method=st.sampled_from([FedIT(), FFALoRA()]),
    lost=st.sets(st.sampled_from(NAMES), max_size=2),
    phase=st.sampled_from(["advertise", "share", "mask", "confirm", "reveal"]),
)
@settings(max_examples=20, deadline=None)
def test_sums_and_denominators_are_those_of_the_survivors(kind, budgets, number, method, lost, phase) -> None:
    sums_are_the_survivors(Lab(layout(4), allocate(kind, budgets, number), method, 3), lost, phase)


@given(
    budgets=st.lists(st.integers(2, 4), min_size=N, max_size=N),
    lost=st.sets(st.sampled_from(NAMES), max_size=2),
    phase=st.sampled_from(["advertise", "share", "mask", "confirm", "reveal"]),
    together=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_weighted_sums_of_padded_factors_are_those_of_the_survivors(budgets, lost, phase, together) -> None:
    """Whether or not what everybody has travels as changes."""
    allocation = allocate("ranks", budgets, 1)
    common = min(part.rank for part in allocation.parts.values()) if together else 0
    sums_are_the_survivors(PaddedLab(layout(4), allocation, HetLoRA(None, LARGEST, common), 3), lost, phase)


def sums_are_the_survivors(lab: Lab, lost: set[str], phase: str) -> None:
    assert min(len(group.contributors) for group in lab.groups) >= 3
    survivors = set(NAMES) - (lost if phase in ("advertise", "share", "mask") else set())
    held = [set(lab.allocation.holders(i, j)) & survivors for i in range(4) for j in range(4)]
    federation = lab.federation
    if min(map(len, held)) < 3:  # one thin layer is enough
        with pytest.raises(SessionAborted):
            run_session(federation.clients, federation.server, federation.vectors, dict.fromkeys(lost, phase))
        return
    result = run_session(
        federation.clients, federation.server, federation.vectors, dict.fromkeys(lost, phase)
    )
    assert set(result.survivors) == survivors
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))
    lab.check(result.survivors, result.sum)


@pytest.mark.parametrize("by", ["client-6", "client-1"])
def test_padding_does_not_make_a_component_large(by: str) -> None:
    """Zeros of those who lack components 3 and 4 hide nobody: neither a server that says they do gets their sum, nor
    one that loses a holder after masking."""
    lab = PaddedLab(layout(4), allocate("ranks", [3, 3, 3, 4, 4, 4], 1), HetLoRA(None, LARGEST, 2), 3)
    federation, n_last = lab.federation, (3, 4, 5)
    assert {g.contributors for g in lab.groups} == {n_last, tuple(range(N))}
    form = vector_form(lab.groups, N, lab.quantiser.modulus_bits, lab.quantiser.levels)
    federation.policy = replace(federation.policy, min_contributors=3, exact_form=form)
    federation.clients = {name: federation.client(name) for name in NAMES}
    everybody = tuple(CoordinateGroup(g.start, g.stop, tuple(range(N))) for g in lab.groups)
    padded = encode(Proposal(replace(federation.parameters, groups=everybody)))
    federation.refuses("advertise", padded, "groups than this client's", by=by)
    federation.clients[by] = federation.client(by)
    inbox = federation.drive(until="confirm")
    statements = decode(Survivors, inbox[by], "test").statements
    kept = tuple(statement for statement in statements if statement.index != 4)
    forged = encode(Survivors(to_bitmap({0, 1, 2, 3, 5}, N), kept))
    federation.refuses("confirm", forged, "too few contributors in U3", by=by)


# Groups.

PARTS = {"client-1": Part((0, 1), 4), "client-2": Part((0, 1), 2), "client-3": Part((0,), 4)}
SMALL = Allocation("by hand", 1, layers_of(layout(2)), 4, PARTS)


def test_groups_say_who_contributes_to_every_coordinate() -> None:
    shapes = SMALL.method(FedIT(), layout(2)).contract(layout(2)).uploads
    groups = coordinate_groups(SMALL, layout(2), shapes, ("client-3", "client-1", "client-2"))
    found = {}
    for group in groups:
        for at in range(group.start, group.stop):
            found[at] = group.contributors
    at, everybody = 0, (0, 1, 2)
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        rows = [found[at + row * (size // shape[0])] for row in range(shape[0])]
        if name.startswith("classifier"):
            assert set(rows) == {everybody}
        elif name.endswith("lora_B"):
            assert {found[i] for i in range(at, at + size)} == {everybody if ".0." in name else (1, 2)}
        elif ".0." in name:
            assert rows == [everybody, everybody, (0, 1), (0, 1)]
        else:
            assert rows == [(1, 2), (1, 2), (1,), (1,)]
        at += size
    assert at == groups[-1].stop == len(found)
    assert all(a.stop == b.start and a.contributors != b.contributors for a, b in itertools.pairwise(groups))


def test_a_form_is_that_of_the_session_whether_everybody_contributes_or_not() -> None:
    for budgets in ((4, 4, 4, 4, 4, 4), (3, 3, 3, 4, 4, 4)):
        lab = Lab(layout(4), FedRA(3).allocate(1, tiers(*budgets), public(4)), FedIT(), 3)
        form = vector_form(lab.groups, N, lab.quantiser.modulus_bits, lab.quantiser.levels)
        assert form == lab.federation.parameters.form
        assert (form.groups == ()) == (min(budgets) == 4)


def test_groups_that_cannot_be_are_refused() -> None:
    shapes = SMALL.method(FedIT(), layout(2)).contract(layout(2)).uploads
    with pytest.raises(AllocationError, match="client-9 has no part"):
        coordinate_groups(SMALL, layout(2), shapes, (*PARTS, "client-9"))
    with pytest.raises(AllocationError, match=r"odd\.thing travels but belongs to no layer"):
        coordinate_groups(SMALL, layout(2), {"odd.thing": (3,)}, tuple(PARTS))


# A server that wants a layer of few.


@pytest.fixture
def lab() -> Lab:
    """Layer 2 is trained by client-4, client-5 and client-6 alone: just enough."""
    allocation = Geometric("triangle", 3).allocate(1, tiers(1, 2, 2, 3, 3, 3), public(3))
    assert allocation.holders(2) == ("client-4", "client-5", "client-6")
    lab = Lab(layout(3), allocation, FedIT(), 3)
    form = vector_form(lab.groups, N, lab.quantiser.modulus_bits, lab.quantiser.levels)
    lab.federation.policy = replace(lab.federation.policy, min_contributors=3, exact_form=form)
    lab.federation.clients = {name: lab.federation.client(name) for name in NAMES}
    return lab


def test_a_proposal_with_a_layer_of_few_is_refused(lab: Lab) -> None:
    federation = lab.federation
    thin = tuple(
        CoordinateGroup(g.start, g.stop, g.contributors[:2] if len(g.contributors) == 3 else g.contributors)
        for g in lab.groups
    )
    proposal = replace(federation.parameters, groups=thin)
    federation.refuses("advertise", encode(Proposal(proposal)), "fewer contributors than 3", by="client-4")


def test_contributors_that_train_something_else_do_not_make_a_layer_large(lab: Lab) -> None:
    """By the numbers this proposal is fine; only who has made the allocation again can tell."""
    federation = lab.federation
    padded = tuple(CoordinateGroup(g.start, g.stop, tuple(range(N))) for g in lab.groups)
    proposal = replace(federation.parameters, groups=padded)
    proposal.validate()
    federation.refuses("advertise", encode(Proposal(proposal)), "groups than this client's", by="client-4")


def test_fewer_contributors_than_the_policy_wants_are_refused(lab: Lab) -> None:
    federation = lab.federation
    federation.clients["client-4"] = federation.client(
        "client-4", policy=replace(federation.policy, min_contributors=4)
    )
    message = encode(Proposal(federation.parameters))
    federation.refuses("advertise", message, "min_contributors 3 is below this client's 4", by="client-4")


def test_a_holder_lost_before_masking_ends_the_session(lab: Lab) -> None:
    federation = lab.federation
    with pytest.raises(SessionAborted, match="contribute to a group"):
        run_session(federation.clients, federation.server, federation.vectors, {"client-5": "mask"})


def test_a_server_that_leaves_a_holder_out_after_masking_is_refused(lab: Lab) -> None:
    """All have masked; the server says that client-5 and client-6 are lost, so layer 2 would be client-4's alone."""
    federation = lab.federation
    inbox = federation.drive(until="confirm")
    for by in ("client-4", "client-1"):  # a holder, and one that has nothing in the layer
        statements = decode(Survivors, inbox[by], "test").statements
        kept = tuple(statement for statement in statements if statement.index not in (4, 5))
        forged = encode(Survivors(to_bitmap({0, 1, 2, 3}, N), kept))
        federation.refuses("confirm", forged, "too few contributors in U3", by=by)


@pytest.mark.parametrize("phase", ["confirm", "reveal"])
def test_a_holder_that_drops_after_masking_is_still_in_the_sum(lab: Lab, phase) -> None:
    """Its masks are taken off with the others' help, and it counts."""
    federation = lab.federation
    result = run_session(federation.clients, federation.server, federation.vectors, {"client-6": phase})
    assert result.survivors == NAMES
    lab.check(result.survivors, result.sum)
