"""Federated LoRA methods, one file each. `METHODS` lists them by the name that an experiment file gives them.

To add a method: write one file whose docstring gives its source, its equations and its contract, and add one
line to `registry`. What an experiment runs comes from `for_experiment`.
"""

from __future__ import annotations

from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.certificate import Certificate
from fedlora_priv.methods.layout import Layout, LoraModule, Role, State
from fedlora_priv.methods.registry import METHODS, for_experiment, get, server_optimizer_for
from fedlora_priv.methods.schedule import phases

__all__ = [
    "METHODS",
    "Certificate",
    "Contract",
    "Layout",
    "LoraModule",
    "Method",
    "Role",
    "Shared",
    "State",
    "Sums",
    "for_experiment",
    "get",
    "phases",
    "server_optimizer_for",
]
