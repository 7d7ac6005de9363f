"""A client's own model where arrays stay at home: measured on public rows, and kept in the client's home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlora_priv.adapter_folder import save_adapter
from fedlora_priv.adapters import write_state
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.methods import Role, State
from fedlora_priv.training import PrivateTrainer, TokenisedExamples

_MISSING = """
## What is missing

{what} stayed at each client and never reached the server: in this folder they are as they were before training. What
was trained together is the rest. Each client has kept its own, whole adapter in its home.
"""

_NOTES = """
## Whose it is

This is the model of one client, {client_id}: what all clients share, and its own {own}, trained on its rows. They were
clipped and noised with the rest, so its ε holds for them too; nobody else has seen them. See `report.json` of the run
for that ε.
"""


@dataclass(frozen=True)
class TrainedModel:
    """A `federation.personal.OwnModel`: the client's trainer, and the public rows, if there are any.

    Args:
        client_id: whose it is.
        home: the roles of arrays that are its own.
        trainer: of the client's own rank.
        rows: public held-out rows, or None where nothing may be evaluated.
        folder: where the adapter is kept.
        base_model: what the adapter's card tells its owner to load it onto.
    """

    client_id: str
    home: frozenset[Role]
    trainer: PrivateTrainer
    rows: TokenisedExamples | None
    folder: Path
    base_model: str

    def quality(self, state: State) -> float | None:
        """Return accuracy or perplexity on the public rows."""
        return None if self.rows is None else self.trainer.evaluate(self.rows, state).value

    def keep(self, state: State) -> None:
        """Save the adapter in the client's home."""
        write_state(self.trainer.model, state)
        notes = _NOTES.format(client_id=self.client_id, own=_named(self.home))
        save_adapter(self.trainer.model, self.folder, base_model=self.base_model, notes=notes)


def personal_folder(home: ClientHome, run: bytes) -> Path:
    """Return where a client keeps its own adapter of a run."""
    return home.path / f"personal-{run.hex()}"


def missing(home: frozenset[Role]) -> str:
    """Return what the card of the global adapter says of arrays that stay at home; nothing where there are none."""
    return _MISSING.format(what=_named(home)) if home else ""


def _named(home: frozenset[Role]) -> str:
    """Return roles in words: "B and head"."""
    return " and ".join(sorted(home))
