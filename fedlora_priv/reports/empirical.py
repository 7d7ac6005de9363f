"""``fedlora audit --empirical`` and ``--members``: attack a training or a released adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from accounting.empirical import EMPIRICAL_FILE, EmpiricalResult
from fedlora_priv.config import Experiment
from fedlora_priv.errors import AuditFailed, ConfigError


def audit_empirically(
    console: Console,
    file: Path,
    overrides: Sequence[str],
    *,
    canaries: int | None,
    client_id: str | None,
    as_json: bool,
) -> None:
    """Run the audit of an experiment file and print its record.

    Raises:
        AuditFailed: the lower bound is above the claim.
        FedloraError: as `empirical.one_run.audit`.
    """
    experiment = Experiment.load(file, overrides)  # before torch is imported, which takes seconds
    from fedlora_priv.empirical.one_run import CANARIES, audit
    from fedlora_priv.reports.progress import Bars

    with Bars(Console(stderr=True) if as_json else console) as bars:
        result, folder = audit(
            experiment,
            progress=bars,
            canaries=CANARIES if canaries is None else canaries,
            client_id=client_id,
        )
    if as_json:
        console.print_json(json.dumps(result.to_json()))
    else:
        print_result(console, result)
        console.print(f"\n{folder / EMPIRICAL_FILE}", markup=False, highlight=False, soft_wrap=True)
    if result.refutes:
        raise AuditFailed(
            f"an attack shows epsilon > {result.lower_bound:.3f} where {result.trained_epsilon:.3f} is claimed",
            "do not rely on this training",
        )


def audit_membership(
    console: Console, folder: Path, members: Path | None, non_members: Path | None, *, as_json: bool
) -> None:
    """Attack the adapter of a finished run and print how well members are recognised."""
    if members is None or non_members is None:
        raise ConfigError("--members and --non-members go together", "name both files")
    from fedlora_priv.empirical.membership import attack_run

    result = attack_run(folder, members, non_members)
    if as_json:
        console.print_json(json.dumps(result.to_json()))
        return
    console.print(
        f"{result.members} members, {result.non_members} non-members; {result.attacker}", highlight=False
    )
    console.print(f"AUC {result.auc:.3f}   {result.auc_low:.3f} to {result.auc_high:.3f}", highlight=False)
    for rate in result.rates:
        found, at = rate.true_positive_rate, rate.false_positive_rate
        console.print(f"TPR {found:.3f} at FPR {at:g}   {rate.low:.3f} to {rate.high:.3f}", highlight=False)
    console.print(f"Intervals at {result.confidence:.0%} confidence. A weak attack's failure proves nothing.")


def print_result(console: Console, result: EmpiricalResult) -> None:
    """Print a record in a few lines."""
    lines = (
        ("claim", f"ε ≤ {result.trained_epsilon:.3f} at δ = {result.delta:g} for {result.client_id}"),
        (
            "lower bound",
            f"ε > {result.lower_bound:.3f} with {result.confidence:.0%} confidence ({result.method})",
        ),
        (
            "attack",
            f"{result.attack}: {result.correct} of {result.guesses} guesses right, {result.canaries} canaries",
        ),
        ("attacker", result.attacker),
        ("assumption", f"{result.assumption}; corrected for {result.tests} tests"),
    )
    for name, text in lines:
        console.print(f"[bold]{name:<12}[/]{text}", highlight=False)
    verdict = (
        "refutes the claim" if result.refutes else "does not contradict the claim; it proves nothing more"
    )
    console.print(f"The bound {verdict}.", highlight=False)
