"""A support that the clients vote on: `voted-topk`, in two masked exchanges of one round.

    exchange 0   every client votes for the k' coordinates where its private update is largest (a 0/1 vector);
                 the votes are summed under masks
    between      the support is a fixed function of the vote sum, the same for everybody
    exchange 1   the values on that support are summed under masks, over exactly the survivors of exchange 0

The second roster is exactly the first one's survivors, and losing one of them aborts, because the sums of two
different sets of clients can be compared: who is missing from the second is told by the difference.

What it reveals. The server sees the vote sum: for *every* coordinate how many clients voted for it, chosen or
not. A coordinate with one vote was somebody's, and the server may know whose by other means. So votes are cast
only from an update that is private by itself (`PrivateAtClient`), of which they are post-processing at no
further cost. Nobody sees a single client's votes; everybody sees the support.

A dishonest client can vote for fewer or more, as long as all entries stay within the session's bound of one:
it shifts the support, as it could shift the sum. The total shows that somebody cheated, not who. A dishonest
server can announce another support than the votes give; that costs utility, and the context of exchange 1
binds everybody to the same one.

What it costs. The vote travels on every coordinate, at one bit more than a count needs: with 5 clients 4 bits, where a
dense vector of 8-bit values takes 11. Keep a support for several rounds if its vote is to pay.

Source: the shared-support variant of FLASC (Kuo et al. 2024), whose own supports are one client's each and so
cannot be summed under masks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError, SupportError
from protocols.private import PrivateAtClient, require_private
from protocols.secagg.session import ClientPolicy, SessionParameters, VectorForm
from protocols.sparsify import Support, public_words, smallest

BALLOT_BOUND = 1
"""No client's integer in a vote exchange exceeds this: `SessionParameters.bound`."""


@dataclass(frozen=True)
class VoteRules:
    """The public rules of one vote; everybody must hold the same, so `digest` belongs in the context.

    Args:
        dimension: coordinates that can be voted for.
        votes: how many each client votes for, k' (all the same, or a count would leak).
        size: how many coordinates win at most, k.
        max_clients: no more clients than this vote.
        min_votes: a coordinate with fewer votes never wins.
        tie_seed: public bytes that order coordinates of equal votes. Draw them anew for each round: with many
            coordinates and few votes most winners win by this order.

    Raises:
        SupportError: the numbers do not go together.

    Example:
        >>> rules = VoteRules(dimension=4, votes=2, size=1, max_clients=3, tie_seed=b"round 1")
        >>> update = PrivateAtClient(np.array([0.1, -9.0, 3.0, 0.0]), accounted_as="an example")
        >>> rules.ballot(update).tolist(), rules.modulus_bits
        ([0, 1, 1, 0], 3)
        >>> rules.support(np.array([1, 3, 2, 0], dtype=np.uint32), voters=3).indices.tolist()
        [1]
    """

    dimension: int
    votes: int
    size: int
    max_clients: int
    tie_seed: bytes
    min_votes: int = 1

    def __post_init__(self) -> None:
        if not (1 <= self.votes <= self.dimension and 1 <= self.size <= self.dimension):
            raise SupportError("a client votes for 1 to d coordinates, and 1 to d of them win")
        if not 1 <= self.min_votes <= self.max_clients < 2**16:
            raise SupportError("min_votes must be 1 to max_clients, and max_clients below 65536")

    @property
    def modulus_bits(self) -> int:
        """Bits b of the vote exchange: max_clients < 2^(b-1), so that no count overflows.

        One more than counts from 0 to n need: the session's proof is for signed integers, and a sum that
        comes out negative shows a spoilt vote.
        """
        return self.max_clients.bit_length() + 1

    def ballot(self, update: PrivateAtClient) -> NDArray[np.uint32]:
        """Return a client's votes as ring elements: uint32 of shape (dimension,), `votes` ones, else zeros.

        The largest magnitudes are voted for; of equal ones the lower index.

        Guarantee: post-processing of `update`; costs nothing beyond the event that it names.

        Raises:
            LocalProtocolError: the update was not declared private, or has another length.
        """
        values = require_private(update, self.dimension).values
        return smallest(-np.abs(values), self.votes).astype(np.uint32)

    def support(self, vote_sum: NDArray[np.uint32], voters: int) -> Support:
        """Return the coordinates that won: the `size` with the most votes, at least `min_votes` each.

        Args:
            vote_sum: the sum of the ballots, uint32 of shape (dimension,).
            voters: how many clients it is of.

        Raises:
            SupportError: not the sum of that many ballots (somebody spoilt it), or nothing won.
        """
        self._check_sum(vote_sum, voters)
        votes = vote_sum.astype(np.int64)
        k = min(self.size, int(np.count_nonzero(votes >= self.min_votes)))
        if k == 0:
            raise SupportError(f"no coordinate has {self.min_votes} votes: lower min_votes, or raise votes")
        last = np.partition(votes, -k)[-k]  # the votes of the last winner
        won = votes > last
        tied = np.flatnonzero(votes == last)
        order = public_words(b"vote-ties/" + self.tie_seed, self.dimension)
        won[tied[smallest(order[tied], k - int(np.count_nonzero(won)))]] = True
        return Support(self.dimension, np.flatnonzero(won))

    def digest(self) -> bytes:
        """Return 32 bytes that two rules share exactly when they are equal."""
        numbers = (self.dimension, self.votes, self.size, self.max_clients, self.min_votes)
        return hashlib.sha256(
            b"fedlora-priv/v1/vote-rules/" + struct.pack("<5Q", *numbers) + self.tie_seed
        ).digest()

    def _check_sum(self, vote_sum: NDArray[np.uint32], voters: int) -> None:
        """Raise unless `voters` honest ballots can have this sum."""
        if not 1 <= voters <= self.max_clients:
            raise SupportError(f"1 to {self.max_clients} clients vote, not {voters}")
        if vote_sum.shape != (self.dimension,) or vote_sum.dtype != np.uint32:
            raise SupportError(f"a vote sum is uint32 of shape ({self.dimension},)")
        if int(vote_sum.max()) > voters:
            raise SupportError("a coordinate has more votes than there were voters: somebody spoilt the vote")
        total = int(vote_sum.sum(dtype=np.uint64))
        if total != voters * self.votes:
            raise SupportError(
                f"{voters} clients with {self.votes} votes each cannot have cast {total}: "
                "somebody spoilt the vote"
            )


def value_exchange(
    first: SessionParameters,
    survivors: Iterable[str],
    *,
    session_id: bytes,
    vector_length: int,
    modulus_bits: int,
    bound: int,
    context: bytes,
) -> SessionParameters:
    """Return the proposal of the exchange that follows `first`: exactly its survivors, all of them in the sum.

    Quorum and threshold stay: they are right for fewer clients too, so a client that is lost *after* it masked
    costs nothing. One that is lost before costs the exchange.

    Args:
        survivors: `SecAggResult.survivors` of the first exchange.
        context: bind the support here (its digest), or clients could be told different ones.

    Raises:
        LocalProtocolError: a survivor was not on the first roster, or too few are left to be protected.
    """
    kept = set(survivors)
    if not kept <= set(first.roster):
        raise LocalProtocolError("the next exchange is among survivors of the first, nobody else")
    n, degree = len(kept), min(first.degree, len(kept) - 1)
    parameters = replace(
        first,
        session_id=session_id,
        exchange=first.exchange + 1,
        roster=tuple(client_id for client_id in first.roster if client_id in kept),
        threshold=min(first.threshold, degree + 1),
        min_survivors=n,
        degree=degree,
        vector_length=vector_length,
        modulus_bits=modulus_bits,
        bound=bound,
        context=context,
        groups=(),
        min_contributors=0,
    )
    parameters.validate()
    return parameters


def value_policy(
    policy: ClientPolicy, survivors: Iterable[str], form: VectorForm | None = None
) -> ClientPolicy:
    """Return a client's policy for the exchange that follows: the survivors that it confirmed, and no loss.

    Args:
        policy: that of the first exchange; if it names the round, this one names the next exchange of it.
        survivors: `SecAggClient.survivors` of the first exchange; never a list that the server sends.
        form: the `exact_form` of this client's values; that of the votes does not hold here.
    """
    first = policy.exact_round
    following = None if first is None else (first[0], first[1] + 1)
    return replace(policy, exact_roster=frozenset(survivors), exact_round=following, exact_form=form)
