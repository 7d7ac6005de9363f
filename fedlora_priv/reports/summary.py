"""What a report says, in few words: shared by the HTML page and the closing table of a run.

Reads ``report.json`` and ``metrics.jsonl`` as they are written; knows nothing of how they are shown. Bytes
are those on the wire, averaged over the clients that reached the sum, and set against float32 arrays of the
same adapters (``bytes.dense_lora_fp32_per_client_and_round``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora_priv.reports.quality import Metric, metric_of

Report = Mapping[str, Any]
Row = Mapping[str, Any]


_ADJACENCY = {"add-remove": "one example added or removed", "replace-one": "one example replaced"}


@dataclass(frozen=True)
class Claim:
    """One claim in words, with every view in which it holds alike; ε is rounded up."""

    who: str
    unit: str
    adjacency: str
    views: str
    epsilon: str
    delta: str
    accountant: str
    examples: str


@dataclass(frozen=True)
class Summary:
    """The figures of the headline; None where nothing may or can be said.

    `before` and `after` are values of `metric`. Units: bytes are per client and round; `survivals` and `losses`
    count (client, round) pairs, the former of rounds with a result.
    """

    name: str
    metric: Metric
    before: float | None
    after: float | None
    evaluated_on: str
    epsilon: float | None
    lifetime_epsilon: float | None
    target_epsilon: float | None
    delta: float | None
    unit: str
    adjacency: str
    views: tuple[str, ...]
    simulation: bool
    deterministic: bool
    insecure: bool
    rounds: int
    rounds_without_sum: int
    clients: int
    survivals: int
    losses: int
    uploaded_bytes: float | None
    downloaded_bytes: float | None
    dense_bytes: float | None
    non_private: tuple[str, ...]

    @property
    def upload_ratio(self) -> float | None:
        """Uploaded bytes over those of dense float32 LoRA."""
        if not self.uploaded_bytes or not self.dense_bytes:
            return None
        return self.uploaded_bytes / self.dense_bytes


def summarise(report: Report, metrics: Sequence[Row]) -> Summary:
    """Return the headline of a report and its metrics."""
    claims: Sequence[Row] = report.get("claims") or []
    worst: Row = max(claims, key=lambda claim: float(claim["epsilon"]), default={})
    measured = report.get("metrics") or {}
    metric = metric_of(measured)
    return Summary(
        name=str((report.get("experiment") or {}).get("name", "")),
        metric=metric,
        before=measured.get(f"{metric.key}_before"),
        after=measured.get(f"{metric.key}_after"),
        evaluated_on=str(measured.get("evaluated_on") or ""),
        epsilon=_largest(claims, "epsilon"),
        lifetime_epsilon=_largest(claims, "lifetime_epsilon"),
        target_epsilon=_largest([plan for _, plan in plans(report)], "target_epsilon"),
        delta=worst.get("delta"),
        unit=str(worst.get("unit", "")),
        adjacency=adjacency_text(worst.get("adjacency", "")),
        views=tuple(dict.fromkeys(view_text(claim.get("view", "")) for claim in claims)),
        simulation=bool(report.get("simulation")),
        deterministic=bool((report.get("randomness") or {}).get("deterministic")),
        insecure=(report.get("secure_aggregation") or {}).get("mode") == "insecure",
        rounds=len(metrics),
        rounds_without_sum=sum(bool(row.get("aborted")) or not row["survivors"] for row in metrics),
        clients=len(client_ids(report, metrics)),
        survivals=sum(len(row["survivors"]) for row in metrics if not row.get("aborted")),
        losses=sum(len(row.get("lost") or ()) for row in metrics),
        uploaded_bytes=_mean([value for row in metrics for value in survivors_bytes(row, "uploaded_bytes")]),
        downloaded_bytes=_mean(
            [value for row in metrics for value in survivors_bytes(row, "downloaded_bytes")]
        ),
        dense_bytes=dense_bytes(report, len(metrics)),
        non_private=tuple(non_private(report)),
    )


def plans(report: Report) -> list[tuple[str, Row]]:
    """Return (client_id, plan) pairs in roster order."""
    listed = report.get("plan") or {}
    if isinstance(listed, Mapping):
        return sorted(listed.items(), key=lambda item: natural(item[0]))
    return [(str(plan["client_id"]), plan) for plan in listed]


def client_ids(report: Report, metrics: Sequence[Row]) -> list[str]:
    """Return everybody who is named by a plan or took part in a round, client-2 before client-10."""
    named = {client_id for client_id, _ in plans(report)}
    for row in metrics:
        named.update(row["survivors"], row.get("epsilon") or {})
        named.update(loss["client_id"] for loss in row.get("lost") or ())
    return sorted(named, key=natural)


def natural(client_id: str) -> tuple[str, int]:
    """Return a sorting key by which client-2 comes before client-10."""
    stem, _, number = client_id.rpartition("-")
    return (stem, int(number)) if number.isdecimal() else (client_id, -1)


def survivors_bytes(row: Row, key: str) -> list[float]:
    """Return the bytes of every client that reached a round's sum; a lost client's traffic is incomplete."""
    counted = row.get(key) or {}
    return [float(counted[client_id]) for client_id in row["survivors"] if client_id in counted]


def dense_bytes(report: Report, rounds: int) -> float | None:
    """Return what one client would send in one round as plain float32 adapters."""
    sizes = report.get("bytes") or {}
    if "dense_lora_fp32_per_client_and_round" in sizes:
        return float(sizes["dense_lora_fp32_per_client_and_round"])
    if "dense_lora_fp32_per_client" in sizes and rounds:
        return float(sizes["dense_lora_fp32_per_client"]) / rounds
    return None


def non_private(report: Report) -> list[str]:
    """Return everything released outside the guarantee, each once."""
    listed = [_what(entry) for entry in report.get("non_private") or ()]
    listed += [
        _what(output) for output in report.get("outputs") or () if output["covered_by"] == "NonPrivate"
    ]
    return list(dict.fromkeys(listed))


def _what(entry: Row) -> str:
    """Return a release in words: what, of whom and when, and why, as far as that is said."""
    origin = f" of {entry['client_id']}" if entry.get("client_id") else ""
    origin += f" in round {entry['round']}" if entry.get("round") is not None else ""
    reason = f" ({entry['reason']})" if entry.get("reason") else ""
    return f"{entry['what']}{origin}{reason}"


def claims(report: Report) -> list[Claim]:
    """Return the claims, the federation's first, those that differ only in their view as one."""
    views: dict[tuple[str, ...], list[str]] = {}
    for claim in report.get("claims") or ():
        views.setdefault(_claim_cells(claim), []).append(view_text(claim.get("view", "")))
    found = []
    for (who, unit, adjacency, *figures), seen in views.items():
        found.append(Claim(who, unit, adjacency, ", ".join(seen), *figures))
    return sorted(found, key=lambda claim: claim.who != "federation")


def _claim_cells(claim: Row) -> tuple[str, ...]:
    """Return all of a claim but its view."""
    return (
        str(claim.get("who", "")),
        str(claim.get("unit", "")),
        adjacency_text(claim.get("adjacency", "")),
        f"≤ {up_text(float(claim['epsilon']))}",
        power_text(float(claim["delta"])),
        str(claim.get("accountant", "")).upper(),
        f"{claim['n']:,}" if isinstance(claim.get("n"), int) else "",
    )


def adjacency_text(adjacency: str) -> str:
    """Return an adjacency in words."""
    return _ADJACENCY.get(adjacency, str(adjacency))


def view_text(view: str) -> str:
    """Return an adversary's view in words."""
    return str(view).replace("-", " ")


def _largest(entries: Sequence[Row], key: str) -> float | None:
    """Return the largest value of a key, if any entry has it."""
    return max((float(entry[key]) for entry in entries if entry.get(key) is not None), default=None)


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean, if there is one."""
    return sum(values) / len(values) if values else None


def bytes_text(count: float) -> str:
    """Return a number of bytes with a decimal prefix.

    >>> bytes_text(999), bytes_text(77_312), bytes_text(2_500_000)
    ('999 B', '77.3 kB', '2.50 MB')
    """
    for unit, size, digits in (("GB", 1e9, 2), ("MB", 1e6, 2), ("kB", 1e3, 1)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count:.0f} B"


def power_text(value: float) -> str:
    """Return a small probability as people write it.

    >>> power_text(1e-5), power_text(2.5e-6), power_text(0.001)
    ('1e-5', '2.5e-6', '0.001')
    """
    mantissa, _, exponent = f"{value:g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def up_text(value: float) -> str:
    """Return a bound rounded UP to three digits, so that the printed number is a bound too.

    >>> up_text(7.99812), up_text(2.0)
    ('7.999', '2.000')
    """
    shown = f"{value:.3f}"
    return shown if float(shown) >= value else f"{value + 0.0005:.3f}"


def environment_text(environment: Mapping[str, str]) -> str:
    """Return a report's environment as one line.

    >>> environment_text({"device": "cpu", "base_precision": "float32", "clipping": "flat",
    ...                   "per_example": "hooks: as asked", "gradient_checkpointing": "off"})
    'on cpu, frozen weights in float32; clipping flat, per-example gradients by hooks: as asked'
    """
    twice = ", activations computed twice" if environment["gradient_checkpointing"] == "on" else ""
    return (
        f"on {environment['device']}, frozen weights in {environment['base_precision']}{twice}; "
        f"clipping {environment['clipping']}, per-example gradients by {environment['per_example']}"
    )
