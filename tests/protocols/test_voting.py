"""voted-topk: ballots, winners, and the two masked exchanges with losses before, between and during them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, PolicyViolation, SessionAborted, SupportError
from protocols.feedback import ErrorFeedback
from protocols.prg import SecretStream
from protocols.private import PrivateAtClient
from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import PHASES, Phase, SecAggResult
from protocols.secagg.local import SessionLog, run_session
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended
from protocols.sparsify import Support
from protocols.voting import BALLOT_BOUND, VoteRules, value_exchange, value_policy


def rules(**changes: Any) -> VoteRules:
    """Ten coordinates, three votes a client, four winners."""
    settled: dict[str, Any] = {
        "dimension": 10,
        "votes": 3,
        "size": 4,
        "max_clients": 6,
        "tie_seed": b"round 1",
    }
    return VoteRules(**{**settled, **changes})


def declared(values: object) -> PrivateAtClient:
    """An update as a client declares it."""
    return PrivateAtClient(np.array(values, dtype=np.float32), accounted_as="a test")


def counts(*votes: int) -> np.ndarray:
    """A vote sum."""
    return np.array(votes, dtype=np.uint32)


# ballots


def test_a_ballot_marks_the_largest_magnitudes_and_ties_by_index() -> None:
    ballot = rules().ballot(declared([0, -9, 3, 3, 1, 3, 0, 0, 0, 0]))
    assert ballot.dtype == np.uint32
    assert ballot.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_every_ballot_has_the_same_number_of_votes() -> None:
    assert int(rules().ballot(declared(np.zeros(10))).sum()) == 3


def test_an_undeclared_update_cannot_vote() -> None:
    with pytest.raises(LocalProtocolError, match="PrivateAtClient"):
        rules().ballot(np.arange(10.0))
    with pytest.raises(LocalProtocolError, match="9 coordinates, not 10"):
        rules().ballot(declared(np.zeros(9)))


@pytest.mark.parametrize(("clients", "bits"), [(1, 2), (3, 3), (4, 4), (7, 4), (8, 5), (1000, 11)])
def test_the_modulus_holds_every_count_as_a_signed_integer(clients: int, bits: int) -> None:
    assert rules(max_clients=clients).modulus_bits == bits
    assert clients * BALLOT_BOUND < 2 ** (bits - 1)
    assert clients * BALLOT_BOUND >= 2 ** (bits - 2)  # and one bit less would not do


# winners


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.permutations(range(8)), min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 8))
def test_winners_agree_with_sorting(orders: list[list[int]], votes: int, size: int) -> None:
    vote = rules(dimension=8, votes=votes, size=size)
    total = Counter(coordinate for order in orders for coordinate in order[:votes])
    vote_sum = np.array([total[i] for i in range(8)], dtype=np.uint32)
    support = vote.support(vote_sum, len(orders))
    least_in = min(total[i] for i in support.indices.tolist())
    out = [i for i in range(8) if i not in support.indices.tolist()]
    assert len(support) == min(size, len(total))
    assert all(total[i] <= least_in for i in out)
    assert support == vote.support(vote_sum, len(orders))


def test_ties_go_by_the_public_seed_and_evenly() -> None:
    # 2000 seeds, 3 of 10 tied coordinates each: every one wins 600 times, standard deviation
    # sqrt(2000·.3·.7) = 20.5; 10 of them beyond 5.5 deviations: false alarm below 4e-7, and seeds are fixed.
    won = np.zeros(10)
    for number in range(2000):
        vote = rules(size=3, max_clients=10, tie_seed=number.to_bytes(2, "big"))
        won[vote.support(np.full(10, 3, dtype=np.uint32), 10).indices] += 1
    assert np.abs(won - 600).max() < 5.5 * 20.5


def test_the_tie_order_is_the_same_everywhere() -> None:
    # A golden value: every platform must choose alike, or masks would cover different coordinates.
    assert rules(votes=5, max_clients=2).support(np.ones(10, dtype=np.uint32), 2).indices.tolist() == GOLDEN


GOLDEN = [1, 2, 5, 7]


def test_min_votes_leaves_the_rare_ones_out() -> None:
    vote_sum = counts(3, 3, 2, 1, 0, 0, 0, 0, 0, 0)
    assert rules(min_votes=2).support(vote_sum, 3).indices.tolist() == [0, 1, 2]
    with pytest.raises(SupportError, match="no coordinate has 4 votes"):
        rules(min_votes=4).support(vote_sum, 3)


@pytest.mark.parametrize(
    ("vote_sum", "voters", "match"),
    [
        (counts(4, 3, 2, 0, 0, 0, 0, 0, 0, 0), 3, "more votes than"),
        (counts(3, 3, 2, 0, 0, 0, 0, 0, 0, 0), 3, "cannot have cast 8"),
        (counts(3, 3, 3, 1, 0, 0, 0, 0, 0, 0), 3, "cannot have cast 10"),
        (counts(3, 3, 2, 15, 0, 0, 0, 0, 0, 0), 3, "more votes than"),  # -1 modulo 2^4
        (np.full(10, 2**32 - 1, dtype=np.uint32), 3, "more votes than"),
        (counts(3, 3, 3), 3, "shape"),
        (np.zeros(10, dtype=np.int64), 3, "uint32"),
        (counts(3, 3, 3, 0, 0, 0, 0, 0, 0, 0), 0, "1 to 6 clients"),
        (counts(7, 7, 7, 0, 0, 0, 0, 0, 0, 0), 7, "1 to 6 clients"),
    ],
)
def test_spoilt_vote_sums_are_refused(vote_sum: np.ndarray, voters: int, match: str) -> None:
    with pytest.raises(SupportError, match=match):
        rules().support(vote_sum, voters)


@pytest.mark.parametrize(
    "changes",
    [
        {"votes": 0},
        {"votes": 11},
        {"size": 0},
        {"size": 11},
        {"min_votes": 0},
        {"min_votes": 7},
        {"max_clients": 2**16},
    ],
)
def test_rules_that_do_not_go_together_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(SupportError):
        rules(**changes)


def test_the_digest_tells_rules_apart() -> None:
    every = [
        rules(),
        rules(dimension=11),
        rules(votes=4),
        rules(size=5),
        rules(max_clients=7),
        rules(min_votes=2),
        rules(tie_seed=b"round 2"),
    ]
    assert len({one.digest() for one in every}) == len(every)
    assert rules().digest() == rules().digest()


def test_what_feedback_compensated_may_vote() -> None:
    # A coordinate too small to win at once is voted for once enough of it was left out.
    vote, feedback = rules(dimension=4, votes=1, size=1, max_clients=1), ErrorFeedback(4)
    voted = []
    for _ in range(8):
        wanted = feedback.compensate(declared([3.0, 1.0, 0.0, 0.0]))
        support = vote.support(vote.ballot(wanted), voters=1)
        feedback.record(wanted, support.scatter(support.take(wanted.values)))
        voted.append(support.indices.tolist())
    assert voted == [[0], [0], [0], [1], [0], [0], [0], [1]]


# the two exchanges


class Vote:
    """Six clients with private updates that favour the same few of 40 coordinates, and a server."""

    def __init__(self) -> None:
        self.names = tuple(f"client-{i + 1}" for i in range(6))
        identities = {
            name: Identity.from_private_bytes(bytes([i + 1]) * 32) for i, name in enumerate(self.names)
        }
        self.identities = identities
        self.roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
        self.guards = {name: MemoryGuard() for name in self.names}
        self.policy = ClientPolicy(
            max_colluders=1,
            min_survivors=4,
            min_quorum=4,
            min_contributors=4,
            exact_round=None,
            exact_form=None,
        )
        self.rules = rules(dimension=40, votes=5, size=8)
        rng = np.random.default_rng(4)
        signal = np.zeros(40)
        signal[[3, 7, 21, 30]] = 5.0
        self.updates = {name: declared(signal + rng.normal(0, 1, 40)) for name in self.names}
        counts = recommended(6, 1)
        self.first = SessionParameters(
            session_id=bytes([1]) * 32,
            round=1,
            exchange=0,
            roster=self.names,
            max_colluders=1,
            quorum=counts.quorum,
            threshold=counts.threshold,
            min_survivors=counts.min_survivors,
            degree=counts.degree,
            vector_length=40,
            modulus_bits=self.rules.modulus_bits,
            bound=BALLOT_BOUND,
            context=self.rules.digest(),
        )
        self.confirmed: dict[str, tuple[str, ...]] = {}

    def client(self, name: str, policy: ClientPolicy, context: bytes) -> SecAggClient:
        """A client for one exchange."""
        return SecAggClient(
            client_id=name,
            identity=self.identities[name],
            roster=self.roster,
            policy=policy,
            guard=self.guards[name],
            context=context,
        )

    def cast(self, dropouts: dict[str, Any]) -> SecAggResult:
        """Exchange 0."""
        clients = {name: self.client(name, self.policy, self.rules.digest()) for name in self.names}
        server = SecAggServer(parameters=self.first, roster=self.roster)
        ballots = {name: self.rules.ballot(update) for name, update in self.updates.items()}
        result = run_session(clients, server, ballots, dropouts)
        self.confirmed = {name: client.survivors for name, client in clients.items()}
        return result

    def second(self, result: SecAggResult, support: Support, **changes: Any) -> SessionParameters:
        """The proposal of exchange 1."""
        quantiser = self.quantiser()
        proposal = value_exchange(
            self.first,
            result.survivors,
            session_id=bytes([2]) * 32,
            vector_length=len(support),
            modulus_bits=quantiser.modulus_bits,
            bound=quantiser.levels,
            context=self.context(support),
        )
        return replace(proposal, **changes)

    def quantiser(self) -> Quantiser:
        return Quantiser(10.0, 12, 6)

    def context(self, support: Support) -> bytes:
        return hashlib.sha256(self.quantiser().digest() + support.digest()).digest()

    def values(
        self,
        proposal: SessionParameters,
        support: Support,
        dropouts: dict[str, Any],
        log: SessionLog | None = None,
    ) -> SecAggResult:
        """Exchange 1; `dropouts` may only name clients that are on its roster."""
        stream, quantiser = SecretStream(bytes(32)), self.quantiser()
        self.rings = {
            name: quantiser.quantise(support.take(update.values), stream)
            for name, update in self.updates.items()
        }
        clients = {
            name: self.client(name, value_policy(self.policy, self.confirmed[name]), self.context(support))
            for name in self.names
            if self.confirmed[name]
        }
        server = SecAggServer(parameters=proposal, roster=self.roster)
        return run_session(clients, server, self.rings, dropouts, log=log)


def test_values_follow_over_exactly_the_survivors_of_the_vote() -> None:
    vote = Vote()
    cast = vote.cast({"client-2": "mask"})
    kept = [name for name in vote.names if name != "client-2"]
    assert list(cast.survivors) == kept
    ballots = np.sum([vote.rules.ballot(vote.updates[name]) for name in kept], axis=0)
    assert cast.sum.tolist() == ballots.tolist()
    support = vote.rules.support(cast.sum, len(cast.survivors))
    assert {3, 7, 21, 30} <= set(support.indices.tolist())
    assert len(support) == 8
    result = vote.values(vote.second(cast, support), support, {})
    assert list(result.survivors) == kept
    quantiser = vote.quantiser()
    plain = np.sum([support.take(vote.updates[name].values) for name in kept], axis=0)
    dequantised = quantiser.dequantise_sum(result.sum, len(kept))
    assert np.abs(dequantised - plain).max() <= len(kept) * 10.0 / quantiser.levels
    modular = np.sum([vote.rings[name] for name in kept], axis=0, dtype=np.uint64) % 2**quantiser.modulus_bits
    assert result.sum.tolist() == modular.tolist()


LOSSES = st.dictionaries(
    st.sampled_from([f"client-{i + 1}" for i in range(6)]), st.sampled_from(PHASES), max_size=3
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(LOSSES, LOSSES)
def test_whoever_is_lost_the_sums_are_of_the_same_clients_or_there_is_none(
    first: dict[str, Phase], second: dict[str, Phase]
) -> None:
    vote = Vote()
    try:
        cast = vote.cast(first)
        support = vote.rules.support(cast.sum, len(cast.survivors))
        here = {name: phase for name, phase in second.items() if vote.confirmed[name]}
        result = vote.values(vote.second(cast, support), support, here)
    except SessionAborted:
        return
    assert result.survivors == cast.survivors
    modulus = 2 ** vote.quantiser().modulus_bits
    plain = sum(vote.rings[name].astype(np.int64) for name in cast.survivors) % modulus
    assert result.sum.tolist() == plain.tolist()


@pytest.mark.parametrize("phase", ["advertise", "share", "mask"])
def test_a_client_that_voted_and_is_gone_before_its_values_aborts_the_round(phase: str) -> None:
    vote = Vote()
    cast = vote.cast({"client-2": "share"})
    support = vote.rules.support(cast.sum, len(cast.survivors))
    with pytest.raises(SessionAborted) as aborted:
        vote.values(vote.second(cast, support), support, {"client-5": phase})
    assert aborted.value.phase == phase
    assert aborted.value.lost == ("client-5",)


def test_a_client_that_is_lost_after_it_masked_its_values_costs_nothing() -> None:
    vote = Vote()
    cast = vote.cast({})
    support = vote.rules.support(cast.sum, 6)
    result = vote.values(vote.second(cast, support), support, {"client-5": "confirm"})
    assert result.survivors == vote.names


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"min_survivors": 4}, "lose none of them"),  # a server that would sum fewer than voted
        ({"roster": tuple(f"client-{i}" for i in (1, 3, 4, 5)), "degree": 3, "min_survivors": 4}, "exactly"),
        ({"exchange": 0}, "masked vector was already sent"),
    ],
)
def test_clients_refuse_values_over_anybody_else(changes: dict[str, Any], match: str) -> None:
    vote = Vote()
    cast = vote.cast({"client-2": "mask"})
    support = vote.rules.support(cast.sum, len(cast.survivors))
    extra = {} if "min_survivors" not in changes else {"groups": (), "min_contributors": 0}
    log = SessionLog()
    with pytest.raises(SessionAborted):
        vote.values(vote.second(cast, support, **changes, **extra), support, {}, log)
    assert log.refused
    assert all(match in reason for reason in log.refused.values())


def test_clients_refuse_a_support_that_is_not_the_one_they_loaded() -> None:
    vote = Vote()
    cast = vote.cast({})
    support = vote.rules.support(cast.sum, 6)
    other = Support(40, np.arange(8))
    log = SessionLog()
    with pytest.raises(SessionAborted):
        vote.values(vote.second(cast, support, context=vote.context(other)), support, {}, log)
    assert set(log.refused) == set(vote.names)
    assert all("loaded" in reason for reason in log.refused.values())


def test_the_next_exchange_is_among_survivors_only() -> None:
    vote = Vote()

    def proposal(survivors: tuple[str, ...]) -> SessionParameters:
        return value_exchange(
            vote.first,
            survivors,
            session_id=bytes(32),
            vector_length=8,
            modulus_bits=16,
            bound=100,
            context=bytes(32),
        )

    with pytest.raises(LocalProtocolError, match="nobody else"):
        proposal((*vote.names[:4], "mallory"))
    with pytest.raises(LocalProtocolError, match="unsafe"):
        proposal(vote.names[:3])
    assert proposal(vote.names[::-1]).roster == vote.names  # the first roster's order
    five = proposal(vote.names[:5])
    assert (five.min_survivors, five.degree, five.exchange) == (5, 4, 1)
    value_policy(vote.policy, vote.names[:5]).check(five)
    with pytest.raises(PolicyViolation, match="exactly"):
        value_policy(vote.policy, vote.names[1:]).check(five)


def test_a_ring_lattice_is_kept_while_it_fits() -> None:
    names = tuple(f"c{i}" for i in range(30))
    counts = recommended(30, 2, degree=20)
    first = SessionParameters(
        session_id=bytes(32),
        round=1,
        exchange=0,
        roster=names,
        max_colluders=2,
        quorum=counts.quorum,
        threshold=counts.threshold,
        min_survivors=counts.min_survivors,
        degree=counts.degree,
        vector_length=8,
        modulus_bits=16,
        bound=1,
        context=bytes(32),
    )
    for kept, degree in ((30, 20), (22, 20), (21, 20), (20, 19), (17, 16)):
        second = value_exchange(
            first,
            names[:kept],
            session_id=bytes(32),
            vector_length=4,
            modulus_bits=16,
            bound=9,
            context=bytes(32),
        )
        assert (second.degree, second.min_survivors) == (degree, kept)
    high = value_exchange(
        replace(first, threshold=20),  # more than are left
        names[:17],
        session_id=bytes(32),
        vector_length=4,
        modulus_bits=16,
        bound=9,
        context=bytes(32),
    )
    assert high.threshold == 17
