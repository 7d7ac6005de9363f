"""What a server proposes (`SessionParameters`) and what a client is willing to accept (`ClientPolicy`).

The rules that the numbers must obey, with n clients of which up to c = `max_colluders` side with the server:

    2·quorum > n + c            two quorums share an honest client, so only one outcome can be confirmed
    quorum ≤ min_survivors ≤ n  whoever is in the sum was confirmed by a quorum
    min_survivors ≥ c + 2       an honest vector hides behind at least one other
    c < threshold ≤ degree + 1  colluders alone recover nothing; the holders of a secret (its owner's
                                neighbours and the owner) can
    degree > c                  else no ring passes the check of the cut, whoever survives
    n·bound < 2^(b-1)           no sum overflows

`recommended` gives the smallest counts; `parameters.choose` also picks the graph, from how many clients may be lost.
The proofs are in ``docs/parameters.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from protocols.errors import LocalProtocolError, PolicyViolation
from protocols.secagg.codec import Fixed, Unsigned, UpTo
from protocols.secagg.identity import MAX_ID_BYTES, check_client_id

MAX_CLIENTS = 2**16 - 1  # an index, and a Shamir evaluation point (index + 1), is at most 16 bits

INDEX_BYTES = 2
Index = Annotated[int, Unsigned(INDEX_BYTES)]
Count = Annotated[int, Unsigned(4)]
Digest = Annotated[bytes, Fixed(32)]

_COUNTS = (
    "round", "exchange", "max_colluders", "quorum", "threshold", "min_survivors", "degree", "vector_length",
    "modulus_bits", "bound", "min_contributors",
)  # fmt: skip


@dataclass(frozen=True)
class CoordinateGroup:
    """Coordinates [start, stop) and the increasing roster indices of the clients that contribute to them."""

    start: Count
    stop: Count
    contributors: tuple[Index, ...]


@dataclass(frozen=True)
class VectorForm:
    """What a client's vector is made for: its length, its modulus, its bound, and who contributes where.

    Args:
        groups: as in `SessionParameters`; everybody contributes everywhere unless given.
    """

    vector_length: int
    modulus_bits: int
    bound: int
    groups: tuple[CoordinateGroup, ...] = ()


@dataclass(frozen=True)
class Thresholds:
    """The counts that make a session safe; see the module's docstring for the rules."""

    quorum: int
    threshold: int
    min_survivors: int
    degree: int


def recommended(n: int, max_colluders: int, degree: int | None = None) -> Thresholds:
    """Return the smallest safe counts for `n` clients: as many losses as possible are survived.

    Args:
        degree: neighbours of each client in a ring lattice (even); the complete graph unless given.

    Raises:
        LocalProtocolError: no counts are safe.

    Example:
        >>> recommended(5, 1)
        Thresholds(quorum=4, threshold=4, min_survivors=4, degree=4)
    """
    if n > MAX_CLIENTS or max_colluders < 0:
        raise LocalProtocolError(
            f"{n} clients and {max_colluders} colluders are out of range: at most {MAX_CLIENTS}, and 0 or more"
        )
    quorum = (n + max_colluders) // 2 + 1
    min_survivors = max(quorum, max_colluders + 2)
    if degree is None or degree == n - 1:
        degree, threshold = n - 1, quorum
    else:
        threshold = max(max_colluders + 1, (2 * (degree + 1) + 2) // 3)
    if min_survivors > n or not max_colluders < threshold <= degree + 1 or degree <= max_colluders:
        raise LocalProtocolError(
            f"{n} clients cannot be protected from {max_colluders} colluders: add clients, or assume fewer"
        )
    return Thresholds(quorum, threshold, min_survivors, degree)


@dataclass(frozen=True)
class SessionParameters:
    """Everything a session is about. All clients sign it, as part of T0, with every message.

    Args:
        session_id: 32 random bytes; a client accepts each once, ever.
        round, exchange: which masked vector this is; a client sends one for each pair, ever.
        roster: the client_ids in an order that gives each its index.
        max_colluders, quorum, threshold, min_survivors, degree: see `recommended` and the module's docstring.
        vector_length, modulus_bits: the vector has that many entries modulo 2^modulus_bits.
        bound: no client's integer exceeds it in magnitude (`Quantiser.levels`).
        context: 32 bytes that bind the global model, the experiment, the quantiser and the support. Each
            client computes it from what it loaded, and refuses another.
        groups: who contributes where; one group, of everybody, unless given.
        min_contributors: survivors that every group needs; `min_survivors` unless given.
    """

    session_id: Digest
    round: Count
    exchange: Count
    roster: tuple[Annotated[str, UpTo(MAX_ID_BYTES)], ...]
    max_colluders: Count
    quorum: Count
    threshold: Count
    min_survivors: Count
    degree: Count
    vector_length: Count
    modulus_bits: Annotated[int, Unsigned(1)]
    bound: Count
    context: Digest
    groups: tuple[CoordinateGroup, ...] = ()
    min_contributors: Count = 0

    def __post_init__(self) -> None:
        if not self.groups:
            everybody = tuple(range(len(self.roster)))
            object.__setattr__(self, "groups", (CoordinateGroup(0, self.vector_length, everybody),))
        if not self.min_contributors:
            object.__setattr__(self, "min_contributors", self.min_survivors)

    @property
    def n(self) -> int:
        """Number of clients on the roster."""
        return len(self.roster)

    @property
    def form(self) -> VectorForm:
        """What a vector of this session looks like; no groups if everybody contributes everywhere."""
        everywhere = CoordinateGroup(0, self.vector_length, tuple(range(self.n)))
        groups = () if self.groups == (everywhere,) else self.groups
        return VectorForm(self.vector_length, self.modulus_bits, self.bound, groups)

    @property
    def least(self) -> int:
        """Clients that every phase before the sum needs: max(quorum, min_survivors)."""
        return max(self.quorum, self.min_survivors)

    def validate(self) -> None:
        """Return if every rule of the module's docstring holds, and the groups tile the vector.

        Raises:
            LocalProtocolError: names the first rule that does not hold.
        """
        for client_id in self.roster:
            check_client_id(client_id)
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < 2**32:
                raise LocalProtocolError(f"{name} must be a Python int from 0 to 2^32 - 1, not {value!r}")
        for holds, rule in self._rules():
            if not holds:
                raise LocalProtocolError(f"unsafe session parameters: they must satisfy {rule}")
        self._validate_groups()

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """Return every rule with whether it holds."""
        n, c = self.n, self.max_colluders
        complete = self.degree == n - 1
        return (
            (len(self.session_id) == 32 and len(self.context) == 32, "session_id and context of 32 bytes"),
            (2 <= n <= MAX_CLIENTS and len(set(self.roster)) == n, "2 to 65535 clients with distinct names"),
            (2 * self.quorum > n + c, "2*quorum > n + max_colluders"),
            (self.quorum <= self.min_survivors <= n, "quorum <= min_survivors <= n"),
            (self.min_survivors >= c + 2, "min_survivors >= max_colluders + 2"),
            (complete or (self.degree < n - 1 and self.degree % 2 == 0), "degree n-1, or even and below"),
            (c < self.threshold <= self.degree + 1, "max_colluders < threshold <= degree + 1"),
            (self.degree > c, "degree > max_colluders"),
            (self.vector_length >= 1, "vector_length >= 1"),
            (2 <= self.modulus_bits <= 32, "modulus_bits 2 to 32"),
            (self.bound >= 1, "bound >= 1"),
            (n * self.bound < 2 ** (self.modulus_bits - 1), "n*bound < 2^(modulus_bits-1), or sums overflow"),
            (self.min_contributors >= c + 2, "min_contributors >= max_colluders + 2"),
        )

    def _validate_groups(self) -> None:
        """Raise unless the groups tile the vector and each can have enough contributors."""
        reached = 0
        for group in self.groups:
            if group.start != reached or group.stop <= group.start:
                raise LocalProtocolError("coordinate groups must tile the vector in order, without gaps")
            reached = group.stop
            indices = group.contributors
            increasing = all(a < b for a, b in itertools.pairwise(indices))
            if not increasing or max(indices, default=0) >= self.n:
                raise LocalProtocolError("a group's contributors must be increasing roster indices")
            if len(indices) < self.min_contributors:
                raise LocalProtocolError(f"a group has fewer contributors than {self.min_contributors}")
        if reached != self.vector_length:
            raise LocalProtocolError("coordinate groups must tile the vector in order, without gaps")


@dataclass(frozen=True)
class ClientPolicy:
    """What a client accepts. It decides this for itself, before it sees any proposal.

    Args:
        max_colluders: the least number of colluders that a session must withstand.
        min_survivors: the fewest clients this client wants to be summed with, itself included.
        min_quorum: the fewest confirmations that may release shares.
        min_contributors: the fewest survivors for any group of coordinates.
        min_threshold: the fewest shares that may recover a secret of this client's.
        min_degree: the fewest neighbours that this client masks with; everybody, where there are fewer others.
        max_clients, max_vector_length, max_modulus_bits: what this client can afford to compute.
        max_proposal_bytes: a longer proposal is refused unread; all later messages are limited by the session.
        exact_roster: if given, the session must have these clients and lose none of them: for an exchange
            whose sum, set against an earlier one of other clients, would tell who differs.
        exact_round: the (round, exchange) that this client's vector belongs to by its own count. None leaves it to
            the server to say which vectors are of one round, and a server that numbers a failed round anew gets
            the same vector masked twice: only where every session gets a fresh vector.
        exact_form: the form that this client's vector has. With None a server can propose a smaller bound or modulus,
            or a group without this client, and learns from whether `mask` refuses what is in the vector: for tests.
            Of a vector with groups, the form by roster: groups list its indices, and a client knows names.
        allow_remask: whether a second masked vector for the same round and exchange may be sent. Only if
            every vector is private by itself (mode `local`): their difference is not hidden by anything.
    """

    max_colluders: int = 1
    min_survivors: int = 3
    min_quorum: int = 3
    min_contributors: int = 3
    max_clients: int = 1000
    max_vector_length: int = 2**26
    max_modulus_bits: int = 32
    max_proposal_bytes: int = 2**20
    exact_roster: frozenset[str] | None = None
    exact_round: tuple[int, int] | None = field(kw_only=True)
    exact_form: VectorForm | Callable[[tuple[str, ...]], VectorForm] | None = field(kw_only=True)
    allow_remask: bool = False
    min_threshold: int = 1
    min_degree: int = 1

    def check(self, parameters: SessionParameters) -> None:
        """Return if this client takes part in such a session.

        Raises:
            PolicyViolation: names the first limit that is broken.
        """
        try:
            parameters.validate()
        except LocalProtocolError as error:
            raise PolicyViolation(str(error)) from None
        for name, proposed, limit in (
            ("max_colluders", parameters.max_colluders, self.max_colluders),
            ("min_survivors", parameters.min_survivors, self.min_survivors),
            ("quorum", parameters.quorum, self.min_quorum),
            ("min_contributors", parameters.min_contributors, self.min_contributors),
            ("threshold", parameters.threshold, self.min_threshold),
            ("degree", parameters.degree, min(self.min_degree, parameters.n - 1)),
        ):
            if proposed < limit:
                raise PolicyViolation(f"{name} {proposed} is below this client's {limit}")
        for name, proposed, limit in (
            ("n", parameters.n, self.max_clients),
            ("vector_length", parameters.vector_length, self.max_vector_length),
            ("modulus_bits", parameters.modulus_bits, self.max_modulus_bits),
        ):
            if proposed > limit:
                raise PolicyViolation(f"{name} {proposed} is above this client's {limit}")
        if self.exact_roster is not None and (
            set(parameters.roster) != self.exact_roster or parameters.min_survivors != parameters.n
        ):
            raise PolicyViolation(
                "the session must have exactly the earlier survivors, and lose none of them"
            )
        if self.exact_round not in (None, (parameters.round, parameters.exchange)):
            raise PolicyViolation("the session is for another round or exchange than this client's vector")
        form = self.exact_form(parameters.roster) if callable(self.exact_form) else self.exact_form
        if form not in (None, parameters.form):
            raise PolicyViolation(
                "the session is for vectors of another length, modulus, bound or groups than this client's"
            )
