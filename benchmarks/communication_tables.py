"""The communication study's lines as Markdown: targets, accuracy by support, density and bits, FLASC, bytes, rates."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common import markdown
from benchmarks.communication_bytes import RING, dense_bytes
from benchmarks.communication_cells import (
    DENSE,
    Line,
    Runs,
    less_dense,
    row_key,
    setting_of,
    shown,
    shown_density,
)
from benchmarks.communication_order import (
    BITS,
    BUDGETS,
    CORNERS,
    DENSITIES,
    FAMILIES,
    OTHERS,
    SEEDS,
    SUPPORTS,
    TELLING,
    Cell,
)
from benchmarks.communication_questions import answers
from benchmarks.communication_setting import Setting
from benchmarks.methods_task import Budget
from benchmarks.study_tables import ROWS, amount, best_in_bold, header, in_file_name, mean, shown_gap, title

LEAST_TIMES, LARGEST_LOSS = 20, 1.0
"""The first target: so many times fewer bytes, at most so many points below dense LoRA."""

LOSSLESS_TIMES = 10
"""The second: so many times fewer, and no loss beyond one standard deviation of dense LoRA."""

INTRODUCTION = f"""# Accuracy against bytes

What follows from these tables is in [docs/communication-study.md](../../docs/communication-study.md). They are made by
`python benchmarks/communication_study.py page` from `communication.jsonl`, where every line is a run; `... run --data
DIR` runs what is missing.

* **Model.** MiniLM (all-MiniLM-L6-v2), mean pooling; LoRA of rank 32, α = 32, A and B, on both maps of the last
  layer's feed-forward net, and a trained head: 123,650 coordinates on SST-2 and 152,525 on Banking77 with its 77
  labels. All below is frozen and computed once.
* **Federation.** 10 clients, i.i.d., 24 rounds of one step, Poisson batches of 64 on average, for Banking77 at ε = 8
  of 128 of its 900 rows. SGD under DP, Adam without; clip norm 1, δ = 1e-5, every client's noise planned for its own
  rows: multipliers of .38 on SST-2 and .80 on Banking77.
* **Up.** Masked rows: stochastic rounding to 8 or 4 bits by scales of LoRA components that follow earlier sums, four
  more bits for a sum over ten, added modulo 2^b. Rows of 32 bits are float32 in the clear. `server-topk` begins
  with a round in which everything travels and then explores with a quarter of its support; clients vote once, in the
  first round. Both are in the bytes, as a mean over all rounds.
* **Bytes** are of the mean client and round, by `communication.meter`, with keys, shares, votes and framing, for one
  colluder and a ring of {RING} neighbours or the complete graph; a task's header, some hundred bytes, is left out.
  *Times less* is against 4 bytes for every coordinate, what dense LoRA in float32 sends.
* **FLASC** as published: each client's own top-k as float32 with its indices, AdamW at the server, the masked state is
  evaluated; insecure. Its clients train with DP-SGD as all others do.
* **Rates** are chosen on held-out training rows (*validation*), with a seed that is not compared.
"""


def page(lines: Sequence[Line]) -> str:
    """Return the whole page."""
    runs = Runs(lines)
    parts = [INTRODUCTION, *amount(lines)]
    for budget in BUDGETS:
        if runs.of(budget, DENSE):
            parts += [f"## {title(budget)}\n", f"![Accuracy against bytes]({plot_file(budget)})\n"]
            parts += [
                *_corners(runs, budget),
                *_bits(runs, budget),
                *_ways(runs, budget),
                *_rest(runs, budget),
            ]
    return "\n".join([*parts, *answers(runs), *_rates(lines)]) + "\n"


def plot_file(budget: Budget) -> str:
    """Return the path of a plot, from the page."""
    dataset, epsilon = budget
    return f"communication/{dataset}-{in_file_name(epsilon)}.svg"


def _corners(runs: Runs, budget: Budget) -> Iterator[str]:
    """Yield the cells of several seeds, held against dense LoRA and the targets."""
    dataset = budget[0]
    spread = runs.accuracies(budget, DENSE).values()
    deviation = statistics.stdev(spread) if len(spread) > 1 else 0.0
    error = 100 * math.sqrt(0.8 * 0.2 / ROWS[dataset])
    yield (
        "Test accuracy after the last round in per cent, mean ± deviation over seeds (validation rows), and less dense "
        "float32 LoRA of the same seeds, ± standard error over them. "
        f"{ROWS[dataset]} test rows: a run near 80 % has a standard error of {error:.1f} for them alone, which runs "
        f"share in part. Targets are judged with {len(SEEDS)} seeds. Bytes of a client and round; in brackets on the "
        "complete graph.\n"
    )
    yield from header(
        "what travels", "seeds", "accuracy", "less dense", "bytes up", "times less", "bytes down",
        f"≥ {LEAST_TIMES}×, ≥ −{LARGEST_LOSS:g}", f"≥ {LOSSLESS_TIMES}×, ≥ −{deviation:.1f}",
    )  # fmt: skip
    for cell in CORNERS:
        sizes, whole = runs.sizes(budget, cell), runs.sizes(budget, cell, None)
        gap, times = less_dense(runs, budget, cell), runs.times_less(budget, cell)
        if sizes is None or whole is None or gap is None or times is None:
            continue
        masked, seeds = cell.changes.get("value_bits") is not None, len(runs.of(budget, cell))
        on_graph = f" ({runs.times_less(budget, cell, None):.1f})" if masked else ""
        met = ("", "") if not masked or seeds < len(SEEDS) else (
            _met(times >= LEAST_TIMES and gap[0] >= -LARGEST_LOSS),
            _met(times >= LOSSLESS_TIMES and gap[0] >= -deviation),
        )  # fmt: skip
        yield markdown((
            shown(cell), str(seeds), _accuracy(runs, budget, cell), shown_gap(gap),
            f"{sizes.uploaded:,.0f}", f"{times:.1f}{on_graph}", f"{sizes.downloaded:,.0f}", *met,
        ))  # fmt: skip
    yield ""


def _met(holds: bool) -> str:
    return "yes" if holds else "no"


def _bits(runs: Runs, budget: Budget) -> Iterator[str]:
    """Yield accuracy by support and density, a column for each number of bits."""
    rows = [("dense", 1.0), *((support, density) for support in SUPPORTS for density in DENSITIES)]
    cells = {
        row: [Cell("", {"support": row[0], "density": row[1], "value_bits": b}) for b in BITS] for row in rows
    }
    if not any(runs.of(budget, cell) for row in rows[1:] for cell in cells[row]):
        return
    yield "Accuracy, and times fewer bytes up, by bits of a value:\n"
    yield from header("support", "density", *(f"{b or 32} bits" for b in BITS))
    for row in rows:
        found = [_short(runs, budget, cell) for cell in cells[row]]
        if any(found):
            yield markdown((row[0], shown_density(row[1]), *found))
    yield ""


def _ways(runs: Runs, budget: Budget) -> Iterator[str]:
    """Yield what feedback and training the support alone do, beside FLASC at the same density."""
    more: Sequence[Mapping[str, Any]] = ({}, {"feedback": True}, {"train": "support"})
    rows = []
    for density in DENSITIES:
        flasc = _short(runs, budget, Cell("", {"method": "flasc", "density": density}))
        for support in SUPPORTS:
            base = {"support": support, "density": density, "value_bits": 4}
            found = [_short(runs, budget, Cell("", {**base, **extra})) for extra in more]
            if any(found):
                rows.append((support, shown_density(density), *found, flasc))
    if rows:
        yield "At 4 bits: what feedback does, and training the support alone; FLASC at that density:\n"
        yield from header("support", "density", "plain", "feedback", "trains the support", "FLASC, 32 bits")
        yield from (markdown(row) for row in rows)
        yield ""


def _rest(runs: Runs, budget: Budget) -> Iterator[str]:
    """Yield the cells that are in no other table."""
    cells = [
        cell
        for cell in (*TELLING, *OTHERS)
        if (cell.family == "ffa" or "download_density" in cell.changes or cell.changes.get("density") == 1.0)
        and runs.of(budget, cell)
    ]
    if cells:
        yield from header("what travels", "accuracy", "less dense", "bytes up", "times less", "bytes down")
        for cell in cells:
            sizes, gap = runs.sizes(budget, cell), less_dense(runs, budget, cell)
            assert sizes is not None
            yield markdown((
                shown(cell), _accuracy(runs, budget, cell), shown_gap(gap),
                f"{sizes.uploaded:,.0f}", f"{_whole(runs, budget) / sizes.uploaded:.1f}", f"{sizes.downloaded:,.0f}",
            ))  # fmt: skip
        yield ""


def _whole(runs: Runs, budget: Budget) -> int:
    """Return what dense LoRA of A and B uploads."""
    return dense_bytes(runs.of(budget, DENSE)[0][1]["coordinates"])


def _rates(lines: Sequence[Line]) -> Iterator[str]:
    """Yield validation accuracy by what was searched, the chosen in bold."""
    grids: dict[tuple[Budget, str], dict[float, float]] = defaultdict(dict)
    for line in lines:
        setting = Setting.from_json(line["setting"])
        if line["study"] == "grid":
            name = next(n for n, f in FAMILIES.items() if f.field and _is_of(setting, f.changes))
            searched = getattr(setting, FAMILIES[name].field or "")
            grids[(setting.dataset, setting.epsilon), name][searched] = line["validation"]
    if not grids:
        return
    yield "## Rates\n"
    yield (
        "Validation accuracy in per cent by learning rate (dense, topk, support, ffa), by the server's rate (flasc) or "
        "by the power p of the factor density^-p (random; its learning rate is that of dense). Feedback and votes "
        "take topk's.\n"
    )
    yield from header("data", "family", "searched: accuracy")
    for (budget, name), found in sorted(grids.items(), key=lambda entry: _place(entry[0])):
        yield markdown((title(budget), name, best_in_bold(found)))


def _place(entry: tuple[Budget, str]) -> tuple[int, int]:
    """Return where a grid stands in the table."""
    return BUDGETS.index(entry[0]), list(FAMILIES).index(entry[1])


def _is_of(setting: Setting, changes: Mapping[str, Any]) -> bool:
    """Return whether a grid's run is that of a family."""
    return row_key(setting) == row_key(setting_of((setting.dataset, setting.epsilon), Cell("", changes)))


def _short(runs: Runs, budget: Budget, cell: Cell) -> str:
    """Return mean accuracy ± deviation, and how many times less is uploaded."""
    times = runs.times_less(budget, cell)
    return "" if times is None else f"{mean(runs.accuracies(budget, cell).values())} · {times:.1f}×"


def _accuracy(runs: Runs, budget: Budget, cell: Cell) -> str:
    """Return mean accuracy ± deviation on test rows, and the mean of validation rows."""
    validation = 100 * statistics.mean(line["validation"] for _, line in runs.of(budget, cell))
    return f"{mean(runs.accuracies(budget, cell).values())} ({validation:.1f})"
