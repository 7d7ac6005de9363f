"""What a round's sums say of its result: how far it is from the mean of the clients' products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Certificate:
    """How far a round's result is from the mean of the clients' products, by module; public.

    Args:
        sizes: ‖ΔW‖_F, the mean of the products, by module name.
        errors: ‖ΔW − what the state now holds‖_F, by module name.
        columns: of how many held-out columns a module's figures are estimates; None if they are exact.
    """

    sizes: Mapping[str, float]
    errors: Mapping[str, float]
    columns: int | None

    @property
    def error(self) -> float:
        """The error of all modules together, relative to the size of all."""
        size = float(np.linalg.norm(list(self.sizes.values())))
        return float(np.linalg.norm(list(self.errors.values()))) / size if size else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as the record of a round and the report have it."""
        modules = {
            name: {"size": float(size), "error": float(self.errors[name])}
            for name, size in self.sizes.items()
        }
        return {"error": self.error, "columns": self.columns, "modules": modules}
