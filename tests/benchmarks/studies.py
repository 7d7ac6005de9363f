"""What the tests of the studies share: a tiny SST-2, lines of results, a look at tables and drawings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from benchmarks.methods_runs import Setting


def write_sst2(folder: Path, generator: np.random.Generator, train: int) -> dict[str, list[str]]:
    """Write SST-2's files with texts that one word decides; return them, 60 of them to test."""
    (folder / "sst2_glue").mkdir()
    written = {}
    for part, name, rows in (("train", "train", train), ("test", "dev", 60)):
        texts = [f"the film was {('bad', 'good')[label]}" for label in generator.integers(0, 2, rows)]
        table = "".join(f"{text} \t{int('good' in text)}\n" for text in texts)
        (folder / "sst2_glue" / f"{name}.tsv").write_text("sentence\tlabel\n" + table)
        written[part] = texts
    return written


def kept_line(study: str, setting: Setting, **outcome: object) -> dict[str, Any]:
    """Return a finished run as its file has it."""
    return {"study": study, "setting": json.loads(json.dumps(asdict(setting))), **outcome}


def each_table_has_one_width(page: str) -> None:
    """Refuse a page where the rows of a table differ in their number of columns."""
    for table in page.split("\n\n"):
        rows = [row for row in table.splitlines() if row.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, rows


def circles(drawing: str) -> list[ElementTree.Element]:
    """Return the dots of an SVG."""
    return [node for node in ElementTree.fromstring(drawing).iter() if node.tag.endswith("circle")]
