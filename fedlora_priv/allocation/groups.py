"""An allocation as coordinate groups: who contributes where, for the session's parameters and every client's policy.

The vector of a session is the contract's arrays one after the other. Each row of an array belongs to clients that
its module and, for arrays with a row a component (A, the counts), its component say; neighbouring rows of the same
clients are one group. B has its components in columns, which would make as many groups as it has entries. Its group
is all who train the module; that no component of it is summed over too few is seen to by the counts, or by A's rows
where a method has no counts, whose groups *are* those of the components and travel in the same session: if one of them
is short the whole session is refused.

*Nobody takes these groups from the server.* Each client knows by name who contributes where (`contributors`), and its
policy's `exact_form` makes the groups of any roster of that (`groups_on`, `vector_form`). Otherwise a server could list
clients as contributors who train something else: the group would look large, and its sum be one client's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedlora_priv.allocation.base import Allocation, Part
from fedlora_priv.allocation.errors import AllocationError
from fedlora_priv.methods.layout import Layout, Shapes
from fedlora_priv.methods.partial import holders_name
from fedlora_priv.methods.ranks import count_name
from protocols.secagg.session import CoordinateGroup, VectorForm

Contributors = tuple[tuple[int, frozenset[str]], ...]
"""Runs of a vector's coordinates with the clients that contribute to them, in order: (how many, who)."""


def contributors(allocation: Allocation, layout: Layout, shapes: Shapes) -> Contributors:
    """Return who contributes where to one exchange's vector, whoever is on the session's roster.

    Args:
        shapes: what travels in that exchange, in the contract's order.

    Raises:
        AllocationError: an array belongs to no layer.
    """
    runs: list[tuple[int, frozenset[str]]] = []
    for size, held in _rows(allocation, layout, shapes):
        if runs and runs[-1][1] == held:
            runs[-1] = (runs[-1][0] + size, held)
        else:
            runs.append((size, held))
    return tuple(runs)


def groups_on(contributors: Contributors, roster: Sequence[str]) -> tuple[CoordinateGroup, ...]:
    """Return the groups of a session of these clients, in order; neighbours have different contributors."""
    on_roster = functools.cache(  # of the few sets that there are, each is listed once
        lambda held: tuple(index for index, client_id in enumerate(roster) if client_id in held)
    )
    groups: list[CoordinateGroup] = []
    start = 0
    for size, held in contributors:
        members = on_roster(held)
        if groups and groups[-1].contributors == members:
            groups[-1] = CoordinateGroup(groups[-1].start, start + size, members)
        else:
            groups.append(CoordinateGroup(start, start + size, members))
        start += size
    return tuple(groups)


def coordinate_groups(
    allocation: Allocation, layout: Layout, shapes: Shapes, roster: Sequence[str]
) -> tuple[CoordinateGroup, ...]:
    """Return the groups of one exchange's vector in a session of these clients.

    Args:
        shapes: what travels in that exchange, in the contract's order.
        roster: the session's clients, each with a part; others may have dropped before.

    Raises:
        AllocationError: a client of the roster has no part, or an array belongs to no layer.
    """
    if strangers := set(roster) - set(allocation.parts):
        raise AllocationError(f"{min(strangers)} has no part in the allocation", "allocate for the roster")
    return groups_on(contributors(allocation, layout, shapes), roster)


def vector_form(groups: Sequence[CoordinateGroup], n: int, modulus_bits: int, bound: int) -> VectorForm:
    """Return the form of a vector with these groups, for the `exact_form` of a policy of a session of `n` clients.

    Where everybody contributes everywhere it has no groups, as `SessionParameters.form` has none.
    """
    everywhere = len(groups) == 1 and len(groups[0].contributors) == n
    return VectorForm(groups[-1].stop, modulus_bits, bound, () if everywhere else tuple(groups))


def _rows(allocation: Allocation, layout: Layout, shapes: Shapes) -> Iterator[tuple[int, frozenset[str]]]:
    """Yield runs of coordinates with those who contribute to them, in the vector's order."""
    everybody = frozenset(allocation.parts)
    holders = _holders_of(allocation)
    place = {m.name: i for i, layer in enumerate(allocation.layers) for m in layer.modules}
    by_row = {name: m for m in layout.modules for name in (m.a_name, holders_name(m), count_name(m))}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        if name in layout.heads:
            yield size, everybody
            continue
        number = place.get(name.rpartition(".")[0])
        if number is None:
            raise AllocationError(
                f"{name} travels but belongs to no layer", "use a method that sums by module"
            )
        if name in by_row and shape[0] == by_row[name].rank:
            for component in range(shape[0]):
                yield size // shape[0], holders(number, component)
        else:
            yield size, holders(number, 0)


def _holders_of(allocation: Allocation) -> Callable[[int, int], frozenset[str]]:
    """Return what gives the clients that train a component of a layer: one set for all places that have the same."""
    alike: dict[Part, set[str]] = {}
    for client_id, part in allocation.parts.items():
        alike.setdefault(part, set()).add(client_id)
    union = functools.cache(lambda parts: frozenset().union(*(alike[part] for part in parts)))
    return functools.cache(
        lambda layer, component: union(
            tuple(part for part in alike if layer in part.layers and part.rank > component)
        )
    )
