"""What a machine can hold of a model, in words, and what to declare for it: for ``fedlora doctor``."""

from __future__ import annotations

from fedlora_priv.allocation.cost import CostModel, Measurement, Profile
from fedlora_priv.allocation.errors import NothingFits
from fedlora_priv.allocation.measuring import Measured

GB = 1e9


def lines(measured: Measured, usable: float) -> list[str]:
    """Return what was measured, what each number of layers needs, and what fits into the usable bytes."""
    cost = measured.cost
    parts = "; ".join(_part_text(cost, part) for part in measured.parts)
    return [
        f"a step of {measured.rows} rows of {measured.length} tokens at rank {cost.rank}: {parts}",
        f"so layers need, in GB, wherever they are (or at the top): {_needs(cost)}",
        fitting(cost, usable),
    ]


def declaration(cost: CostModel, usable: float) -> str:
    """Return the lines for an experiment file that say what was measured: of one machine, which others compare with.

    >>> from fedlora_priv.allocation import Cost
    >>> from fedlora_priv.methods.layout import Layout, LoraModule
    >>> module = LoraModule("layer.0.query", 4, 4, 8, 1.0)
    >>> cost = CostModel.declared(Layout((module,), {}), memory=Cost(1e9, 2e8), step=Cost(0.5))
    >>> print(declaration(cost, 2e9))
    [allocation.cost]
    memory_fixed_bytes = 1e+09
    memory_layer_bytes = 2e+08
    step_fixed_s = 0.5
    <BLANKLINE>
    [[allocation.tiers]]
    clients = ["client-1"]  # whoever has such a machine
    memory_bytes = 2e+09  # it is public: declare less, or max_layers alone
    """
    named = {"memory_{}_bytes": cost.memory, "step_{}_s": cost.step}
    numbers = [
        f"{name.format(of)} = {value:.4g}"
        for name, costs in named.items()
        for of, value in (("fixed", costs.fixed), ("layer", costs.crossed), ("coordinate", costs.trained))
        if value > 0
    ]
    tier = (
        'clients = ["client-1"]  # whoever has such a machine',
        f"memory_bytes = {usable:.4g}  # it is public: declare less, or max_layers alone",
    )
    return "\n".join(("[allocation.cost]", *numbers, "", "[[allocation.tiers]]", *tier))


def fitting(cost: CostModel, usable: float) -> str:
    """Return how many layers, and which rank of all layers, fit into so many bytes.

    >>> from fedlora_priv.allocation import Cost
    >>> from fedlora_priv.methods.layout import Layout, LoraModule
    >>> modules = tuple(LoraModule(f"layer.{i}.query", 4, 4, 8, 1.0) for i in range(3))
    >>> cost = CostModel.declared(Layout(modules, {}), memory=Cost(fixed=1e9, crossed=2e8, trained=1e6))
    >>> fitting(cost, 2e9)
    '2.00 GB usable: all 3 layers at rank 8'
    >>> fitting(cost, 1.7e9)
    '1.70 GB usable: 1 of 3 layers wherever they are at rank 8; or all 3 at rank 4'
    >>> fitting(cost, 1e9)
    '1.00 GB usable: no layer'
    """
    profile, layers = Profile(memory_bytes=usable), len(cost.layers)
    found = []
    try:
        held = cost.budget(profile)
        found.append(f"all {layers} layers at rank {cost.rank}" if held == layers else
                     f"{held} of {layers} layers wherever they are at rank {cost.rank}")  # fmt: skip
    except NothingFits:
        held = 0
        if top := _most_at_the_top(cost, profile):
            found.append(f"the top {top} of {layers} layers, and none wherever it is")
    if held < layers:
        ranks = [rank for rank in range(1, cost.rank + 1) if cost.fits(profile, range(layers), rank)]
        found += [f"all {layers} at rank {ranks[-1]}"] if ranks else []
    return f"{usable / GB:.2f} GB usable: {'; or '.join(found) or 'no layer'}"


def _most_at_the_top(cost: CostModel, profile: Profile) -> int:
    """Return how many layers fit if they are the top ones."""
    layers = range(len(cost.layers))
    return max((len(layers) - i for i in layers if cost.fits(profile, layers[i:], cost.rank)), default=0)


def _part_text(cost: CostModel, part: Measurement) -> str:
    """Return a measured part in words."""
    count = len(part.layers)
    lowest, layers = min(part.layers), len(cost.layers)
    which = "all layers" if count == layers else "the lowest layer" if lowest == 0 else f"the top {count}"
    return f"{which} {part.memory_bytes / GB:.3f} GB, {part.seconds:.3g} s"


def _needs(cost: CostModel) -> str:
    """Return what 1, 2, ... layers need, the lowest among them, and in brackets all of them at the top."""
    count = len(cost.layers)
    both = [
        [cost.memory_bytes(part, cost.rank) / GB for part in (range(n), range(count - n, count))]
        for n in range(1, count + 1)
    ]
    return ", ".join(f"{n}: {low:.3f} ({top:.3f})" for n, (low, top) in enumerate(both, 1))
