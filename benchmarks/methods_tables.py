"""The methods study's lines as Markdown tables: accuracy at the end and by round, what was lost, bytes, grids."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

from benchmarks.common import markdown
from benchmarks.methods_list import KIN, MAIN
from benchmarks.methods_order import OWN_GRID, PARTITIONS, PRIVACY
from benchmarks.methods_runs import JUDGED, Setting
from benchmarks.study_tables import (
    ROWS,
    TITLES,
    best_in_bold,
    header,
    in_file_name,
    mean,
    mean_gap,
    shown_gap,
)

Line = Mapping[str, Any]
Group = Mapping[tuple[str, str], Sequence[Line]]
"""Compared runs of one data set and partition, by ε as shown and method."""

DATASETS = ("sst2", "trec")
"""In the page's order."""

SHOWN = {None: "no DP", 8.0: "ε = 8", 3.0: "ε = 3"}
BASELINE = "ffa"
"""What the other main methods are held against."""

RING_BITS = 19
"""Bits of a coordinate on the wire: values of 16, and three more for a sum over five."""

INTRODUCTION = """# Aggregation methods on SST-2 and TREC

What follows from these tables is in [docs/methods-study.md](../../docs/methods-study.md). They are made by
`python benchmarks/methods_study.py page` from `methods.jsonl`, where every line is a run; `... run --data DIR`
runs what is missing.

* **Model.** MiniLM (all-MiniLM-L6-v2), mean pooling; LoRA of rank 8, α = 16, on query and value of its last
  layer, and a trained head. The five layers below are frozen and common to all, and computed once.
* **Federation.** 5 clients, 10 rounds of 3 steps, Poisson batches of 64 on average at every client, all clients
  with the same weight. The hybrid is FRA-LoRA in rounds 1 to 3 and FFA-LoRA after; RAC-LoRA merges every 5
  rounds; FlexLoRA's clients have ranks 8, 8, 4, 4, 2. Products are summed by sketches, except in `fra-exact`
  and `fra-two-pass`.
* **Data.** SST-2: GLUE's 67,349 training rows, of which 2,000 are held out to choose rates on (*validation*);
  test on the 872 development rows. TREC, six coarse labels: 5,452 training questions, 952 held out; test on its
  500. *Skewed*: each label's rows are cut by Dirichlet(0.5), drawn again until every client has a fifth of an
  equal share.
* **Privacy.** Each client's noise is planned by `accounting.planning` for its own number of rows, the same
  rounds and steps for all methods, δ = 1e-5, clip norm 1; the ε spent is priced by the ledger's accountant. *no
  DP* is the same code with neither noise nor a clip norm that is reached. Clients take plain SGD under DP and
  Adam without, which served FedIT better in each case.
* **Rates.** A grid each on validation rows, i.i.d., a seed that is not compared, in steps of about √10,
  extended until the best rate is inside. The methods after FedSVD have one seed, and their kin's best rate or
  a grid around it (*Rates*, below).
* **Seeds** govern initialisation, partition, batches and noise, and are the same for all methods: a run can be
  repeated. Batches agree between methods only in part, since noise is drawn from the same stream.
* Sums are float64 in the clear. Masks cancel exactly, so secure aggregation differs by quantisation alone:
  *Sums as they travel*.
"""


def page(lines: Sequence[Line]) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, *_amount(lines)]
    finals = [line for line in lines if line["study"] == "final"]
    for name in DATASETS:
        if mine := [line for line in finals if line["setting"]["dataset"] == name]:
            parts += _dataset(name, mine)
    parts += [*_differences(finals), *_lost(finals), *_bytes(finals), *_wire(lines), *_rates(lines)]
    return "\n".join(parts) + "\n"


def _amount(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a line on how much was run."""
    if lines:
        hours = sum(line["cpu_minutes"] for line in lines) / 60
        kinds = {study: sum(line["study"] == study for line in lines) for study in ("grid", "final", "wire")}
        yield (
            f"Run so far: {kinds['grid']} runs to choose rates, {kinds['final']} compared, {kinds['wire']} with sums "
            f"as they travel; {hours:.1f} CPU hours.\n"
        )


def _dataset(name: str, finals: Sequence[Line]) -> Iterator[str]:
    """Yield one data set's tables and plots."""
    yield f"## {TITLES[name]}\n"
    for partition in PARTITIONS:
        group = by_method(finals, name, partition)
        if not group:
            continue
        yield f"### {TITLES[name]}, {_words(partition)}\n"
        yield from _final_table(name, group)
        for epsilon in PRIVACY:
            if any(shown == SHOWN[epsilon] for shown, _ in group):
                yield f"\n![Accuracy by round]({plot_file(name, partition, epsilon)})"
        yield "\nBy round, on test rows, mean over the seeds:\n"
        yield from _round_table(group)
        yield ""


def _final_table(name: str, group: Group) -> Iterator[str]:
    """Yield accuracy after the last round: mean ± deviation over the seeds, and of validation rows in brackets."""
    error = math.sqrt(0.8 * 0.2 / ROWS[name])
    yield (
        f"After the last round, in per cent: test rows, mean ± deviation over seeds (validation rows). {ROWS[name]} "
        f"test rows: one standard error of a run near 80 % is {100 * error:.1f}.\n"
    )
    yield from header("method", "seeds", *SHOWN.values())
    for method in _methods(group):
        members = [group.get((shown, method), []) for shown in SHOWN.values()]
        seeds = "/".join(str(len(found)) for found in members)
        yield markdown((method, seeds, *(_final_cell(found) for found in members)))


def _round_table(group: Group) -> Iterator[str]:
    """Yield accuracy by round for the main methods."""
    yield from header("ε", "method", *(f"round {number}" for number in JUDGED))
    for shown, method in product(SHOWN.values(), MAIN):
        if found := group.get((shown, method)):
            means = [mean_at(found, number) for number in JUDGED]
            yield markdown((shown, method, *("" if m is None else f"{100 * m:.1f}" for m in means)))


def by_method(finals: Iterable[Line], name: str, partition: str) -> Group:
    """Return the compared runs of one data set and partition by ε as shown and method."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in finals:
        setting = Setting.from_json(line["setting"])
        if (setting.dataset, setting.partition) == (name, partition):
            groups[SHOWN[setting.epsilon], setting.method].append(line)
    return groups


def mean_at(lines: Sequence[Line], number: int) -> float | None:
    """Return the mean test accuracy after a round; None where a run did not get there."""
    values = [line["accuracy"].get(str(number)) for line in lines]
    return None if None in values else statistics.mean(values)


def plot_file(name: str, partition: str, epsilon: float | None) -> str:
    """Return the path of a plot, from the page."""
    return f"methods/{name}-{partition}-{in_file_name(epsilon)}.svg"


def _final_cell(lines: Sequence[Line]) -> str:
    """Return mean ± deviation of the last round's test accuracy, and the mean of validation."""
    if not lines:
        return ""
    values = [100 * line["accuracy"].get(str(line["setting"]["rounds"]), 0.0) for line in lines]
    validation = 100 * statistics.mean(line["validation"] for line in lines)
    return f"{mean(values)} ({validation:.1f})"


def _differences(finals: Sequence[Line]) -> Iterator[str]:
    """Yield by how much the other main methods are above FFA-LoRA in the same seeds and partitions, by round."""
    if not finals:
        return
    yield f"## Main methods less {BASELINE}\n"
    yield (
        "Test accuracy less that of FFA-LoRA with the same seed and partition, in points: mean ± standard error over "
        "the pairs (both partitions). All pairs share their test rows, which that error leaves out: where two methods "
        "disagree on one row in ten, it is 1.1 points on SST-2 and 1.4 on TREC.\n"
    )
    yield from header("data", "ε", "method", "pairs", *(f"round {number}" for number in JUDGED))
    for name, shown, method in product(DATASETS, SHOWN.values(), MAIN):
        groups = [by_method(finals, name, partition) for partition in PARTITIONS]
        pairs = [
            pair
            for group in groups
            for pair in _pairs(group.get((shown, method), []), group.get((shown, BASELINE), []))
        ]
        if pairs and method != BASELINE:
            cells = (_difference(pairs, str(number)) for number in JUDGED)
            yield markdown((TITLES[name], shown, method, str(len(pairs)), *cells))
    yield ""


def _pairs(lines: Sequence[Line], others: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Return each line with the one of the same seed."""
    by_seed = {other["setting"]["seed"]: other for other in others}
    return [(line, by_seed[line["setting"]["seed"]]) for line in lines if line["setting"]["seed"] in by_seed]


def _difference(pairs: Sequence[tuple[Line, Line]], number: str) -> str:
    """Return the mean difference after a round and its standard error."""
    gaps = [
        100 * (line["accuracy"][number] - other["accuracy"][number])
        for line, other in pairs
        if number in line["accuracy"] and number in other["accuracy"]
    ]
    return shown_gap(mean_gap(gaps))


def _lost(finals: Sequence[Line]) -> Iterator[str]:
    """Yield what the aggregation lost of a round's mean step."""
    if not finals:
        return
    yield "## What aggregation loses\n"
    yield (
        "‖mean of the clients' products − what the state holds‖ / ‖how far that mean moved in the round‖, in per cent, "
        "mean over rounds and runs; in brackets what the best rank-8 state would lose. FedIT, FRA-LoRA and their kin "
        "differ only in this; methods with one factor in common lose nothing.\n"
    )
    yield from header("data", "partition", "method", *SHOWN.values())
    for name, partition in product(DATASETS, PARTITIONS):
        group = by_method(finals, name, partition)
        for method in _methods(group):
            cells = [_lost_cell(group.get((shown, method), [])) for shown in SHOWN.values()]
            if any(cells):
                yield markdown((TITLES[name], _words(partition), method, *cells))
    yield ""


def _lost_cell(lines: Sequence[Line]) -> str:
    """Return the mean loss and the mean least loss; nothing where a method loses nothing."""
    lost = [value for line in lines for value in line["lost"].values()]
    least = [value for line in lines for value in line["least"].values()]
    if not lost or max(lost) < 1e-3:
        return ""
    return f"{100 * statistics.mean(lost):.1f} ({100 * statistics.mean(least):.1f})"


def _bytes(finals: Sequence[Line]) -> Iterator[str]:
    """Yield what a client uploads in a round."""
    coordinates = {
        (line["setting"]["dataset"], line["setting"]["method"]): line["coordinates"] for line in finals
    }
    if not coordinates:
        return
    yield "## Upload of a client in a round\n"
    yield (
        f"All exchanges, mean over the rounds, at {RING_BITS} bits a coordinate, framing and keys apart. Sketches "
        "weigh much here: two adapted modules have 48 held-out columns each; 24 modules would have 6.\n"
    )
    yield from header("method", *(f"{TITLES[name]}, coordinates | KiB" for name in DATASETS))
    for method in (*MAIN, *KIN):
        found = [coordinates.get((name, method)) for name in DATASETS]
        if any(found):
            cells = (("", "") if n is None else (f"{n:,.0f}", f"{n * RING_BITS / 8192:,.1f}") for n in found)
            yield markdown((method, *chain.from_iterable(cells)))
    yield ""


def _wire(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the runs whose sums are integers beside the same in float64."""
    wire = [line for line in lines if line["study"] == "wire"]
    if not wire:
        return
    yield "## Sums as they travel\n"
    yield (
        "The same run with float64 sums and with the integers that secure aggregation adds up under masks (stochastic "
        "rounding, modulo 2^b): test rows after the last round (validation rows), in per cent. The bound of each array "
        "is the largest value of the round.\n"
    )
    yield from header("run", "method", "float64", "as it travels")
    for line in wire:
        setting = Setting.from_json(line["setting"])
        plain = {**line["setting"], "value_bits": None}
        same = [other for other in lines if other["study"] == "final" and other["setting"] == plain]
        where = f"{TITLES[setting.dataset]}, {SHOWN[setting.epsilon]}, {_words(setting.partition)}, seed {setting.seed}"
        yield markdown(
            (where, setting.method, _final_cell(same), f"{setting.value_bits} bits: {_final_cell([line])}")
        )
    yield ""


def _rates(lines: Sequence[Line]) -> Iterator[str]:
    """Yield validation accuracy by rate, the chosen in bold."""
    grids: dict[tuple[str, str, str], dict[float, float]] = defaultdict(dict)
    for line in lines:
        if line["study"] == "grid":
            setting = Setting.from_json(line["setting"])
            key = (setting.dataset, SHOWN[setting.epsilon], setting.method)
            grids[key][setting.learning_rate] = line["validation"]
    if not grids:
        return
    yield "## Rates\n"
    kin = ", ".join(f"{other} that of {main}" for other, main in KIN.items() if other not in OWN_GRID)
    yield (
        f"Validation accuracy in per cent by learning rate, one run each; the best is bold. Not searched: {kin}. "
        "The other methods of one seed: three rates around their kin's best.\n"
    )
    yield from header("data", "ε", "method", "rate: accuracy")
    for name, shown, method in product(DATASETS, SHOWN.values(), (*MAIN, *KIN)):
        if found := grids.get((name, shown, method)):
            yield markdown((TITLES[name], shown, method, best_in_bold(found)))


def _methods(group: Group) -> list[str]:
    """Return the methods that are there, in the study's order."""
    return [method for method in (*MAIN, *KIN) if any(found == method for _, found in group)]


def _words(partition: str) -> str:
    """Return a partition as the page names it."""
    return {"iid": "i.i.d.", "skewed": "skewed"}[partition]
