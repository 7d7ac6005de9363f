"""From an experiment file to its parts: model, data, plans. The clients of a run are made of them in `seats`.

Everything that needs torch in a local federation is made here: one base model serves all clients of this
process, whose adapter states are swapped in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accounting.planning import Plan
from fedlora_priv.adapters import read_state, write_state
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.allocation.fisher_scores import fisher_scores
from fedlora_priv.config import Experiment
from fedlora_priv.data.sources import public_name
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation import contracts
from fedlora_priv.federation.allocating import (
    all_rounds,
    allocation,
    client_method,
    presumed,
    pruning,
    require_allocations,
)
from fedlora_priv.federation.environment import environment, step_settings
from fedlora_priv.federation.holdings import Holdings, content_digest, everybodys
from fedlora_priv.federation.learner import Say, load_learner
from fedlora_priv.federation.personal import home_roles
from fedlora_priv.federation.plans import plan_clients
from fedlora_priv.federation.rescoring import Rescoring, scored_rows
from fedlora_priv.federation.server import ServerState
from fedlora_priv.federation.task import begin
from fedlora_priv.federation.trained import Marked, extremes, made_up_support, marked
from fedlora_priv.methods import Contract, Layout, Method, Role, State, for_experiment, phases
from fedlora_priv.methods.errors import AssumptionError
from fedlora_priv.modeling import add_squares, with_rank
from fedlora_priv.precision import resolve_device
from fedlora_priv.training import PrivateTrainer, Rehearsal, StepSettings, TokenisedExamples, rehearse
from fedlora_priv.training.made_up import made_up_residual
from fedlora_priv.training.penalty import Penalty

Observe = Callable[[str, State, State], None]
"""(client_id, start, noised state): what whoever sees all that ε_k covers sees of a finished training."""


@dataclass(frozen=True)
class Parts:
    """What an experiment is made of, before anything is run.

    Args:
        method, trainer, layout, initial: the federation's, as the server has them; `initial` is as loaded.
        trainers: each client's own, of its rank in the first round; clients of one rank share one, and all share the
            base weights.
        model_reference: what the adapter's card tells a reader to load the adapter onto.
        credit: licences and authors of data and model, as far as they are known.
        plans: every client's, from public numbers.
        examples, row_digests: of the clients whose rows this process holds, tokenised, and a digest of them as they
            are. Private.
        row_numbers: every client's positions in the training data, where that was split by the public seed.
        partition_id: the public name of the split.
        evaluation: public held-out rows, or None where nothing may be evaluated.
        observe: told of every training, after it was noised; an empirical audit attacks what it is told.
        pruned: by rank, the trainers of clients that have pruned theirs, as far as one was needed.
    """

    experiment: Experiment
    method: Method
    trainer: PrivateTrainer
    trainers: Mapping[str, PrivateTrainer]
    layout: Layout
    initial: State
    plans: dict[str, Plan]
    examples: dict[str, TokenisedExamples]
    row_numbers: dict[str, tuple[int, ...]] = field(repr=False)
    row_digests: dict[str, bytes] = field(repr=False)
    partition_id: str
    evaluation: TokenisedExamples | None
    label_names: list[str]
    model_reference: str
    credit: str
    observe: Observe | None = None
    pruned: dict[int, PrivateTrainer] = field(default_factory=dict)

    def trainer_of(self, client_id: str, rank: int) -> PrivateTrainer:
        """Return a client's trainer at a rank: its own, or a smaller one on the same base weights, made at need."""
        own = self.trainers[client_id]
        if rank == own.layout.rank:
            return own
        if rank not in self.pruned:
            self.pruned[rank] = PrivateTrainer(
                with_rank(self.trainer.model, rank), device=self.trainer.device
            )
        return self.pruned[rank]

    def penalty_of(self, trainer: PrivateTrainer) -> Penalty | None:
        """Return the penalty that one of these models is trained with; None where there is none."""
        rule = pruning(self.experiment)
        return None if rule is None else partial(rule.gradient, trainer.layout)

    @property
    def dataset_id(self) -> str:
        """The name that the clients' ledgers know the data by."""
        return self.experiment.data.dataset_id or public_name(self.experiment.data.source)

    @property
    def home_roles(self) -> frozenset[Role]:
        """The roles of arrays that stay at each client."""
        return home_roles(self.method, self.layout)

    def method_of(self, client_id: str) -> Method:
        """Return the method as a client has it, which knows of its own rank.

        Raises:
            MethodError: a client of that rank cannot take part.
        """
        own = self.trainers[client_id].layout
        self.method.accept(self.layout, own)
        return client_method(self.method, self.layout, own)

    @property
    def foreseen(self) -> dict[int, Findings]:
        """The findings of every round as they would be if nothing more were found after those before the first."""
        return all_rounds(self.experiment, self.first_findings)

    @cached_property
    def first_findings(self) -> Findings:
        """What is found before the first round.

        Raises:
            ConfigError: there are no public rows to find it on.
            AllocationError: no allocation follows from it.
        """
        rescoring = self.rescoring()
        if rescoring is None:
            return Findings()
        begun = begin(self.method, self.layout, self.initial, self.experiment)
        return rescoring.before(ServerState(0, begun)).findings

    def rescoring(self) -> Rescoring | None:
        """Return what scores layers at a global state, where a server does; None where it does not.

        Raises:
            ConfigError: there are no public rows to score on.
        """
        asked, model = self.experiment.allocation, self.trainer.model
        if asked.rescore_every is None:
            return None
        if self.evaluation is None:
            raise ConfigError(
                "the server is to score layers on public held-out rows (allocation.rescore_every), and has none",
                "name some: data.evaluation_file, or evaluation in server.toml where parties bring their own rows",
            )
        numbers = scored_rows(len(self.evaluation), self.experiment.experiment.seed)
        rows, of = self.evaluation.subset(numbers), asked.scores_of or ""

        def measure(state: State) -> tuple[float, ...]:
            write_state(model, state)
            return fisher_scores(model, rows, of).values

        return Rescoring(self.experiment, self.layout, measure)

    @cached_property
    def stated_method(self) -> dict[str, Any]:
        """What the method lets leave in every round, as far as that is known before the first."""
        return self.stated(self.foreseen)

    def stated(self, found: Mapping[int, Findings]) -> dict[str, Any]:
        """Return what the method lets leave in the rounds of `found`, as a report states it."""
        return contracts.stated(self.experiment, self.method, self.layout, found)

    def rehearse(self) -> Rehearsal:
        """Return what a rehearsal of the clients' steps saw, with the settings of the one with the least noise.

        Every model and every part of it that some round trains is rehearsed (of clients that train some layers, the
        least and the most that one trains; of those that may prune their rank, the first and the last they may have);
        returned is what was seen of the first.

        Raises:
            FedloraError: training would not be private, or not be training; nothing has been spent.
        """
        plan = min(self.plans.values(), key=lambda plan: plan.noise_multiplier)
        settings = step_settings(self.experiment, plan)
        phases = _phases(self.experiment, self.method)
        trained = {
            contract.trains: contract for contract in (phase.contract(self.layout) for phase in phases)
        }
        models = dict.fromkeys([*self.trainers.values(), *self._most_pruned()])
        seen, *_ = [
            self._rehearsed(model, settings, contract.trains, support)
            for model in models
            for contract in trained.values()
            for support in self._supports(model, contract)
        ]
        return seen

    def _most_pruned(self) -> list[PrivateTrainer]:
        """Return each client's trainer at the last rank that it may prune itself to; none where nobody prunes."""
        rule = pruning(self.experiment)
        if rule is None:
            return []
        return [
            self.trainer_of(client_id, rule.ranks(own.layout.rank)[-1])
            for client_id, own in self.trainers.items()
        ]

    def _supports(self, trainer: PrivateTrainer, contract: Contract) -> list[Marked | None]:
        """Return what clients with that model train of a contract's arrays, as far as it is to be rehearsed."""
        clients = [client_id for client_id, theirs in self.trainers.items() if theirs is trainer]
        parts = extremes(self.experiment, self.layout, clients)
        if not parts:
            return [made_up_support(self.experiment, contract)]
        own = trainer.layout
        return [marked(self.method.shapes(own), own, contract.trains, held) for held in parts]

    def _rehearsed(
        self,
        trainer: PrivateTrainer,
        settings: StepSettings,
        trains: frozenset[Role],
        support: Marked | None,
    ) -> Rehearsal:
        """Rehearse one model, with a residual beside its base weights if the method will put one there."""
        start, penalty = read_state(trainer.model), self.penalty_of(trainer)
        residual = made_up_residual(trainer.layout) if self.method.changes_base else {}
        write_state(trainer.model, start | residual)
        try:
            return rehearse(trainer, settings, trainable=trains, support=support, penalty=penalty)
        finally:
            write_state(trainer.model, start)

    def evaluator(self) -> Callable[[State], float] | None:
        """Return what gives a state's accuracy or perplexity on the public held-out rows, if there are any."""
        rows = self.evaluation
        return None if rows is None else lambda state: self.trainer.evaluate(rows, state).value

    def environment(self) -> dict[str, str]:
        """Return what the training runs on and how it clips, in words."""
        plan = next(iter(self.plans.values()))
        settings = step_settings(self.experiment, plan)
        return environment(self.experiment, self.trainer, settings, self.method.contract(self.layout).trains)


def assemble(experiment: Experiment, say: Say) -> Parts:
    """Return the parts of an experiment: data fetched and split, plans calibrated, model loaded.

    Raises:
        FedloraError: the data, the model or the plan cannot be had; nothing has been spent.
    """
    return build(experiment, everybodys(experiment, say), say)


def build(experiment: Experiment, holdings: Holdings, say: Say, model: Path | None = None) -> Parts:
    """Return the parts of an experiment around the rows that this process holds.

    Args:
        experiment: what all parties have agreed on.
        holdings: the rows in this process, and what is public of all rows.
        say: told what happens.
        model: folder of the model on this machine, if not where the experiment says.

    Raises:
        FedloraError: the model or the plan cannot be had; nothing has been spent.
    """
    say("calibrating the noise")
    plans = plan_clients(experiment, holdings.sizes)
    method = for_experiment(experiment)
    learner = load_learner(experiment, holdings.label_names, say, model)
    trainer = make_trainer(experiment, method, learner.model)
    require_allocations(experiment, trainer.layout)
    return Parts(
        experiment=experiment,
        method=method,
        trainer=trainer,
        trainers=trainers_by_client(experiment, trainer),
        layout=trainer.layout,
        initial=read_state(learner.model),
        plans=plans,
        examples={client_id: learner.examples(held) for client_id, held in holdings.rows.items()},
        row_numbers=dict(holdings.row_numbers),
        row_digests={client_id: content_digest(held) for client_id, held in holdings.rows.items()},
        partition_id=holdings.partition_id,
        evaluation=None if holdings.evaluation is None else learner.examples(holdings.evaluation),
        label_names=holdings.label_names,
        model_reference=learner.origin.reference,
        credit=f"{learner.origin.credit}; {holdings.credit}",
    )


def _phases(experiment: Experiment, method: Method) -> list[Method]:
    """Return the methods that the rounds of an experiment have, each once."""
    return [phase for phase, _ in phases(method, experiment.federation.rounds)]


def make_trainer(experiment: Experiment, method: Method, model: Any) -> PrivateTrainer:
    """Return the trainer of the federation's model, which gets what the method needs beside A and B.

    Raises:
        ConfigError: the method does not work with this model's shapes and ranks.
    """
    trainer = PrivateTrainer(model, device=resolve_device(experiment.training.device))
    for phase in _phases(experiment, method):
        try:
            phase.require(trainer.layout)
        except AssumptionError as error:
            raise ConfigError(str(error)) from None
    if any("R" in phase.contract(trainer.layout).trains for phase in _phases(experiment, method)):
        add_squares(model)
    return trainer


def trainers_by_client(experiment: Experiment, trainer: PrivateTrainer) -> dict[str, PrivateTrainer]:
    """Return each client's trainer: the federation's, or one of the client's own rank on the same base weights."""
    made = {experiment.lora.rank: trainer}
    ranks = _ranks(experiment, trainer.layout)
    for rank in ranks.values():
        if rank not in made:
            made[rank] = PrivateTrainer(with_rank(trainer.model, rank), device=trainer.device)
    return {client_id: made[rank] for client_id, rank in ranks.items()}


def _ranks(experiment: Experiment, layout: Layout) -> dict[str, int]:
    """Return each client's rank in the first round."""
    dealt, lora = allocation(experiment, layout, 1, presumed(experiment, layout)), experiment.lora
    if dealt is not None:
        return {client_id: dealt.parts[client_id].rank for client_id in experiment.client_ids}
    return dict(
        zip(experiment.client_ids, lora.ranks or (lora.rank,) * len(experiment.client_ids), strict=True)
    )
