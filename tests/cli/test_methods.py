"""`fedlora methods`: every contract as it is, from one table and from one page each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedlora_priv.methods import METHODS

# By hand, of 12 modules with m = n = 384 and r = k = 8: g = 144/12 = 12 held-out columns; in units of n a module,
# LoRA has 2r = 16. A sketch: 2r for the factors, k + (2k + 1) + g. HetLoRA: a weight. FedASK: r + 2 columns, twice.
# Fed-SB: r²/n.
SKETCH = [(16 + 8 + 17 + 12) / 16]
UPLOADS: dict[str, list[list[float]]] = {
    "fedit": [[1]], "ffa": [[0.5]], "fra": [SKETCH], "hybrid": [SKETCH, [0.5]], "fedsvd": [[0.5]],
    "flexlora": [[SKETCH[0] + 8 / 384 / 16]], "hetlora": [[1 + 1 / 384 / 16]], "fedask": [[10 / 16, 10 / 16]],
    "flora": [[SKETCH[0] + 8 / 384 / 16]], "fedex": [SKETCH], "rolora": [[0.5], [0.5]], "fedsa": [[0.5]],
    "lora-fair": [[1, 0.5]], "fed-sb": [[64 / 384 / 16]], "rac-lora": [[0.5]],
}  # fmt: skip


def test_the_list_states_what_travels_and_what_changes(fedlora: Callable[..., Any]) -> None:
    rows = {row["method"]: row for row in json.loads(fedlora("methods", "--json").out)}
    assert list(rows) == list(METHODS) == list(UPLOADS)
    for name, row in rows.items():
        assert [phase["upload_vs_lora"] for phase in row["phases"]] == [
            pytest.approx(uploads, abs=5e-5) for uploads in UPLOADS[name]
        ], name
    assert {n for n, row in rows.items() if row["phases"][0]["changes_base"]} == {
        "flora",
        "fedex",
        "rac-lora",
    }
    assert {n for n, row in rows.items() if row["phases"][0]["stays_home"]} == {"fedsa"}
    assert rows["fra"]["upload_by_products"] == {
        "sketch": pytest.approx(SKETCH, abs=5e-5), "two-pass": pytest.approx([(16 + 8 + 12) / 16, 0.5]),
        "exact": pytest.approx([384 / 16]),
    }  # fmt: skip


def test_the_table_has_every_method_and_every_option(fedlora: Callable[..., Any]) -> None:
    ran = fedlora("methods")
    assert ran.code == 0
    assert all(name in ran.out for name in METHODS)
    assert "aggregation.block_rounds          rac-lora" in ran.out


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_shown_with_equations_contract_and_options(
    name: str, fedlora: Callable[..., Any]
) -> None:
    ran = fedlora("methods", name)
    assert ran.code == 0, ran.err
    shown = json.loads(fedlora("methods", name, "--json").out)
    for words in ("Source: ", shown["title"], "DP noise", *(option["key"] for option in shown["options"])):
        assert words in ran.out


def test_an_unknown_method_is_one_line(fedlora: Callable[..., Any]) -> None:
    ran = fedlora("methods", "fedrolora")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "did you mean 'rolora'?" in ran.err
