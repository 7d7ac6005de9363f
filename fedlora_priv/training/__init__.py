"""DP-SGD on LoRA: from a client's examples and a start state to a noised state, and nothing else.

::

    examples ──sampling──► a secret Poisson batch ──batching──► microbatches of similar length
        ──clipping──► a sum of clipped per-example gradients ──dpsgd──► noised, divided ──► the next state

Everything random comes from one `protocols.prg.SecretStream`; no seed of a configuration reaches it. What
leaves `PrivateTrainer.train` is the noised state and the number of steps; batch sizes and clip counts are in
a private audit record that stays with the client.
"""

from fedlora_priv.training.examples import TokenisedExamples, tokenise
from fedlora_priv.training.preflight import PreflightReport, coupling, coupling_tolerance, preflight
from fedlora_priv.training.rehearsal import Rehearsal, rehearse
from fedlora_priv.training.settings import StepSettings
from fedlora_priv.training.trainer import PrivateTrainer, TrainResult

__all__ = [
    "PreflightReport",
    "PrivateTrainer",
    "Rehearsal",
    "StepSettings",
    "TokenisedExamples",
    "TrainResult",
    "coupling",
    "coupling_tolerance",
    "preflight",
    "rehearse",
    "tokenise",
]
