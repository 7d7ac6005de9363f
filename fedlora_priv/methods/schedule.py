"""A method that is another method in other rounds, such as the hybrid of FRA-LoRA and FFA-LoRA.

Source: Trautmann, Hales, Volk propose FRA-LoRA in early rounds and FFA-LoRA after (from the abstract).

A schedule is only `at`: whoever runs rounds asks for the method of the round and goes on with that. The state passes
from one to the next as it is. Hybrid: FRA-LoRA leaves B = U√Σ and A = √ΣVᵀ, and FFA-LoRA freezes that A, which is then
not the A of the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.errors import AssumptionError
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.layout import Layout, State


class Schedule(Method):
    """Methods by the round in which each begins.

    Args:
        phases: method by first round; the first phase begins in round 1, each lasts until the next one begins.

    Raises:
        AssumptionError: a gap before the first phase, a round below 1, or a phase that could not take over.

    Example:
        >>> schedule = hybrid(3)
        >>> [schedule.at(round).name for round in (1, 2, 3, 4)]
        ['fra', 'fra', 'ffa', 'ffa']
    """

    name = "schedule"
    title = "A schedule of methods"
    source = "ours"

    def __init__(self, phases: Mapping[int, Method]) -> None:
        if min(phases, default=0) != 1:
            raise AssumptionError("a schedule has a gap: no phase begins in round 1", "give one that does")
        self.phases = dict(sorted(phases.items()))
        self.changes_base = any(method.changes_base for method in self.phases.values())
        self._require_alike()

    def at(self, round: int) -> Method:
        """Return the method of that round.

        Raises:
            AssumptionError: there is no such round.
        """
        if round < 0:
            raise AssumptionError(f"there is no round {round}", "rounds count from 1")
        began = max(first for first in self.phases if first <= max(round, 1))
        return self.phases[began].at(round)

    def contract(self, layout: Layout) -> Contract:
        """Return the contract of the first round; later ones are `at(round).contract(layout)`."""
        return self.at(1).contract(layout)

    def begin(self, layout: Layout, initial: State, shared: Shared) -> State:
        """Return the global state before the first round."""
        return self.at(1).begin(layout, initial, shared)

    def _require_alike(self) -> None:
        """Raise unless all phases have the same state: another's R or home-kept arrays would be missing."""
        example = Layout((), {})
        kinds = {
            (type(m).shapes, type(m).begin, m.contract(example).stays_home) for m in self.phases.values()
        }
        if len(kinds) > 1:
            raise AssumptionError(
                f"a schedule cannot pass from {' to '.join(m.name for m in self.phases.values())}",
                "their states hold other arrays",
            )

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Refuse: `at` never returns a schedule, so the caller has not asked it."""
        raise NotImplementedError

    def _combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Refuse: see `_upload`."""
        raise NotImplementedError


def hybrid(switch: int, cross: CrossTerm = CrossTerm()) -> Schedule:  # noqa: B008 - frozen
    """Return FRA-LoRA before round `switch` and FFA-LoRA from there on."""
    if switch < 2:
        raise AssumptionError(
            f"a hybrid that switches in round {switch} has no FRA rounds", "switch from 2 on"
        )
    schedule = Schedule({1: FRALoRA(cross), switch: FFALoRA()})
    schedule.name, schedule.title = "hybrid", f"Hybrid: FRA-LoRA, from round {switch} FFA-LoRA"
    schedule.source = "Trautmann, Hales, Volk"
    return schedule


def phases(method: Method, rounds: int) -> list[tuple[Method, list[int]]]:
    """Return the methods that a run of so many rounds has, each once, with its rounds in order.

    >>> [(phase.name, numbers) for phase, numbers in phases(hybrid(3), 4)]
    [('fra', [1, 2]), ('ffa', [3, 4])]
    """
    found: dict[int, tuple[Method, list[int]]] = {}
    for number in range(1, rounds + 1):
        phase = method.at(number)
        found.setdefault(id(phase), (phase, []))[1].append(number)
    return list(found.values())
