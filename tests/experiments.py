"""Two experiment files, and what they become with overrides."""

from __future__ import annotations

import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError

SMALLEST = """
[experiment]
name = "quick"
[data]
public = true
[privacy]
epsilon = 8
"""

PRIVATE = """
[experiment]
name = "quick"
[data]
source = "patients"
dataset_id = "patients-2026"
labels = ["well", "ill"]
declared_examples_per_client = 2000
[privacy]
epsilon = 8
"""


def load(*overrides: str, text: str = SMALLEST) -> Experiment:
    return Experiment.from_toml(text, overrides, origin="quick.toml")


def refusal(*overrides: str, text: str = SMALLEST) -> str:
    """The line that refuses some overrides."""
    with pytest.raises(ConfigError) as caught:
        load(*overrides, text=text)
    message = str(caught.value)
    assert "\n" not in message
    return message
