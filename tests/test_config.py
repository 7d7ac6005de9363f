"""The experiment file: its keys and values one by one, overrides, the file itself, and its reference page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedlora_priv import config_reference
from fedlora_priv.config import Experiment
from fedlora_priv.config_base import Section
from fedlora_priv.errors import ConfigError, FedloraError, exit_codes
from tests.experiments import SMALLEST, load, refusal

ROOT = Path(__file__).parents[1]


def test_defaults_are_filled_in() -> None:
    experiment = load()
    assert experiment.experiment.output == "runs/quick"
    assert experiment.client_ids == ("client-1", "client-2", "client-3", "client-4", "client-5")
    assert experiment.secure_aggregation.thresholds(5) == (4, 4, 4)
    assert experiment.privacy.epsilon == 8.0
    assert experiment.data.evaluation_may_be_reported


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilom=2", ["--set", "'epsilom'", "[privacy]", "'epsilon'"]),
        ("lora.clip_norm=2", ["'clip_norm'", "[lora]", "belongs in [training]"]),
        ("privicy.epsilon=2", ["unknown table 'privicy'", "did you mean 'privacy'"]),
        (
            'simulate.dropouts=[{rund=1, client_id="client-1", phase="mask"}]',
            ["[simulate.dropouts]", "'round'"],
        ),
    ],
)
def test_unknown_key_names_the_nearest(override: str, words: list[str]) -> None:
    message = refusal(override)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilon=0", "privacy.epsilon should be greater than 0, but is 0"),
        ("privacy.epsilon=-1.5", "privacy.epsilon should be greater than 0, but is -1.5"),
        ("privacy.epsilon=nan", "privacy.epsilon should be a finite number"),
        ("privacy.epsilon=inf", "privacy.epsilon should be a finite number"),
        ("privacy.epsilon=much", "privacy.epsilon should be a valid number, but is 'much'"),
        ("privacy.epsilon=true", "privacy.epsilon should be a valid number, but is true"),
        ("privacy.delta=0", "privacy.delta should be greater than or equal to 0.000000001"),
        ("privacy.delta=1", "privacy.delta should be less than 1"),
        ("training.learning_rate=1e39", "training.learning_rate should be less than or equal to 1000000"),
        ("communication.density=0", "communication.density should be greater than 0"),
        ("federation.method=FRA", "but is 'FRA'; did you mean 'fra'?"),
        ("federation.method=fedsb", "but is 'fedsb'; did you mean 'fed-sb'?"),
        ("aggregation.products=two_pass", "but is 'two_pass'; did you mean 'two-pass'?"),
        ("communication.density=1.01", "communication.density should be less than or equal to 1"),
        ("communication.value_bits=17", "communication.value_bits should be less than or equal to 16"),
        ("communication.value_bits=1", "communication.value_bits should be greater than or equal to 2"),
        ("federation.clients=5.0", "federation.clients should be a valid integer, but is 5.0"),
        ("federation.clients=0", "federation.clients should be greater than or equal to 1"),
        ("federation.method=fedavg", "'fed-sb' or 'rac-lora', but is 'fedavg'"),
        ("lora.ranks=[8, 0]", "lora.ranks[1] should be greater than or equal to 1"),
        ("aggregation.tolerance=1", "aggregation.tolerance should be less than 1"),
        ("aggregation.switch_round=1", "aggregation.switch_round should be greater than or equal to 2"),
        ("lora.target_modules=query", "is one text; give an array of names"),
        ("lora.target_modules=[]", "lora.target_modules should have at least 1 item"),
        ("lora.target_modules=[1]", "lora.target_modules[0] should be a valid string, but is 1"),
        ("experiment.name=../up", "experiment.name should match pattern"),
        ("experiment.seed=-1", "experiment.seed should be greater than or equal to 0"),
        ("model.source=demo:bert", "there is no 'demo:bert'"),
        ("data.source=demo:novels", "there is no 'demo:novels'"),
        ("data.public=1", "data.public should be a valid boolean, but is 1"),
    ],
)
def test_wrong_types_and_ranges(override: str, words: str) -> None:
    assert words in refusal(override)


def test_required_keys() -> None:
    assert "privacy.epsilon is missing" in refusal(text='[experiment]\nname = "x"\n[privacy]\n')
    assert "the table privacy is missing" in refusal(text='[experiment]\nname = "x"\n')


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("privacy.epsilon=2", 2.0),
        ("privacy.epsilon = 2.5", 2.5),
        ("data.source=folder/with=equals", "folder/with=equals"),
        ("data.source=2024-01-01", "2024-01-01"),
        ('data.source="quoted"', "quoted"),
        ('lora.target_modules=["query", "key"]', ("query", "key")),
    ],
)
def test_override_values(override: str, value: object) -> None:
    section, key = override.partition("=")[0].strip().split(".")
    assert getattr(getattr(load(override), section), key) == value


@pytest.mark.parametrize(
    "override", ["privacy.epsilon", "epsilon=2", "=2", "privacy.=2", "privacy.epsilon.x=2"]
)
def test_malformed_overrides(override: str) -> None:
    assert "--set" in refusal(override)


def test_an_override_cannot_smuggle_a_second_key() -> None:
    assert load("data.source=1\nother = 2").data.source == "1\nother = 2"


def test_a_later_override_wins() -> None:
    assert load("privacy.epsilon=2", "privacy.epsilon=3").privacy.epsilon == 3


def test_dump_reads_back_equal() -> None:
    experiment = load(
        "federation.rounds=3",
        "secure_aggregation.min_survivors=5",
        'simulate.dropouts=[{round=2, client_id="client-3", phase="mask"}]',
    )
    again = Experiment.from_toml(experiment.to_toml())
    assert again == experiment
    assert again.to_toml() == experiment.to_toml()
    assert again.digest() == experiment.digest()
    assert tomllib.loads(experiment.to_toml())["simulate"]["dropouts"][0]["client_id"] == "client-3"


def test_digest_covers_what_affects_the_result_and_nothing_else() -> None:
    reference = load().digest()
    assert re.fullmatch("[0-9a-f]{64}", reference)
    assert load("experiment.output=elsewhere", "experiment.name=other").digest() == reference
    changes = ["privacy.epsilon=8.000001", "experiment.seed=1", "lora.rank=9", "data.public=true"]
    digests = [load(change).digest() for change in changes]
    assert digests[3] == reference
    assert len({reference, *digests}) == 4


def test_file_errors(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match="there is no experiment file"):
        Experiment.load(missing)
    with pytest.raises(ConfigError, match="is a folder"):
        Experiment.load(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("[privacy]\nepsilon = = 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML: .*line 2"):
        Experiment.load(broken)
    broken.write_bytes("[experiment]\nname = 'caf\u00e9'\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not UTF-8: byte 24, line 2"):
        Experiment.load(broken)


def test_file_with_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "quick.toml"
    path.write_text(SMALLEST, encoding="utf-8-sig")
    assert Experiment.load(path, ["privacy.epsilon=2"]).privacy.epsilon == 2


def test_an_experiment_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().privacy.epsilon = 100.0


def test_every_key_is_described() -> None:
    rows = config_reference.rows()
    assert len(rows) > 40
    assert [row.key for row in rows if len(row.description) < 12] == []


def test_every_section_refuses_unknown_keys() -> None:
    assert [s.__name__ for s in Section.__subclasses__() if s.model_config.get("extra") != "forbid"] == []


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == config_reference.markdown(), "run: python -m fedlora_priv.config_reference"


def test_exit_codes_are_documented() -> None:
    assert exit_codes().keys() >= {0, 1, 2, 3, 4, 5, 6}
    assert FedloraError("two\nlines.", "do this").args == ("two lines; do this",)


@pytest.mark.parametrize("value", ["all-linear", '["all-linear"]'])
def test_all_linear_maps_by_one_word(value: str) -> None:
    experiment = load(f"lora.target_modules={value}")
    assert experiment.lora.target_modules == ("all-linear",)
    assert Experiment.from_toml(experiment.to_toml()) == experiment


def test_speed_and_memory_do_not_make_another_experiment() -> None:
    changes = (
        "training.device=cpu", "training.per_example=hooks", "training.gradient_checkpointing=true",
    )  # fmt: skip
    assert load(*changes).digest() == load().digest()
    for change in ("training.clipping=per-layer", "model.base_dtype=bfloat16", "lora.use_rslora=true"):
        assert load(change).digest() != load().digest()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_an_experiment(path: Path) -> None:
    assert Experiment.load(path).experiment.name
