"""The experiment file: what it accepts, what it refuses, and with which words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedlora_priv import config_reference
from fedlora_priv.config import Experiment
from fedlora_priv.config_base import Section
from fedlora_priv.errors import ConfigError, FedloraError, exit_codes
from fedlora_priv.federation.plans import plan_clients
from fedlora_priv.methods import METHODS, for_experiment, phases, server_optimizer_for
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.optimizers import Adam, Average, Momentum, ServerOptimizer
from fedlora_priv.methods.raclora import RACLoRA

ROOT = Path(__file__).parents[1]

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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.use_dora=true"], "per-example gradients"),
        (["training.clipping=adaptive", "model.base_dtype=bfloat16"], "what is counted of another"),
        (["privacy.mode=distributed"], "not built yet"),
        (["privacy.mode=client"], "not built yet"),
        (["privacy.lifetime_epsilon=7.9"], "no client could finish the run"),
        (["communication.density=0.5"], "no effect with support = 'dense'"),
        (["secure_aggregation.quorum=3"], "use at least 4"),
        (["secure_aggregation.quorum=6"], "above federation.clients = 5"),
        (["secure_aggregation.threshold=6"], "threshold = 6 is above federation.clients = 5"),
        (["secure_aggregation.threshold=1"], "remove anybody's masks"),
        (["secure_aggregation.threshold=5"], "above min_survivors = 4"),
        (["secure_aggregation.neighbours=6"], "each of 5 clients has only 4 others"),
        (
            ["federation.clients=9", "secure_aggregation.neighbours=3"],
            "a ring has as many on each side; use 4",
        ),
        (
            [
                "federation.clients=12",
                "secure_aggregation.neighbours=4",
                "secure_aggregation.max_colluders=4",
            ],
            "not more than max_colluders = 4: colluders all around a client could take its masks off; use at least 6",
        ),
        (
            ["federation.clients=12", "secure_aggregation.neighbours=4", "secure_aggregation.threshold=6"],
            "threshold = 6 is above 5, the neighbours of a client and itself",
        ),
        (
            ["secure_aggregation.neighbours=1"],
            "secure_aggregation.neighbours should be greater than or equal to 2",
        ),
        (["secure_aggregation.min_survivors=6"], "min_survivors = 6 is above federation.clients = 5"),
        (["secure_aggregation.min_survivors=3"], "below quorum = 4"),
        (["secure_aggregation.max_colluders=5"], "above federation.clients = 5"),
        (["federation.clients=2"], "cannot protect 2 clients"),
        (['simulate.dropouts=[{round=1, client_id="client-6", phase="mask"}]'], "client-1 to client-5"),
        (
            ['simulate.dropouts=[{round=1, client_id="client-1", phase="mask", exchange=1}]'],
            "exchange 1 of round 1, whose last is exchange 0 with federation.method = 'ffa'",
        ),
        (['simulate.dropouts=[{round=13, client_id="client-1", phase="mask"}]'], "round 13 of 12"),
        (['simulate.dropouts=[{round=0, client_id="client-1", phase="mask"}]'], "greater than or equal to 1"),
        (['simulate.dropouts=[{round=1, client_id="client-1", phase="sleep"}]'], "'confirm' or 'reveal'"),
        (
            [
                'simulate.dropouts=[{round=2, client_id="client-1", phase="mask"},'
                '{round=2, client_id="client-1", phase="share"}]'
            ],
            "twice in round 2",
        ),
    ],
)
def test_combinations_that_cannot_be_honoured(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["support=voted-topk", "density=0.1", "mode=insecure"], "see each client's votes"),
        (["support=voted-topk", "density=0.1", "method=fra", "products=exact", "vote_every=2"], "others in the next"),
        (["support=voted-topk", "density=0.1", "method=lora-fair"], "must travel whole"),
        (["support=voted-topk", "density=0.1", "method=rolora", "vote_every=2"], "sends other arrays in them"),
        (["support=voted-topk", "densities=[0.5, 0.5, 1.0, 1.0, 1.0]"], "a vote is for one support"),
        (["support=server-topk", "density=0.1", "vote_every=2"], "vote_every = 2 has no effect"),
        (["support=seeded-random-k", "density=0.1", "exploration=0.5"], "exploration = 0.5 has no effect"),
        (["densities=[0.5, 0.5, 1.0, 1.0, 1.0]"], "a dense support has density 1"),
        (["support=server-topk", "densities=[0.5, 1.0]"], "2 densities for 5 clients"),
        (["support=seeded-random-k", "density=0.1", "whole_rounds=1"], "whole_rounds = 1 has no effect"),
        (["support=server-topk", "density=0.1", "whole_rounds=12"], "none of 12 rounds"),
        (["support=server-topk", "densities=[0.5, 0.5, 1.0, 1.0, 1.0]", "whole_rounds=1"], "every density"),
        (["support=server-topk", "density=0.5", "densities=[0.5, 0.5, 1.0, 1.0, 1.0]"], "one density for each client"),
        (["support=server-topk", "densities=[0.5, 0.5, 0.5, 1.0, 1.0]"], "2 of 5 clients have a density of 1 or more"),
        (["support=server-topk", "densities=[0.5, 0.5, 1.0, 1.0, 1.0]", "min_survivors=4"], "which needs 4 to hide"),
        (["support=server-topk", "densities=[0.0, 0.5, 1.0, 1.0, 1.0]"], "greater than 0"),
        (["support=seeded-random-k", "densities=[0.5, 0.5, 1.0, 1.0, 1.0]", "method=fedask"], "must travel whole"),
    ],
)  # fmt: skip
def test_what_may_not_travel_like_that(overrides: list[str], words: str) -> None:
    sections = {
        "mode": "secure_aggregation", "min_survivors": "secure_aggregation", "method": "federation",
        "products": "aggregation",
    }  # fmt: skip
    keys = [f"{sections.get(text.split('=')[0], 'communication')}.{text}" for text in overrides]
    assert words in refusal(*keys)


@pytest.mark.parametrize(
    ("method", "overrides", "words"),
    [
        ("ffa", ["aggregation.products=exact"], "aggregation.products has no effect with federation.method = 'ffa'"),
        ("fra", ["aggregation.switch_round=3"], "aggregation.switch_round has no effect"),
        ("rac-lora", ["aggregation.server_optimizer=adam"], "aggregation.server_optimizer has no effect"),
        ("fra", ["aggregation.server_learning_rate=0.5"], "aggregation.server_learning_rate has no effect"),
        ("fedit", ["aggregation.server_momentum=0.5"], "no effect with aggregation.server_optimizer = 'average'"),
        ("fra", ["aggregation.products=exact", "aggregation.fallback=two-pass"], "aggregation.products = 'exact'"),
        ("fra", ["aggregation.tolerance=0.1"], "no effect with aggregation.fallback = 'none'"),
        ("fra", ["lora.ranks=[8, 8, 8, 8, 8]"], "lora.ranks has no effect with federation.method = 'fra'"),
        ("flexlora", ["lora.ranks=[8, 4]"], "2 ranks for 5 clients"),
        ("flexlora", ["lora.ranks=[8, 4, 4, 4, 16]"], "the largest of lora.ranks is 16, but lora.rank = 8"),
        ("flora", ["lora.ranks=[2, 4, 4, 4, 4]"], "the largest of lora.ranks is 4, but lora.rank = 8"),
        ("flexlora", ["lora.ranks=[8, 8, 8, 4, 4]"], "3 of 5 clients have the largest of lora.ranks"),
        ("flora", ["lora.ranks=[2, 1, 8, 1, 2]", "secure_aggregation.max_colluders=0"], "4 are needed, as 2 may"),
        ("hybrid", ["aggregation.switch_round=13"], "a hybrid of 12 rounds cannot change to FFA-LoRA in round 13"),
        ("hybrid", ["federation.rounds=1"], "a hybrid of 1 rounds cannot change to FFA-LoRA in round 1"),
        ("rac-lora", ["aggregation.block_rounds=13"], "nothing would be merged"),
        ("hybrid", ["communication.support=seeded-random-k", "communication.density=0.5"], "mean nothing in part"),
        ("fedask", ["communication.value_bits=7"], "at least 8 bits a value, not 7"),
        ("flora", ["model.base_dtype=bfloat16"], "would round its changes away"),
        ("rac-lora", ["model.base_dtype=bfloat16"], "would round its changes away"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_honour(method: str, overrides: list[str], words: str) -> None:
    assert words in refusal(f"federation.method={method}", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.ranks=[8, 8, 8, 8, 4]"],
        ["lora.ranks=[8, 8, 8, 1, 2]", "secure_aggregation.min_survivors=5"],
        ["lora.ranks=[8, 4, 4, 4, 4]", "aggregation.products=exact"],
        ["lora.ranks=[8, 4, 4, 4, 4]", "secure_aggregation.mode=insecure"],
    ],
)
def test_ranks_that_leave_nobody_alone_in_a_sum(overrides: list[str]) -> None:
    assert load("federation.method=flexlora", *overrides).lora.ranks


def test_a_method_gets_its_options() -> None:
    fra = for_experiment(
        load("federation.method=fra", "aggregation.fallback=exact", "aggregation.tolerance=0.2")
    )
    assert isinstance(fra, FRALoRA)
    assert fra.cross == CrossTerm("sketch", fallback="exact", tolerance=0.2)
    hybrid = for_experiment(load("federation.method=hybrid", "aggregation.products=two-pass"))
    assert [(phase.name, rounds[0]) for phase, rounds in phases(hybrid, 12)] == [("fra", 1), ("ffa", 7)]
    chain = for_experiment(load("federation.method=rac-lora", "aggregation.block_rounds=3"))
    assert isinstance(chain, RACLoRA)
    assert chain.rounds == 3
    for name, listed in METHODS.items():
        assert type(for_experiment(load(f"federation.method={name}"))) is type(listed)


@pytest.mark.parametrize(
    ("overrides", "made"),
    [
        ([], None),
        (["aggregation.server_learning_rate=0.5"], Average(0.5)),
        (["aggregation.server_optimizer=momentum", "aggregation.server_momentum=0.8"], Momentum(1.0, 0.8)),
        (["aggregation.server_optimizer=adam"], Adam(1e-3, beta1=0.9)),
        (["aggregation.server_optimizer=adam", "aggregation.server_learning_rate=0.01"], Adam(0.01, beta1=0.9)),
    ],
)  # fmt: skip
def test_a_server_optimizer_gets_its_options(overrides: list[str], made: ServerOptimizer | None) -> None:
    assert server_optimizer_for(load("federation.method=fedit", *overrides)) == made


def test_insecure_mode_needs_no_thresholds() -> None:
    assert load("federation.clients=2", "secure_aggregation.mode=insecure").federation.clients == 2


def test_a_private_size_must_be_declared() -> None:
    message = refusal("data.public=false", 'data.dataset_id="reviews"')
    assert "data.declared_examples_per_client" in message
    assert "leak" in message


SIZES = "data.declared_examples=[300, 80, 120, 1000, 60]"
UNDECLARED = PRIVATE.replace("declared_examples_per_client = 2000", "")


def test_each_client_may_declare_a_size_of_its_own() -> None:
    experiment = load(SIZES, "training.batch_size=60", text=UNDECLARED)
    assert experiment.declared_sizes == dict(
        zip(experiment.client_ids, (300, 80, 120, 1000, 60), strict=True)
    )
    assert Experiment.from_toml(experiment.to_toml()) == experiment
    plans = plan_clients(experiment, experiment.declared_sizes)
    assert [plan.sample_rate for plan in plans.values()] == [60 / 300, 60 / 80, 60 / 120, 60 / 1000, 1.0]
    assert plans["client-5"].noise_multiplier > plans["client-4"].noise_multiplier  # 1 in 1, 1 in 16


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.declared_examples=[300, 80]"], "2 numbers for 5 clients"),
        ([SIZES, "data.declared_examples_per_client=100"], "both say how many examples"),
        ([SIZES, "training.batch_size=61"], "60 examples that data.declared_examples says of client-5"),
        ([SIZES, "training.batch_size=60", "privacy.delta=0.00065"], "not below 1/1560"),
    ],
)
def test_declared_sizes_that_do_not_fit_are_refused(overrides: list[str], reason: str) -> None:
    assert reason in refusal(*overrides, text=UNDECLARED)


def test_private_data_need_a_name_for_their_ledger() -> None:
    message = refusal("data.public=false")
    assert "data.dataset_id is missing" in message


def test_private_labels_must_be_declared() -> None:
    message = refusal(text=PRIVATE.replace('labels = ["well", "ill"]', ""))
    assert "data.labels is missing" in message


def test_private_data_without_a_public_evaluation_split_reports_no_accuracy() -> None:
    assert not load(text=PRIVATE).data.evaluation_may_be_reported
    assert load("data.evaluation_public=true", text=PRIVATE).data.evaluation_may_be_reported


def test_delta_is_below_one_over_all_examples() -> None:
    # 5 clients x 2000 examples: 1e-4 is exactly 1/10000, which is not below it.
    assert "not below 1/10000" in refusal("privacy.delta=1e-4", text=PRIVATE)
    assert load("privacy.delta=9.9e-5", text=PRIVATE).privacy.delta == 9.9e-5


def test_delta_is_checked_against_public_data_once_it_is_counted() -> None:
    experiment = load("privacy.delta=1e-3")
    experiment.require_delta_below(999)
    with pytest.raises(ConfigError, match="not below 1/1000"):
        experiment.require_delta_below(1000)


def test_a_batch_larger_than_the_declared_data_is_refused() -> None:
    assert "sampling rate cannot exceed 1" in refusal("training.batch_size=2001", text=PRIVATE)
    assert load("training.batch_size=2000", text=PRIVATE).training.batch_size == 2000


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


MODELLING = ("model.task=language-modelling",)


def test_language_modelling_needs_no_labels_even_of_private_data() -> None:
    text = PRIVATE.replace('labels = ["well", "ill"]\n', "")
    experiment = load(*MODELLING, "data.prompt_column=question", text=text)
    assert (experiment.model.metric, experiment.data.labels) == ("perplexity", None)
    assert load().model.metric == "accuracy"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((*MODELLING, "data.labels=['a', 'b']"), "data.labels has no meaning"),
        ((*MODELLING, "data.label_column=stars"), "data.label_column has no meaning"),
        ((*MODELLING, "data.partition=dirichlet"), "data.partition = 'dirichlet' has no meaning"),
        ((*MODELLING, "model.pooling=native"), "model.pooling = 'native' has no meaning"),
        (("data.prompt_column=question",), "data.prompt_column has no effect on classification"),
        (("training.device=tpu",), "'tpu' is no device here"),
        (("training.per_example=fast",), "training.per_example should be 'auto', 'direct', 'hooks' or 'ghost'"),
        (("lora.target_modules=query",), "is one text; give an array"),
        (("lora.target_modules=['all-linear', 'query']",), "name it alone"),
        (("model.base_dtype=float16",), "model.base_dtype should be 'float32' or 'bfloat16'"),
    ],
)  # fmt: skip
def test_what_a_task_or_a_training_cannot_have(overrides: tuple[str, ...], words: str) -> None:
    assert words in refusal(*overrides)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_an_experiment(path: Path) -> None:
    assert Experiment.load(path).experiment.name
