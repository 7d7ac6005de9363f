"""What may be left out of which upload."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedlora_priv.communication.choices import REVEALS, Choice
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.config_federation import CommunicationSection
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedask import FedASK
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsvd import FedSVD
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.lora_fair import LoRAFair

LAYOUT = Layout((LoraModule("m", 12, 10, 2, 2.0),), {})
SPARSE = (0.25,)


def check(choice: Choice, method: Method, mode: Any = "local", masked: bool = True) -> None:
    choice.require_allowed(method, method.contract(LAYOUT), mode, masked=masked)


def test_changes_of_factors_may_be_left_out_and_sketches_may_not() -> None:
    for method in (FedIT(), FFALoRA(), FedSVD()):
        check(Choice("server-topk", SPARSE, value_bits=4), method)
    for whole in (FRALoRA(CrossTerm("sketch")), FRALoRA(CrossTerm("two-pass")), FedASK(), LoRAFair()):
        check(Choice("dense", value_bits=8), whole)
        with pytest.raises(CommunicationError, match="must travel whole"):
            check(Choice("seeded-random-k", SPARSE), whole)
        with pytest.raises(CommunicationError, match="at least 8 bits"):
            check(Choice("dense", value_bits=7), whole)


@pytest.mark.parametrize("choice", [Choice(error_feedback=True), Choice(download_density=0.5)])
def test_what_outlives_a_round_needs_coordinates_that_do(choice: Choice) -> None:
    for method in (FedIT(), FFALoRA()):
        check(choice, method)
    for turned in (FedSVD(), FRALoRA()):
        with pytest.raises(CommunicationError, match="others in the next round"):
            check(choice, turned)


@pytest.mark.parametrize(
    "choice",
    [
        Choice("voted-topk", SPARSE),
        Choice(error_feedback=True),
        Choice(channel_scales=True),
        Choice.of(CommunicationSection()),  # a federation always scales by channel
    ],
)
@pytest.mark.parametrize("mode", ["distributed", "client"])
def test_what_depends_on_one_clients_update_needs_it_private(choice: Choice, mode: str) -> None:
    check(choice, FFALoRA())
    with pytest.raises(CommunicationError, match="mode 'local'"):
        check(choice, FFALoRA(), mode)
    check(Choice("server-topk", SPARSE), FFALoRA(), mode)


def test_votes_are_masked_and_come_before_the_only_exchange() -> None:
    with pytest.raises(CommunicationError, match="see each client's votes"):
        check(Choice("voted-topk", SPARSE), FFALoRA(), masked=False)
    with pytest.raises(CommunicationError):
        check(Choice("voted-topk", SPARSE), FedASK())
    two = FFALoRA().contract(LAYOUT)
    two = type(two)(uploads=two.uploads, trains=two.trains, exact=True, noise="", later=(two.uploads,))
    with pytest.raises(CommunicationError, match="has 2 exchanges"):
        Choice("voted-topk", SPARSE).require_allowed(FFALoRA(), two, "local", masked=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"support": "server-topk", "densities": (0.0,)},
        {"support": "server-topk", "densities": (1.1,)},
        {"support": "server-topk", "densities": (math.nan,)},
        {"support": "server-topk", "densities": ()},
        {"support": "server-topk", "densities": (0.5, 0.25)},
        {"support": "server-topk", "densities": (0.5, 0.5)},
        {"support": "dense", "densities": (0.5,)},
        {"download_density": 0.0},
        {"download_density": 1.5},
        {"value_bits": 1},
        {"value_bits": 17},
    ],
)
def test_choices_that_cannot_be_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(CommunicationError):
        Choice(**arguments)


def test_every_support_says_what_it_reveals() -> None:
    assert "every coordinate" in Choice("voted-topk", SPARSE).reveals
    assert all(text.startswith("nothing beyond") for kind, text in REVEALS.items() if kind != "voted-topk")
