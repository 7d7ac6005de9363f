"""Which layers, at which rank, each client trains: clients that are not equal.

`base` has the interface; a strategy is a subclass of `Allocator`:

| strategy | class | what it deals | in which round |
|---|---|---|---|
| GD-HLA | `hello.Geometric` | layers by shape | the same in all |
| RGD-HLA | `hello.RandomGeometric` | layers drawn by shape | anew in each |
| FedRA | `hello.FedRA` | layers drawn, all alike | anew in each |
| FIM-HLA | `fisher.FisherLayers` | layers drawn by score | anew in each |
| Fed-piLot | `pilot.FedPilot` | layers of the largest score that fit | as scores change |
| HetLoRA, FediLoRA, FlexLoRA | `by_rank.RankByCapability` | all layers, unequal ranks | as clients prune |

These are the mathematics of it. `fedlora_priv.federation.allocating` deals out by them what an experiment asks for.
"""

from __future__ import annotations

from fedlora_priv.allocation.base import Allocation, Allocator, Part, Public
from fedlora_priv.allocation.by_rank import RankByCapability
from fedlora_priv.allocation.cost import Cost, CostModel, Measurement, Profile
from fedlora_priv.allocation.cover import holders_needed
from fedlora_priv.allocation.errors import AllocationError, NothingFits, PrivateScores, ThinLayer
from fedlora_priv.allocation.fisher import FisherLayers
from fedlora_priv.allocation.groups import coordinate_groups, vector_form
from fedlora_priv.allocation.hello import FedRA, Geometric, RandomGeometric
from fedlora_priv.allocation.pilot import FedPilot
from fedlora_priv.allocation.pruning import RankPruning
from fedlora_priv.allocation.scores import LayerScores

__all__ = [
    "Allocation", "AllocationError", "Allocator", "Cost", "CostModel", "FedPilot", "FedRA", "FisherLayers",
    "Geometric", "LayerScores", "Measurement", "NothingFits", "Part", "PrivateScores", "Profile", "Public",
    "RandomGeometric", "RankByCapability", "RankPruning", "ThinLayer", "coordinate_groups", "holders_needed",
    "vector_form",
]  # fmt: skip
