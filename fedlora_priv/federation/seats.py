"""A run's clients, made of an experiment's parts: each with its own lock, ledger, guard, randomness and rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from accounting.ledger import Ledger
from accounting.masking import RECORDED_AS as MASKS_RECORDED_AS
from accounting.masking import masks_digest
from accounting.planning import Plan
from accounting.rows import RECORDED_AS, rows_digest
from fedlora_priv.config import Experiment
from fedlora_priv.errors import StateBeyondBounds
from fedlora_priv.federation.allocating import pruning
from fedlora_priv.federation.client import ClientSetup, FederationClient, LocalResult, LocalTraining
from fedlora_priv.federation.environment import step_settings
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.own_model import TrainedModel, personal_folder
from fedlora_priv.federation.plans import require_room
from fedlora_priv.federation.provenance import noise_source, versions
from fedlora_priv.federation.randomness import stream_factory
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.session import masks
from fedlora_priv.federation.setup import Parts
from fedlora_priv.federation.state_check import LARGEST_ENTRY, StateCheck
from fedlora_priv.federation.trained import Marked
from fedlora_priv.methods import Role, State
from fedlora_priv.training import PrivateTrainer
from protocols.prg import SecretStream
from protocols.secagg.identity import Roster


@dataclass(frozen=True)
class Seat:
    """One client's place in a run.

    Args:
        client_id: whose.
        run: 16 bytes, the same for everybody.
        home, ledger: where it keeps its own things.
        lifetime_epsilon: what its ledger may amount to over all runs.
    """

    client_id: str
    run: bytes
    home: ClientHome
    ledger: Path
    lifetime_epsilon: float


def make_clients(parts: Parts, folder: RunFolder) -> tuple[list[FederationClient], Roster]:
    """Return the clients of a local federation and the roster of their keys.

    Raises:
        BudgetError: the run has not begun and a client's ledger has no room for all of it.
    """
    limit = parts.experiment.privacy.ledger_limit
    seats = [
        Seat(client_id, folder.run, folder.client_home(client_id), folder.ledger_path(client_id), limit)
        for client_id in parts.plans
    ]
    roster = Roster({seat.client_id: seat.home.identity().public_bytes for seat in seats})
    checks = StateChecks(parts)
    with ExitStack() as made:  # closes those that were made if a later one cannot be
        clients = []
        for seat in seats:
            clients.append(make_client(parts, seat, roster, checks, begun=not folder.fresh))
            made.callback(clients[-1].close)
        made.pop_all()
    return clients, roster


class StateChecks:
    """What refuses states from which this process's models cannot be trained privately; clients of a rank share one.

    Args:
        parts: whose models.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._made: dict[PrivateTrainer, StateCheck] = {}

    def of(self, client_id: str) -> Callable[[State, Marked | None], None]:
        """Return the check of a client's start states, by its model of the rank that the state has."""

        def accept(start: State, support: Marked | None) -> None:
            trainer = _trainer(self._parts, client_id, start)
            _require_penalised(self._parts.experiment, trainer, start)
            if trainer not in self._made:
                self._made[trainer] = StateCheck(trainer.model, device=trainer.device)
            self._made[trainer](start, support)

        return accept


def _require_penalised(experiment: Experiment, trainer: PrivateTrainer, start: State) -> None:
    """Raise unless a penalty leaves weights, within a round, where they may begin one.

    `StateCheck` looks at the start. The penalty's pull on one factor is as strong as the other is large, so a server
    could send a start that is accepted, and from which the penalty makes within a step what is refused.

    Raises:
        StateBeyondBounds: it does not.
    """
    rule, training = pruning(experiment), experiment.training
    # Adam moves an entry by about the rate, whatever pulls at it.
    if rule is None or training.optimizer != "sgd":
        return
    reach = rule.reach(trainer.layout, start, training.learning_rate, experiment.federation.local_steps)
    if not reach <= LARGEST_ENTRY:
        raise StateBeyondBounds(
            f"from the global state the penalty could move weights by {reach:.3g} a step, beyond {LARGEST_ENTRY:g}",
            "if training diverged, lower training.learning_rate or allocation.pruning.penalty",
        )


def make_client(
    parts: Parts, seat: Seat, roster: Roster, checks: StateChecks, *, begun: bool
) -> FederationClient:
    """Return one client with its own lock, ledger, guard and randomness.

    Args:
        parts: with the rows of that client.
        seat: where it keeps its own things.
        roster: everybody's pinned keys.
        checks: refuse states from which its model cannot be trained privately.
        begun: whether its run is known to have begun; one that has not needs room in the ledger for all its rounds.

    Raises:
        BudgetError: there is no such room.
        RunFolderError: another process uses its home.
    """
    experiment, client_id, home = parts.experiment, seat.client_id, seat.home
    with ExitStack() as opened:
        lock = opened.enter_context(home.lock())
        ledger = opened.enter_context(open_ledger(parts, seat))
        if not begun and not ledger.charges(run=seat.run.hex()):
            require_room(parts.plans[client_id], ledger.spent_events(), seat.lifetime_epsilon)
        setup = ClientSetup(
            client_id=client_id,
            experiment=experiment,
            layout=parts.layout,
            method=parts.method_of(client_id),
            initial=parts.initial,
            plan=parts.plans[client_id],
            lifetime_epsilon=seat.lifetime_epsilon,
            run=seat.run,
            identity=home.identity(),
            roster=roster,
            guard=home.guard(scope=seat.run.hex()),
            ledger=ledger,
            home=home,
            lock=lock,
            accept=checks.of(client_id),
            stream=stream_factory(experiment, client_id),
            train=_training(parts, client_id),
            own_model=_own_model(parts, client_id, personal_folder(home, seat.run)),
        )
        opened.pop_all()
    return FederationClient(setup)


def open_ledger(parts: Parts, seat: Seat) -> Ledger:
    """Return the ledger of that client's data; what an audit compares later goes into its reservations.

    Raises:
        LedgerError: it is not whole, or the data were split among clients in another way before.
        DataError: the client holds other rows than those the ledger is about.
        RunFolderError: the ledger of known rows is gone.
    """
    experiment, client_id, dataset_id = parts.experiment, seat.client_id, parts.dataset_id
    if not experiment.data.public:
        seat.home.require_same_rows(dataset_id, parts.row_digests[client_id], seat.ledger)
    return Ledger.open(
        seat.ledger,
        client_id=client_id,
        dataset_id=dataset_id,
        partition_id=parts.partition_id,
        public=experiment.data.public,
        versions={
            **versions(),
            "noise_source": noise_source(experiment),
            "plan_sha256": parts.plans[client_id].digest(),
            MASKS_RECORDED_AS: masks_digest(masks(experiment)),
            **_recorded_rows(parts, client_id),
        },
    )


def _recorded_rows(parts: Parts, client_id: str) -> dict[str, str]:
    """Return what reservations say of which rows a client holds: of private rows and of its own, nothing."""
    if not parts.experiment.data.public or client_id not in parts.row_numbers:
        return {}
    return {RECORDED_AS: rows_digest(parts.dataset_id, parts.row_numbers[client_id])}


def _own_model(parts: Parts, client_id: str, folder: Path) -> TrainedModel | None:
    """Return the client's own model, where arrays stay at home."""
    if not parts.home_roles:
        return None
    trainer = parts.trainers[client_id]
    return TrainedModel(client_id, parts.home_roles, trainer, parts.evaluation, folder, parts.model_reference)


def _training(parts: Parts, client_id: str) -> LocalTraining:
    """Return private training on that client's rows, by its model of the rank that the start has."""
    examples = parts.examples[client_id]

    def train(
        start: State,
        plan: Plan,
        trains: frozenset[Role],
        stream: SecretStream,
        clip_norm: float,
        support: Marked | None,
    ) -> LocalResult:
        settings = replace(step_settings(parts.experiment, plan), clip_norm=clip_norm)
        trainer = _trainer(parts, client_id, start)
        result = trainer.train(
            examples,
            start,
            settings,
            stream=stream,
            trainable=trains,
            support=support,
            penalty=parts.penalty_of(trainer),
        )
        if parts.observe is not None:
            parts.observe(client_id, start, result.state)
        return LocalResult(
            result.state, result.dimension, result.clip_norm, len(examples), result.private_audit
        )

    return train


def _trainer(parts: Parts, client_id: str, start: State) -> PrivateTrainer:
    """Return a client's trainer of the rank that a start state has."""
    rank, _ = start[parts.layout.modules[0].a_name].shape
    return parts.trainer_of(client_id, rank)
