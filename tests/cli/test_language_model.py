"""A federation that fine-tunes a language model: from paragraphs to an adapter that plain PEFT generates with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora_priv.precision import has_bfloat16

pytestmark = pytest.mark.long

MODEL = {"task": "language-modelling", "max_length": 12}
LORA = {"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]}
TRAINING = {"batch_size": 40, "learning_rate": 4.0}


@pytest.fixture(scope="module")
def finished(
    tiny_llama: Path, tiny_text: Path, silent: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One finished run over masked sums with a client lost, shared by the tests of this module."""
    import tomli_w

    from fedlora_priv.config import Experiment
    from fedlora_priv.federation.run import run

    folder = tmp_path_factory.mktemp("modelling")
    values: dict[str, Any] = {
        "experiment": {"name": "words", "seed": 3, "output": str(folder / "run")},
        "model": {**MODEL, "source": str(tiny_llama)},
        "lora": LORA,
        "data": {"source": str(tiny_text), "public": True},
        "federation": {"clients": 5, "rounds": 8},
        "training": TRAINING,
        "privacy": {"epsilon": 20.0, "delta": 1e-4},
        "simulate": {"dropouts": [{"round": 2, "client_id": "client-4", "phase": "mask"}]},
    }
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(values))
    run(Experiment.load(path), progress=silent)
    return folder / "run"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_the_perplexity_falls_and_is_what_the_report_is_about(finished: Path) -> None:
    report = report_of(finished)
    assert report["metrics"]["perplexity_after"] < 0.7 * report["metrics"]["perplexity_before"]
    assert report["metrics"]["evaluated_on"] == "60 held-out public examples"
    assert report["secure_aggregation"]["mode"] == "secure"
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [5, 4, 5, 5, 5, 5, 5, 5]
    assert all(claim["epsilon"] <= 20.0 for claim in report["claims"])
    released = [output["what"] for output in report["outputs"]]
    assert "perplexity on held-out examples that the experiment declares public" in released
    assert not [what for what in released if "labels" in what]
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["perplexity"] == report["metrics"]["perplexity_after"]
    assert "Perplexity by round" in (finished / "report.html").read_text()


def test_the_report_says_what_it_ran_on(finished: Path) -> None:
    environment = report_of(finished)["environment"]
    assert environment["device"] == "cpu"
    assert environment["base_precision"] == "float32"
    assert environment["clipping"] == "flat"
    assert environment["per_example"].startswith("direct: ")


def test_the_audit_of_an_honest_run_has_no_fail(fedlora: Callable[..., Any], finished: Path) -> None:
    ran = fedlora("audit", finished, "--json")
    assert ran.code == 0, ran.err
    assert not [verdict for verdict in json.loads(ran.out) if verdict["status"] == "FAIL"]


def test_the_adapter_loads_in_plain_peft_generates_and_has_the_reported_perplexity(
    finished: Path, tiny_llama: Path, tiny_text: Path
) -> None:
    """Nothing of this package: what the adapter's card says, and cross-entropy token by token."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    card = (finished / "adapter" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert ".generate(" in card
    assert "abels" not in card
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = PeftModel.from_pretrained(base, str(finished / "adapter")).eval()
    losses = []
    for paragraph in (tiny_text / "dev.txt").read_text().strip().split("\n\n"):
        ids = tokenizer(paragraph, return_tensors="pt")["input_ids"][:, :12]
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses += (-scores[range(len(scores)), ids[0, 1:]]).tolist()
    wanted = report_of(finished)["metrics"]["perplexity_after"]
    assert math.exp(sum(losses) / len(losses)) == pytest.approx(wanted, rel=1e-4)
    inputs = tokenizer("the film was", return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_the_adapter_of_a_language_model_can_be_attacked(
    fedlora: Callable[..., Any], finished: Path, tiny_text: Path
) -> None:
    ran = fedlora(
        "audit", finished, "--members", tiny_text / "train.txt", "--non-members", tiny_text / "dev.txt", "--json"
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert 0.3 < json.loads(ran.out)["auc"] < 0.8


@pytest.fixture
def modelling(experiment_file: Callable[..., Path], tiny_llama: Path, tiny_text: Path) -> Callable[..., Path]:
    """Writes a tiny experiment file for language modelling; keyword arguments replace values in sections."""

    def write(**sections: dict[str, object]) -> Path:
        values: dict[str, dict[str, object]] = {
            "model": {**MODEL, "source": str(tiny_llama)},
            "lora": LORA,
            "data": {"source": str(tiny_text), "public": True},
            "training": TRAINING,
            "federation": {"clients": 4, "rounds": 2},  # rows of equal number: one plan, priced once
            "privacy": {"epsilon": 20.0},
            "communication": {"support": "dense", "density": 1.0, "value_bits": 16},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return experiment_file(**values)

    return write


@pytest.mark.skipif(
    not has_bfloat16(torch.device("cpu")),
    reason="this CPU has no instructions for bfloat16, so it is refused",
)
def test_bf16_weights_per_layer_clipping_and_rslora_through_the_file(
    fedlora: Callable[..., Any], modelling: Callable[..., Path], tmp_path: Path
) -> None:
    file = modelling(
        model={"base_dtype": "bfloat16"},
        lora={"use_rslora": True},
        training={"clipping": "per-layer", "per_example": "hooks", "gradient_checkpointing": False},
    )
    ran = fedlora("run", file)
    assert ran.code == 0, ran.err
    assert "perplexity" in ran.out
    assert (
        "frozen weights in bfloat16; clipping per-layer, per-example gradients by hooks: as asked" in ran.out
    )
    report = report_of(tmp_path / "run")
    environment = report["environment"]
    assert environment["base_precision"] == "bfloat16"
    assert environment["clipping"] == "per-layer"
    assert environment["per_example"] == "hooks: as asked"
    assert report["metrics"]["perplexity_after"] < 0.9 * report["metrics"]["perplexity_before"]
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] is True


def test_gradient_checkpointing_gives_the_same_run(
    fedlora: Callable[..., Any], modelling: Callable[..., Path], tmp_path: Path
) -> None:
    """With known noise, which is for tests only, the two adapters agree to rounding."""
    from safetensors.numpy import load_file

    weights = []
    for checkpointing in (False, True):
        file = modelling(
            experiment={"output": str(tmp_path / f"run-{checkpointing}")},
            training={"gradient_checkpointing": checkpointing, "deterministic_noise": True},
        )
        ran = fedlora("run", file)
        assert ran.code == 0, ran.err
        weights.append(load_file(tmp_path / f"run-{checkpointing}" / "adapter" / "adapter_model.safetensors"))
    for name, array in weights[0].items():
        assert array == pytest.approx(weights[1][name], abs=2e-4), name  # two quantisation steps


def test_instruction_tuning_takes_the_loss_of_answers_only(
    modelling: Callable[..., Path], tmp_path: Path
) -> None:
    from fedlora_priv.config import Experiment
    from fedlora_priv.federation.setup import assemble

    rows = [{"ask": "the film was a", "say": "good great"}] * 30
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = modelling(
        data={
            "source": str(tmp_path / "rows.jsonl"), "text_column": "say", "prompt_column": "ask",
            "evaluation_examples": 6,
        },
        training={"batch_size": 4},
        privacy={"delta": 1e-3},
    )  # fmt: skip
    parts = assemble(Experiment.load(file), lambda line: None)
    examples = parts.examples["client-1"]
    assert examples.prompt_lengths is not None
    assert set(examples.prompt_lengths.tolist()) == {4}
    assert set(examples.lengths().tolist()) == {7}  # the prompt, the answer, the end of it


def test_the_plan_of_public_paragraphs_says_how_many_are_cut(
    fedlora: Callable[..., Any], modelling: Callable[..., Path], tiny_text: Path
) -> None:
    planned = json.loads(fedlora("plan", modelling(), "--json").out)
    assert planned["environment"]["per_example"].startswith("direct: ")
    assert planned["rows"] == {
        "longest_input": 12,
        "of": 400,
        "as_long_or_longer": planned["rows"]["as_long_or_longer"],
    }
    assert 0 < planned["rows"]["as_long_or_longer"] < 400
    private = modelling(data={"public": False, "dataset_id": "words", "declared_examples_per_client": 100})
    assert json.loads(fedlora("plan", private, "--json").out)["rows"] == {"longest_input": 12}


def test_a_private_language_model_run_reports_no_perplexity(
    fedlora: Callable[..., Any], modelling: Callable[..., Path], tmp_path: Path
) -> None:
    private = {"public": False, "dataset_id": "words", "declared_examples_per_client": 100}
    ran = fedlora("run", modelling(data=private))
    assert ran.code == 0, ran.err
    assert "not reported" in ran.out
    metrics = report_of(tmp_path / "run")["metrics"]
    assert (metrics["perplexity_before"], metrics["perplexity_after"]) == (None, None)


def test_canaries_audit_a_language_model(
    fedlora: Callable[..., Any], modelling: Callable[..., Path], tmp_path: Path
) -> None:
    ran = fedlora("audit", modelling(), "--empirical", "--canaries", "120", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["canaries"] == 120
    assert 0 <= found["lower_bound"] < found["trained_epsilon"]
