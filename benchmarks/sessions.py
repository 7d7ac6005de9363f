"""Whole sessions in one process; the server's unmasking beside Flower's, and the server's memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np

from benchmarks import flower
from benchmarks.common import MILLION, Row, best
from benchmarks.simulation import Simulation
from protocols.secagg.interface import PHASES, Phase

BOX_BYTES = 2048
"""What one client's parcel for another may weigh."""


def rows() -> Iterator[Row]:
    """Unmasking without and with a loss, whole sessions, memory while vectors and boxes arrive."""
    theirs = flower.measured("unmasking")
    for dropped, name in ((0, "none"), (1, "one")):
        yield Row(
            f"server, 10 clients × 2^20, {name} lost: unmask and decode",
            min(_unmasking(dropped) for _ in range(4)),
            "Flower's SecAgg+",
            theirs.get(f"unmask {dropped}"),
            "≤ 1/6",
        )
    five = best(lambda: Simulation(5, 40_000).run(), 5)
    one_lost = best(lambda: Simulation(5, 40_000, dropouts={"c1": "mask"}).run(), 5)
    yield Row("session, 5 clients × 40k, one lost", one_lost, "none lost", five)
    yield Row("session, 50 clients × 40k", best(lambda: Simulation(50, 40_000).run(), 1), "5 clients", five)
    for n in (10, 40):
        what = f"server's peak beside the sum, {n} vectors of 2^20 arriving"
        yield Row(
            what, _peak(Simulation(n, MILLION), "mask"), "one vector", 4 * MILLION, "any n alike", "bytes"
        )
    n = 100
    what = f"server's peak, boxes of {n} clients on a complete graph"
    yield Row(
        what, _peak(Simulation(n, 1), "share"), "n·k·2 KiB", n * (n - 1) * BOX_BYTES, "", "bytes"
    )  # fmt: skip


def _unmasking(dropped: int) -> float:
    """Return the server's CPU seconds from the shares to the decoded sum."""
    dropouts: dict[str, Phase] = {f"c{i}": "mask" for i in range(dropped)}
    simulation = Simulation(10, MILLION, dropouts=dropouts)
    result = simulation.run()
    decode = best(lambda: simulation.quantiser.dequantise_sum(result.sum), 1)
    return simulation.server.seconds["advance", "reveal"] + decode


def _peak(simulation: Simulation, phase: Phase) -> int:
    """Return the most bytes that the server holds for one phase: its clients' answers taken, the next given.

    The answers themselves are there before, and count as the transport's.
    """
    server, vector = simulation.server, np.ones(simulation.d, np.uint32)
    inbox = server.start()
    for current in PHASES:
        answers = {}
        for name, message in inbox.items():
            extra = (vector,) if current == "mask" else ()
            answers[name] = getattr(simulation.clients[name], current)(message, *extra)
        if current == phase:
            tracemalloc.start()
        for name, answer in answers.items():
            server.receive(name, answer)
        inbox = server.advance()
        if current == phase:
            break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak
