"""A node's client without its model: what the messages between two trainings need, and no torch.

A SuperNode starts a process for every message, and only some of them train or measure. What the others need of the
model (its layout, the state it was loaded with) and of the plan is public and the same in every round, so a node keeps
it in its home once a full client has been opened. It is as good as the agreement that it was made under: under another
one, of another experiment or other versions, it is not read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from accounting.adaptive_clip import AdaptiveClip
from accounting.ledger import Ledger
from accounting.planning import Plan
from fedlora_priv.config import Experiment
from fedlora_priv.federation.allocating import client_method
from fedlora_priv.federation.client import ClientSetup, FederationClient
from fedlora_priv.federation.files import read_arrays, write_arrays
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.randomness import stream_factory
from fedlora_priv.methods import Layout, LoraModule, State, for_experiment
from protocols.secagg.identity import Roster

FILE = "standby.npz"


@dataclass(frozen=True)
class Standby:
    """What is kept.

    Args:
        fingerprint: of the agreement.
        layout, own: the federation's trainable arrays, and those of this client's own rank.
        initial: the model's trainable arrays as they were loaded.
        plan: the client's.
        dataset_id, partition_id: what its ledger knows the data and their split by.
    """

    fingerprint: str
    layout: Layout
    own: Layout
    initial: State
    plan: Plan
    dataset_id: str
    partition_id: str

    def save(self, home: ClientHome) -> None:
        """Write it into a home, in place of what was there.

        Raises:
            RunFolderError: the home cannot be written.
        """
        header = {
            "fingerprint": self.fingerprint,
            "layout": asdict(self.layout),
            "own": asdict(self.own),
            "plan": asdict(self.plan),
            "dataset_id": self.dataset_id,
            "partition_id": self.partition_id,
        }
        write_arrays(home.path / FILE, header, self.initial, mode=0o600)

    @classmethod
    def load(cls, home: ClientHome, fingerprint: str) -> Standby | None:
        """Return what a home keeps under this agreement; None if there is nothing that can be used.

        Nothing can where the ledger is gone: opening a new one would hide that from the full client, which says so.
        """
        path = home.path / FILE
        if not path.exists() or not home.ledger_path.exists():
            return None
        try:
            header, initial = read_arrays(path)
            if header["fingerprint"] != fingerprint:
                return None
            layout, own = _layout(header["layout"]), _layout(header["own"])
            return cls(
                fingerprint,
                layout,
                own,
                initial,
                _plan(header["plan"]),
                header["dataset_id"],
                header["partition_id"],
            )
        except (ValueError, KeyError, TypeError):
            return None  # a full client writes it anew

    def client(
        self, experiment: Experiment, home: ClientHome, *, run: bytes, roster: Roster, lifetime_epsilon: float
    ) -> FederationClient:
        """Return a client that answers every message but those that train or measure.

        Raises:
            RunFolderError: another process uses the home.
            LedgerError: its ledger is not whole.
        """
        client_id = self.plan.client_id
        lock = home.lock()
        try:
            ledger = Ledger.open(
                home.ledger_path,
                client_id=client_id,
                dataset_id=self.dataset_id,
                partition_id=self.partition_id,
                public=experiment.data.public,
            )
        except BaseException:
            lock.close()
            raise
        return FederationClient(
            ClientSetup(
                client_id=client_id,
                experiment=experiment,
                layout=self.layout,
                method=client_method(for_experiment(experiment), self.layout, self.own),
                initial=self.initial,
                plan=self.plan,
                lifetime_epsilon=lifetime_epsilon,
                run=run,
                identity=home.identity(),
                roster=roster,
                guard=home.guard(scope=run.hex()),
                ledger=ledger,
                home=home,
                lock=lock,
                accept=_no_model,
                stream=stream_factory(experiment, client_id),
                train=_no_model,
            )
        )


def _no_model(*_: Any, **__: Any) -> NoReturn:
    """Fail: whoever opened this client gave it a message that needs a model."""
    raise RuntimeError("a client on standby has no model")


def _layout(value: dict[str, Any]) -> Layout:
    """Return the layout that `asdict` took apart."""
    modules = tuple(LoraModule(**module) for module in value["modules"])
    return Layout(modules, {name: tuple(shape) for name, shape in value["heads"].items()})


def _plan(value: dict[str, Any]) -> Plan:
    """Return the plan that `asdict` took apart."""
    adaptive = value["adaptive_clip"]
    return Plan(**{**value, "adaptive_clip": None if adaptive is None else AdaptiveClip(**adaptive)})
