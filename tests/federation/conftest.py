"""What tests of federations share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.methods import Method
from fedlora_priv.methods.fedit import FedIT

from .paper import Paper


@pytest.fixture
def on_paper(experiment_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Paper]]:
    """Return a function that makes a federation on paper: method, sections of its file, options of `Paper`.

    Four rounds and noise that can be drawn again, unless the sections say otherwise. All are closed in the end.
    """
    fixed: dict[str, dict[str, Any]] = {
        "federation": {"rounds": 4},
        "training": {"deterministic_noise": True},
    }
    with ExitStack() as made:
        folders = (tmp_path / f"paper-{number}" for number in itertools.count())

        def make(method: Method, sections: Mapping[str, Mapping[str, Any]], **options: Any) -> Paper:
            whole = {
                name: {**fixed.get(name, {}), **sections.get(name, {})} for name in {**fixed, **sections}
            }
            experiment = Experiment.load(experiment_file(**whole))
            small = Paper(experiment, method, next(folders), **options)
            made.callback(small.close)
            return small

        yield make


@pytest.fixture
def fedit_on_paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    """Return a function that makes a federation of FedIT on paper: its mode, who is lost, sections of its file."""

    def make(mode: str = "secure", dropouts: Any = (), federation: Any = None, **communication: Any) -> Paper:
        sections = {
            "federation": federation or {},
            "communication": {"density": 1.0, "value_bits": 16} | communication,
            "secure_aggregation": {"mode": mode},
        }
        return on_paper(FedIT(), sections, dropouts=dropouts)

    return make
