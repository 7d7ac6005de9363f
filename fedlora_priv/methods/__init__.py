"""Federated LoRA methods, one file each. `METHODS` lists those that a federation can run, by the name in its file.

The others have their mathematics here, as whole as that of these, but need what `fedlora_priv.federation` does not do
yet: a second exchange, another method by round, base weights that change, arrays that stay at home. They are imported
from their own files; docs/methods.md has them all. Nothing is listed here before a federation can run it.

To add a method: write one file whose docstring gives its source, its equations and its contract, and add one
line here. Everything that runs a method goes through `get`.
"""

from __future__ import annotations

from difflib import get_close_matches

from fedlora_priv.methods.base import Contract, Layout, LoraModule, Method, Role, Shared, State, Sums
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.fra import FRALoRA

METHODS: dict[str, Method] = {method.name: method for method in (FedIT(), FFALoRA(), FRALoRA())}

__all__ = ["METHODS", "Contract", "Layout", "LoraModule", "Method", "Role", "Shared", "State", "Sums", "get"]


def get(name: str) -> Method:
    """Return the method of that name.

    Raises:
        KeyError: there is none; the message names the nearest and lists all.
    """
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise KeyError(f"no method {name!r}{hint}; there are: {', '.join(METHODS)}")
