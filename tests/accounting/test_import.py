"""What `import accounting` does not load, and which `accounting` it is."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import accounting

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import json, sys
import accounting.audit, accounting.budget, accounting.ledger, accounting.planning, accounting.report
print(json.dumps(sorted(sys.modules)))
"""


def test_it_is_ours() -> None:
    assert Path(accounting.__file__).parent == REPOSITORY / "accounting"


def test_importing_everything_loads_nothing_heavy() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert loaded.isdisjoint({"torch", "opacus", "transformers", "peft", "fedlora_priv", "protocols"})
    # These take seconds, and only pricing by PLD and validating a report need them.
    assert loaded.isdisjoint({"dp_accounting", "scipy", "jsonschema"})


def test_every_module_says_what_it_is_for() -> None:
    for module in pkgutil.iter_modules(accounting.__path__):
        assert importlib.import_module(f"accounting.{module.name}").__doc__
