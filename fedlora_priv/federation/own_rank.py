"""Ranks that clients prune by themselves (HetLoRA): what each announces, what it then believes, what follows for all.

After training a client announces one bit, whether its tail has faded (`RankPruning.fades`), with the answer that says
it has trained. It is made of the round's start and of the noised state that is stored by then, so a client that is
asked again for the same round says the same. The server takes the announcements that it has heard, of lost rounds too,
as far as every component keeps enough clients; everybody's rank is in the findings of the next round.

A client goes by the rank in the findings and refuses those in which

- its own rank is neither what it trained at last nor, if it has announced that its tail has faded, what is left of that
  (an announcement may have been lost, or held up; before its first one, it is the file's rank);
- anybody's rank has risen, or is none that the rule leads to;
- a round that it has announced for comes with other ranks than before, or an earlier one comes again.

So no server can have it train components that it has given up, nor count it where it holds nothing: findings are in the
digest that masks are bound to, and whoever is told a rank trains at that rank.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora_priv.allocation import RankPruning
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError, RunFolderError
from fedlora_priv.federation.allocating import allocation, holders, of_rank, pruning
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.methods.layout import Layout, State

FADED = "faded"
"""The field of the answer that says a client has trained: 1 if its tail has faded, else 0."""


@dataclass(frozen=True)
class _Announced:
    """What a client announced, in which round, and by which findings it had trained."""

    round: int
    findings: Findings
    faded: bool


def ranks(experiment: Experiment, layout: Layout, round: int, findings: Findings) -> dict[str, int]:
    """Return every client's rank in a round, in roster order; nothing where everybody trains everything."""
    dealt = allocation(experiment, layout, round, findings)
    return {} if dealt is None else {c: dealt.parts[c].rank for c in experiment.client_ids}


def after(
    experiment: Experiment, layout: Layout, round: int, findings: Findings, faded: Collection[str]
) -> Findings:
    """Return what the next round follows from if these clients have announced that their tail has faded.

    Args:
        findings: those of this round.
    """
    rule = pruning(experiment)
    if rule is None:
        return findings
    first, now = (ranks(experiment, layout, round, known) for known in (Findings(), findings))
    left = rule.after(now, faded, holders(experiment, layout))
    return replace(findings, ranks=tuple(sorted((c, rank) for c, rank in left.items() if rank < first[c])))


class Announcements:
    """What one client has announced in one run, durably, and which findings it believes.

    Args:
        home: its folder.
        run: hex.
        rule: by which clients prune their ranks.
    """

    def __init__(
        self, home: Path, run: str, client_id: str, experiment: Experiment, layout: Layout, rule: RankPruning
    ) -> None:
        self._path = home / f"announced-{run}.json"
        self._client_id, self._experiment, self._layout = client_id, experiment, layout
        self._rule = rule

    def require(self, round: int, findings: Findings) -> None:
        """Return if the ranks of a round can be what clients have announced; see this module.

        Raises:
            FederationError: they cannot.
            RunFolderError: what this client has announced cannot be read.
        """
        told, first = self._ranks(round, findings), self._ranks(round, Findings())
        for client_id, rank in told.items():
            if rank not in self._rule.ranks(first[client_id]):
                raise FederationError(
                    f"the server has found rank {rank} at {client_id}, to which nobody prunes"
                )
        last = self._last()
        if last is None:
            self._require_after(told, first, faded=False)
        elif round == last.round and findings.ranks == last.findings.ranks:
            return
        elif round <= last.round:
            raise FederationError(
                f"round {round} began again with other ranks, or after this client has announced its own in round "
                f"{last.round}"
            )
        else:
            self._require_after(told, self._ranks(last.round, last.findings), faded=last.faded)

    def of(self, round: int, findings: Findings, start: State, trained: State) -> dict[str, int]:
        """Return what this client announces of a round, which it remembers from now on: whether its tail has faded.

        Args:
            start, trained: noised states of its own, before and after training.

        Raises:
            RunFolderError: the home cannot be written.
        """
        own = of_rank(self._experiment, self._layout, self._ranks(round, findings)[self._client_id])
        faded = self._rule.fades(own, start, trained)
        value = {"round": round, "ranks": findings.ranks, "faded": faded}
        write_atomically(self._path, json.dumps(value).encode(), mode=0o600)
        return {FADED: int(faded)}

    def _require_after(self, told: Mapping[str, int], before: Mapping[str, int], *, faded: bool) -> None:
        """Raise unless ranks can have followed from those of the last round that this client has trained in."""
        if risen := [client_id for client_id, rank in told.items() if rank > before[client_id]]:
            raise FederationError(f"the server has found that the rank of {risen[0]} has risen")
        mine = before[self._client_id]
        if told[self._client_id] not in ({mine, self._rule.kept(mine)} if faded else {mine}):
            raise FederationError(
                f"the server has found rank {told[self._client_id]} here, which this client has not announced"
            )

    def _ranks(self, round: int, findings: Findings) -> dict[str, int]:
        """Return every client's rank in a round."""
        return ranks(self._experiment, self._layout, round, findings)

    def _last(self) -> _Announced | None:
        """Return what this client announced last; None before that."""
        if not self._path.exists():
            return None
        try:
            value = json.loads(self._path.read_bytes())
            findings = Findings(ranks=tuple((client_id, rank) for client_id, rank in value["ranks"]))
            if type(value["round"]) is not int or type(value["faded"]) is not bool:
                raise ValueError("types")
            return _Announced(value["round"], findings, value["faded"])
        except (ValueError, KeyError, TypeError, AttributeError, FederationError) as error:
            raise RunFolderError(
                f"{self._path} is damaged ({type(error).__name__})",
                "restore it: without it this client does not know its rank",
            ) from error
