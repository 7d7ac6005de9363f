"""The sixteen checks of an audit, one function each, in the order of their numbers.

A check collects problems (each makes it FAIL), doubts (without problems: UNVERIFIABLE) and facts. It must not
raise on anything that the report's schema lets through. To change what a check asks, change its function; what an
auditor is told to do about the answer stands here.

    anchored.py    1                whole and signed
    derived.py     2                epsilon
    stated.py      3, 5, 11, 13, 16 what the report states
    charged.py     4                every release reserved (exchanged.py: the exchanges of a round, parts.py: who trains
                                    what, pruned.py: ranks that clients prune)
    observed.py    6, 7             what steps really did, by private audit files (plausible.py: the tests,
                                    counted.py: the counts of adaptive clipping)
    effective.py   8, 9             whose noise counts, and against how much
    disjoint.py    10               rows
    chosen.py      12, 14           tuning, start weights, clip norms
    attacked.py    15               an attack's lower bound
"""

from __future__ import annotations

from ..case import Check
from .anchored import chain_whole_and_anchored
from .attacked import attack_contradicts
from .charged import everything_charged
from .chosen import adaptive_clipping_charged, tuning_charged
from .derived import epsilon_rederived
from .disjoint import data_disjoint
from .effective import noise_effective, sensitivity_actual
from .observed import batch_sizes_plausible, clipping_and_noise_applied
from .stated import (
    delta_small_enough,
    outputs_covered,
    randomness_disclosed,
    sampler_matches,
    versions_recorded,
)

__all__ = ["CHECKS"]

_PRIVATE_FILE = (
    "give this client's own auditor its private audit file (--private), and keep the answer private"
)

CHECKS = (
    Check(
        1,
        "hash chain whole and anchored, rounds complete",
        chain_whole_and_anchored,
        if_fail="get the ledgers and anchors again from the clients themselves",
        to_verify="pin the clients' keys with a roster from outside the server, and get missing ledgers and anchors "
        "from the clients themselves",
    ),
    Check(
        2,
        "epsilon re-derived by two methods",
        epsilon_rederived,
        if_fail="rely on the re-derived epsilon only",
        to_verify="get the missing ledgers from the clients",
    ),
    Check(
        3,
        "delta below 1/n",
        delta_small_enough,
        if_fail="ask for the claim at a smaller delta",
        to_verify="ask for the claim at a smaller delta",
    ),
    Check(
        4,
        "every release reserved, steps as planned",
        everything_charged,
        if_fail="ask the client what it released, and count that as unprotected",
        to_verify="get the missing ledgers from the clients",
    ),
    Check(
        5,
        "sampler and adjacency as claimed",
        sampler_matches,
        if_fail="ask how batches were drawn, and have the claim priced for that",
        to_verify="get whole ledgers",
    ),
    Check(
        6,
        "batch sizes plausible",
        batch_sizes_plausible,
        if_fail="take the claim without amplification by sampling, and have the client's sampler looked at",
        to_verify=_PRIVATE_FILE,
    ),
    Check(
        7,
        "clip norm and noise really applied",
        clipping_and_noise_applied,
        if_fail="do not rely on this client's epsilon, and have its trainer looked at",
        to_verify=_PRIVATE_FILE,
    ),
    Check(
        8,
        "effective noise from survivors minus colluders",
        noise_effective,
        if_fail="have the claim priced for the survivors there were",
        to_verify="get the missing ledgers from the clients",
    ),
    Check(
        9,
        "sensitivity from padded dimension and actual scale",
        sensitivity_actual,
        if_fail="have the claim priced for the dimension and scale of the sums",
        to_verify="get the missing ledgers, and a report that states dimension, scale and modulus of its sums",
    ),
    Check(
        10,
        "clients' data disjoint, contributions bounded",
        data_disjoint,
        if_fail="compose the events of all the clients that may hold a row",
        to_verify="for public data: the lists of rows (partition.json); for private data: take a client's own claim "
        "for a row that others cannot hold, and the composed one for a row that they may",
    ),
    Check(
        11,
        "every output covered",
        outputs_covered,
        if_fail="treat the unlisted output as a leak",
        to_verify="get whole ledgers",
    ),
    Check(
        12,
        "tuning and warm starts charged",
        tuning_charged,
        if_fail="get the ledgers of the run that the weights came from, and compose",
        to_verify="ask how hyperparameters and start weights were chosen; count choices by these rows as runs",
    ),
    Check(
        13,
        "noise and sampling source disclosed",
        randomness_disclosed,
        if_fail="do not use this model on private data",
        to_verify="ask for the source of the randomness and whole ledgers that record it",
    ),
    Check(
        14,
        "adaptive-clip counts charged",
        adaptive_clipping_charged,
        if_fail="have the counts charged, or the clip norms explained",
        to_verify="get the missing ledgers from the clients",
    ),
    Check(
        15,
        "empirical lower bound not above the claim",
        attack_contradicts,
        if_fail="do not rely on the claim: look for the defect in the training",
        to_verify="run an attack with canaries (fedlora audit --empirical); a low bound is no proof",
    ),
    Check(
        16,
        "versions and code recorded",
        versions_recorded,
        if_fail="run again with recorded versions",
        to_verify="run again with recorded versions",
    ),
)
