"""What a run would cost and promise, before anything is spent: ``fedlora plan``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accounting.gdp import gaussian_mu, tpr_at_fpr
from accounting.planning import Plan
from accounting.pricing import epsilon
from fedlora_priv.communication.tally import tally
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Traffic
from fedlora_priv.federation.allocating import spare
from fedlora_priv.federation.course import Leg, courses
from fedlora_priv.federation.foretold import foretold
from fedlora_priv.federation.learner import Say
from fedlora_priv.federation.plans import whole_run
from fedlora_priv.federation.session import protection
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.federation.standings import refusals
from fedlora_priv.federation.tiers import asked_of_clients
from protocols.packing import packed_size
from protocols.quantise import Quantiser

SHOWN_FPRS = (0.001, 0.01)


def preview(experiment: Experiment, say: Say = lambda line: None) -> dict[str, Any]:
    """Return noise, steps, guarantee and bytes of a run as JSON values; nothing is reserved or trained.

    μ-GDP and the attackers' true positive rates are those of the client with the largest ε, retries included.
    """
    parts = assemble(experiment, say)
    privacy = experiment.privacy
    clients, costs = [], {}
    for client_plan in parts.plans.values():
        whole = whole_run(client_plan)
        worst = replace(whole, steps=client_plan.planned_steps)
        costs[worst] = epsilon([worst], privacy.delta)
        clients.append(
            {
                **client_plan.to_json(),
                "epsilon": epsilon([whole], privacy.delta),
                "epsilon_with_retries": costs[worst],
            }
        )
    dearest = max(costs, key=lambda event: costs[event])
    return {
        "experiment": experiment.experiment.name,
        "method": parts.stated_method,
        "ranks": {client_id: trainer.layout.modules[0].rank for client_id, trainer in parts.trainers.items()},
        "rounds": experiment.federation.rounds,
        "allocation": asked_of_clients(experiment, parts.layout, parts.method, parts.foreseen),
        "guarantee": {
            "unit": privacy.unit,
            "adjacency": "add-remove",
            "mode": privacy.mode,
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "simulation": experiment.data.public,
            "mu_gdp": gaussian_mu([dearest]),
            "tpr_at_fpr": {str(rate): tpr_at_fpr([dearest], rate) for rate in SHOWN_FPRS},
        },
        "clients": clients,
        "refused": refusals(experiment, parts.plans),
        "bytes": planned_bytes(parts),
        "rows": _rows(parts),
        "environment": parts.environment(),
        "secure_aggregation": protection(
            experiment, spare(experiment, parts.layout, parts.foreseen, foreseen=True)
        ),
    }


def _rows(parts: Parts) -> dict[str, int]:
    """Return the longest input in tokens and, only of public data, how many rows of how many reach it."""
    longest = parts.experiment.model.max_length
    if not parts.experiment.data.public:
        return {"longest_input": longest}
    lengths = [int(length) for examples in parts.examples.values() for length in examples.lengths()]
    reach = sum(length >= longest for length in lengths)
    return {"longest_input": longest, "of": len(lengths), "as_long_or_longer": reach}


def planned_bytes(parts: Parts) -> dict[str, Any]:
    """Return one client's bytes, by contract and exchange: packed values, beside plain float32 LoRA.

    `wire` is what all messages will take on the wire, kind by kind, as the report will count it (`foretold`); `most` is
    what no client exceeds, whoever masks with whom.
    """
    experiment, dense, rounds = parts.experiment, parts.layout.dense_fp32_bytes, foretold(parts)
    bits = Quantiser(1.0, experiment.communication.value_bits, experiment.federation.clients).modulus_bits
    contracts: list[dict[str, Any]] = [
        {"rounds": numbers, "exchanges": _exchanges(legs, bits, experiment.federation.clients)}
        for _, legs, numbers in courses(experiment, parts.method, parts.layout, parts.foreseen)
    ]
    run = sum(len(c["rounds"]) * sum(e["bytes"] for e in c["exchanges"]) for c in contracts)
    return {
        "modulus_bits": bits,
        "dense_lora_fp32_per_client_and_round": dense,
        "contracts": contracts,
        "values_per_client": run,
        "values_over_dense_lora": run / (dense * experiment.federation.rounds),
        "wire": tally(
            [Traffic(told.drawn).by_client() for told in rounds],
            longest=[Traffic(told.longest).by_client() for told in rounds],
        ),
    }


def _exchanges(legs: tuple[Leg, ...], quantiser_bits: int, clients: int) -> list[dict[str, Any]]:
    """Return what travels in each exchange of a round, the last one even where it is only asked for by need."""
    return [
        {
            "carries": leg.carries,
            "coordinates": leg.dimension,
            "coordinates_that_travel": leg.coordinates,
            "clients": list(leg.senders) if leg.senders is not None else None,
            "bits": (bits := clients.bit_length() + 1 if leg.carries == "votes" else quantiser_bits),
            "bytes": packed_size(leg.coordinates, bits),
        }
        for leg in legs
    ]


def noisiest(experiment: Experiment, say: Say = lambda line: None) -> Plan:
    """Return the plan of the client that adds the most noise, which is whom alternatives matter to most."""
    return max(assemble(experiment, say).plans.values(), key=lambda plan: plan.noise_multiplier)
