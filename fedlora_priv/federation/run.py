"""A whole run in this process: ``fedlora run``.

Begin or resume the run folder, make the parts, rehearse private steps with this very model on this machine, run
the rounds, ask the clients for their statements, write adapter and report. The report is written last: it is
what makes a run finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedlora_priv.adapter_folder import save_adapter
from fedlora_priv.adapters import write_state
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Engine, Metered, Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.errors import ConfigError, FederationError, FedloraError
from fedlora_priv.federation import personal, record
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.loop import Loop, Progress, ended_early
from fedlora_priv.federation.own_model import missing
from fedlora_priv.federation.rounds import RoundConductor
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.seats import make_clients
from fedlora_priv.federation.server import FederationServer, ServerState
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.methods import server_optimizer_for
from fedlora_priv.reports.summary import environment_text
from protocols.secagg.identity import Roster

Amend = Callable[[Parts, RunFolder], Parts]
"""Changes the parts of a run before its clients are made, as an empirical audit does to insert canaries."""


class RunProgress(Progress, Protocol):
    """What a caller may show of a local run."""

    def answered(self, client_id: str, step: Step) -> None:
        """A client has answered."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its report and metrics, and what is wrong with how it ended, if anything."""

    folder: Path
    report: dict[str, Any]
    metrics: list[dict[str, Any]]
    problem: FedloraError | None


def run(
    experiment: Experiment, *, progress: RunProgress, again: bool = False, amend: Amend | None = None
) -> Outcome:
    """Return the outcome of an experiment, begun or resumed in its run folder.

    Args:
        experiment: what to run.
        progress: told what happens.
        again: set a finished run of the same experiment aside and run once more.
        amend: changes the parts before the clients are made.

    Raises:
        FedloraError: nothing that was stored is lost; the same command resumes.
    """
    _require_here(experiment, amend)
    folder = RunFolder.open(experiment, again=again)
    try:
        return _run(experiment, folder, progress, amend)
    except BaseException:
        if folder.fresh:
            folder.discard()
        raise
    finally:
        folder.close()


def _require_here(experiment: Experiment, amend: Amend | None) -> None:
    """Raise ConfigError where another engine would do something else than what was asked for."""
    kind = experiment.engine.kind
    if kind == "flower":
        raise ConfigError(
            "engine.kind = 'flower' runs across machines, each party on its own",
            "write their folders with 'fedlora deploy', or take 'flower-simulation' or 'local' for this machine",
        )
    if kind != "local" and amend is not None:
        raise ConfigError(
            f"canaries are inserted in this process, and the clients of {kind!r} are in others",
            "set engine.kind = 'local'",
        )


def _run(experiment: Experiment, folder: RunFolder, progress: RunProgress, amend: Amend | None) -> Outcome:
    """Run in a folder that is open."""
    parts = assemble(experiment, progress.say)
    if amend is not None:
        parts = amend(parts, folder)
    progress.say(environment_text(parts.environment()))
    progress.say("rehearsing a step on made-up data")
    for line in parts.rehearse().lines():
        progress.say(f"  {line}")
    if experiment.engine.kind == "flower-simulation":
        from fedlora_priv.engines.flower.simulation import run_simulated

        return run_simulated(parts, folder, progress)
    clients, roster = make_clients(parts, folder)
    try:
        engine = LocalEngine(clients, experiment.simulate.dropouts, progress.answered)
        return conduct(parts, folder, roster, engine, progress)
    finally:
        for client in clients:
            client.close()


def conduct(
    parts: Parts, folder: RunFolder, roster: Roster, engine: Engine, progress: RunProgress
) -> Outcome:
    """Return the outcome of a run over an engine, from wherever an earlier process had got to: the server's part.

    Args:
        parts: of the experiment; whose rows this process holds makes no difference here.
        folder: the run folder, open.
        roster: the clients' pinned keys.
        engine: reaches the clients.
        progress: told what happens.

    Raises:
        FedloraError: nothing that was stored is lost.
    """
    experiment = parts.experiment
    roster.save(folder.path / "roster.json")
    metered = Metered(engine)
    noise = max(plan.noise_multiplier for plan in parts.plans.values())
    optimizer = server_optimizer_for(experiment)
    server = FederationServer(experiment, parts.layout, parts.method, parts.initial, noise, optimizer)
    loop = Loop(
        experiment=experiment,
        server=server,
        conductor=RoundConductor(experiment, server.begin().state, roster, folder.run, metered),
        engine=metered,
        plans=parts.plans,
        folder=folder.path,
        evaluate=parts.evaluator(),
        progress=progress,
        personal=_personal(parts, metered),
        rescoring=parts.rescoring(),
    )
    state, history = loop.run()
    if parts.home_roles:
        personal.ask(metered, parts.layout, parts.home_roles, state.state, state.round, keep=True)
    progress.say("collecting the clients' ledgers and writing the report")
    statements = record.collect(metered, roster, state.round)
    report = record.build(parts, folder, history, statements, metered.take())
    _save_adapter(parts, state, folder, report)
    record.write(folder.path, report, history.metrics, statements, record.partition(parts))
    return Outcome(
        folder.path, report, history.metrics, ended_early(history.records) or _without_sum(history)
    )


def _personal(parts: Parts, engine: Engine) -> Callable[[ServerState], dict[str, float]] | None:
    """Return what asks the clients how good their own models are, where they have any that may be measured."""
    if not parts.home_roles or parts.evaluation is None:
        return None
    return lambda state: personal.ask(engine, parts.layout, parts.home_roles, state.state, state.round)


def _save_adapter(parts: Parts, state: ServerState, folder: RunFolder, report: dict[str, Any]) -> None:
    """Write the PEFT folder of the final state."""
    write_state(parts.trainer.model, state.state)
    save_adapter(
        parts.trainer.model,
        folder.path / "adapter",
        base_model=parts.model_reference,
        notes=record.adapter_notes(report, parts.label_names) + missing(parts.home_roles),
    )


def _without_sum(history: History) -> FedloraError | None:
    """Return an error if every round was lost: the adapter is then the one that training began with."""
    if any(record.survivors and record.aborted is None for record in history.records):
        return None
    return FederationError(
        "no round gave a sum, so the adapter is untrained", "see who is lost in report.html"
    )
