"""What of an experiment file goes together: methods, supports, ranks, thresholds and tasks, and their options."""

from __future__ import annotations

import pytest

from fedlora_priv.methods import METHODS, for_experiment, phases, server_optimizer_for
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.optimizers import Adam, Average, Momentum, ServerOptimizer
from fedlora_priv.methods.raclora import RACLoRA
from tests.experiments import PRIVATE, load, refusal


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
