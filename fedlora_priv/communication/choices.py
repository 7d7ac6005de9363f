"""What may be left out of which upload: the refusals that keep sums right and votes private.

    rule                                                       because
    dense, or the contract does not travel whole               half of a sketch is no sketch
    error feedback and masked downloads only where arrays      after an SVD or a merge a coordinate is another one:
    move by their mean change                                  its residual would be added to something else
    votes and error feedback only in mode `local`              both are functions of one client's update, covered by
                                                               its guarantee only if it was noised at the client in full
    votes only in methods of one exchange, under masks         the vote takes the exchange before the values; without
                                                               masks the server would see each client's votes
    a vote for several rounds only where arrays move by mean   what was voted for is another coordinate after an SVD
    tiers only in methods of one exchange, without votes       what wider tiers send takes the exchanges after the first
    training the support alone only where arrays move by       a coordinate must be the same thing in training, in
    their mean change and all that is trained is uploaded,     the upload and in the next state; and no noise may be
    in one exchange                                            missing where something stays at home
    training the support alone not with votes, nor with        votes are cast on what was trained; and nothing is left
    error feedback                                             out of an upload that is zero elsewhere
    per-channel scales only in mode `local`                    noise that is shared must not be clipped

`protocols` refuses a second time, where it can see it: a vote or a residual takes no vector that was not declared
`PrivateAtClient`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.config_federation import CommunicationSection
from fedlora_priv.methods.base import Contract, Method

SupportKind = Literal["dense", "seeded-random-k", "server-topk", "voted-topk"]
NoiseMode = Literal["local", "distributed", "client"]

LEAST_WHOLE_BITS = 8
"""A contract that travels whole needs at least so many bits a value."""

REVEALS: dict[SupportKind, str] = {
    "dense": "nothing beyond the sum",
    "seeded-random-k": "nothing beyond the sum: it is drawn from a public seed",
    "server-topk": "nothing beyond earlier sums, of which it is a function, and a public seed",
    "voted-topk": "for every coordinate, chosen or not, how many clients voted for it",
}
"""What the server learns of each support; part of what a contract leaks."""


@dataclass(frozen=True)
class Choice:
    """How the uploads of a federation are to travel.

    Args:
        support, densities: which coordinates, and what fraction of them in each tier; one tier unless there are more.
        vote_every: rounds for which a voted support is kept.
        value_bits: bits of one client's value, sign included.
        error_feedback: whether clients keep what was left out.
        channel_scales: whether each channel has a scale of its own.
        download_density: what fraction of the global state is sent down, by magnitude; 1 for all of it.
        train: whether clients train everything, or what is in the support and nothing else.
    """

    support: SupportKind = "dense"
    densities: tuple[float, ...] = (1.0,)
    vote_every: int = 1
    value_bits: int = 16
    error_feedback: bool = False
    channel_scales: bool = False
    download_density: float = 1.0
    train: Literal["all", "support"] = "all"

    def __post_init__(self) -> None:
        for density in (*self.densities, self.download_density):
            if not 0.0 < density <= 1.0:
                raise CommunicationError(f"a density is above 0 and at most 1, not {density}")
        if not self.densities or sorted(set(self.densities)) != list(self.densities):
            raise CommunicationError("the densities of tiers increase", "list the narrowest tier first")
        if self.support == "dense" and self.densities != (1.0,):
            raise CommunicationError("a dense support has density 1", "choose another support")
        if self.support == "voted-topk" and len(self.densities) > 1:
            raise CommunicationError("a vote is for one support, and tiers have several", "use one density")
        if not 2 <= self.value_bits <= 16:
            raise CommunicationError(f"a value travels in 2 to 16 bits, not in {self.value_bits}")

    @classmethod
    def of(cls, communication: CommunicationSection) -> Choice:
        """Return what an experiment file asks for.

        Raises:
            CommunicationError: its values do not go together.
        """
        return cls(
            support=communication.support,
            densities=communication.tiers,
            vote_every=communication.vote_every,
            value_bits=communication.value_bits,
            error_feedback=communication.error_feedback,
            channel_scales=True,  # as `federation.bounds` has them
            download_density=communication.download_density,
            train=communication.train,
        )

    @property
    def reveals(self) -> str:
        """What the server learns of the support."""
        return REVEALS[self.support]

    def require_allowed(self, method: Method, contract: Contract, mode: NoiseMode, *, masked: bool) -> None:
        """Return if a method's uploads may travel like this.

        Args:
            method, contract: of every round that they are for.
            mode: who adds the noise.
            masked: whether sums are taken under masks.

        Raises:
            CommunicationError: names the first rule of the module's docstring that is broken.
        """
        self._require_whole(method, contract)
        if not method.moves_by_mean and (lasting := self._lasting()):
            raise CommunicationError(
                f"{lasting} does not go with {method.name!r}, whose coordinates are others in the next round",
                "use a method that moves arrays by their mean change",
            )
        if mode != "local" and (self.error_feedback or self.channel_scales or self.support == "voted-topk"):
            raise CommunicationError(
                f"votes, error feedback and scales by channel need mode 'local', and not {mode!r}: only there is an "
                "update private by itself",
                "use a public support, no feedback and one scale",
            )
        if self.support == "voted-topk":
            self._require_vote(contract, masked=masked)
        if len(self.densities) > 1 and contract.exchanges > 1:
            raise CommunicationError(
                f"tiers take the exchanges after the first, and this method has {contract.exchanges} of its own",
                "use one density",
            )
        if self.train == "support":
            self._require_trained_alone(method, contract)

    def _lasting(self) -> str | None:
        """Return what of this choice outlives a round, if anything does."""
        if self.error_feedback:
            return "error feedback"
        if self.download_density < 1:
            return "a masked download"
        return "a support kept after its vote" if self.vote_every > 1 else None

    def _require_whole(self, method: Method, contract: Contract) -> None:
        """Refuse to leave out parts of what must travel whole."""
        if contract.travels_whole and self.densities != (1.0,):
            raise CommunicationError(
                f"what {method.name!r} uploads must travel whole: it has maps of products in it, which mean "
                "nothing in part",
                "use density 1",
            )
        if contract.travels_whole and self.value_bits < LEAST_WHOLE_BITS:
            raise CommunicationError(
                f"{method.name!r} needs at least {LEAST_WHOLE_BITS} bits a value, not {self.value_bits}",
                "raise value_bits",
            )

    def _require_trained_alone(self, method: Method, contract: Contract) -> None:
        """Refuse to train the support alone where it is not known, or means something else to the method."""
        if self.support == "dense":
            raise CommunicationError(
                "train = 'support' has no effect where everything travels", "choose a support with a density"
            )
        if self.support == "voted-topk":
            raise CommunicationError(
                "votes are cast on what was trained, so what wins cannot be what is trained",
                "train 'all', or choose 'server-topk' or 'seeded-random-k'",
            )
        if self.error_feedback:
            raise CommunicationError(
                "error feedback keeps what was left out, and nothing is where only the support is trained",
                "train 'all', or leave error feedback out",
            )
        if not method.moves_by_mean or contract.travels_whole or contract.exchanges > 1:
            raise CommunicationError(
                f"only changes of arrays can be trained in part, and {method.name!r} makes more of them",
                "use a method that moves arrays by their mean change",
            )
        if contract.stays_home:
            raise CommunicationError(
                f"with {method.name!r} {' and '.join(sorted(contract.stays_home))} never travel, so they are in no "
                "support",
                "train 'all'",
            )

    def _require_vote(self, contract: Contract, *, masked: bool) -> None:
        """Refuse votes that would show, or that have no exchange to go before."""
        if not masked:
            raise CommunicationError(
                "without masks the server would see each client's votes", "use secure aggregation"
            )
        if contract.exchanges > 1:
            raise CommunicationError(
                f"a vote goes before the values of a round, and this method has {contract.exchanges} exchanges",
                "use a public support",
            )
