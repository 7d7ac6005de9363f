"""What engines refuse, what they survive, and that they leave a model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from fedlora_priv.adapters import read_state, trainable_parameters
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings
from fedlora_priv.training.clipping import choose_engine, per_example_clipping
from fedlora_priv.training.engine import GradientRows
from fedlora_priv.training.linear import LinearGradients, weight_gradients
from fedlora_priv.training.losses import model_losses

MODES = ("direct", "hooks", "ghost")
CPU = torch.device("cpu")


def _sums(model, trained, losses, *, clip_norm=0.3, **options):
    """The clipped sums and the counts of one microbatch."""
    with per_example_clipping(model, trained, **options) as engine:
        counts = engine.add(losses, clip_norm)
    sums = {name: parameter.summed_grad for name, parameter in trained.items()}
    for parameter in trained.values():
        parameter.summed_grad = None
    return sums, counts


def _alone(model, trained, inputs, clip_norm):
    """The clipped sum of a plain model's squared outputs, one example at a time."""
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
    for row in inputs:
        rows = torch.autograd.grad(model(row[None]).square().sum(), list(trained.values()))
        norm = float(torch.cat([r.flatten() for r in rows]).double().norm())
        for name, gradient in zip(trained, rows, strict=True):
            total[name] += gradient.double() * min(1.0, clip_norm / norm)
    return total


def _squares(inputs):
    """One loss per example: the sum of its squared outputs."""
    return lambda model: model(inputs).flatten(1).square().sum(dim=1)


class Small(nn.Module):
    """Two linear layers around one that may be used twice, and a norm."""

    def __init__(self, uses=1):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Linear(5, 6), nn.Linear(6, 6)
        self.norm, self.last, self.uses = nn.LayerNorm(6), nn.Linear(6, 3), uses

    def forward(self, inputs):
        hidden = self.first(inputs).tanh()
        for _ in range(self.uses):
            hidden = self.middle(hidden).tanh()
        return self.last(self.norm(hidden))


def _named(model, *parts):
    return {name: p for name, p in model.named_parameters() if name.startswith(parts)}


def _inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4, 5), (4, 7, 5), (4, 2, 3, 5)])
def test_inputs_of_any_number_of_dimensions(shape, mode):
    model, inputs = Small(), _inputs(*shape)
    trained = _named(model, "first", "middle", "last")
    sums, counts = _sums(model, trained, _squares(inputs), mode=mode)
    for name, wanted in _alone(model, trained, inputs, 0.3).items():
        torch.testing.assert_close(sums[name], wanted, rtol=1e-5, atol=1e-7)
    assert (counts.examples, counts.clipped) == (4, 4)


# One layer used twice in a forward pass: an example's gradient is the sum of both uses.
@pytest.mark.parametrize("mode", ["direct", "hooks"])
def test_a_layer_used_twice_is_right(mode):
    model, inputs = Small(uses=3), _inputs(4, 7, 5)
    trained = _named(model, "middle", "last")
    sums, _ = _sums(model, trained, _squares(inputs), mode=mode)
    for name, wanted in _alone(model, trained, inputs, 0.3).items():
        torch.testing.assert_close(sums[name], wanted, rtol=1e-5, atol=1e-7)


def test_a_layer_used_twice_is_refused_by_ghost_clipping():
    model = Small(uses=2)
    with pytest.raises(ConfigError, match="tying is not supported"):
        _sums(model, _named(model, "middle"), _squares(_inputs(4, 7, 5)), mode="ghost")


def test_one_parameter_in_two_modules_is_right():
    model, inputs = Small(), _inputs(4, 7, 5)
    model.norm = nn.Linear(6, 6, bias=False)
    model.norm.weight = model.middle.weight
    trained = {"middle.weight": model.middle.weight}
    sums, _ = _sums(model, trained, _squares(inputs), mode="direct")
    wanted = _alone(model, trained, inputs, 0.3)["middle.weight"]
    torch.testing.assert_close(sums["middle.weight"], wanted, rtol=1e-5, atol=1e-7)


class Leaky(Small):
    """Uses a trained weight outside its layer, past every recording."""

    def forward(self, inputs):
        return super().forward(inputs) + linear(inputs[..., :3], self.last.weight[:, :3])


def test_a_weight_used_outside_its_layer_is_refused():
    model = Leaky()
    with pytest.raises(ConfigError, match=r"last\.weight is also used outside its own layer"):
        _sums(model, _named(model, "last"), _squares(_inputs(4, 5)), mode="direct")


@pytest.mark.parametrize("mode", ["direct", "ghost"])
def test_layers_that_are_not_linear_are_refused_and_auto_takes_hooks(mode):
    model, inputs = Small(), _inputs(4, 7, 5)
    trained = _named(model, "norm", "last")
    with pytest.raises(ConfigError, match=rf'mode .{mode}. does not fit: .*LayerNorm.*; use "auto"'):
        _sums(model, trained, _squares(inputs), mode=mode)
    choice = choose_engine(model, trained)
    assert choice.name == "hooks"
    assert "LayerNorm" in choice.reason
    sums, _ = _sums(model, trained, _squares(inputs))
    for name, wanted in _alone(model, trained, inputs, 0.3).items():
        torch.testing.assert_close(sums[name], wanted, rtol=1e-5, atol=1e-7)


class Flattening(Small):
    """Runs its last layer on all tokens of all examples together."""

    def forward(self, inputs):
        hidden = self.first(inputs).flatten(0, 1)
        return self.last(hidden).view(*inputs.shape[:2], 3)


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_do_not_see_one_row_an_example_are_refused(mode):
    model = Flattening()
    with pytest.raises(ConfigError, match="one row for each example"):
        _sums(model, _named(model, "last"), _squares(_inputs(4, 7, 5)), mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_no_example_leaks_what_is_not_finite(bad, mode, tiny_model, make_images):
    model, images = tiny_model("vit"), make_images(6)
    trained = trainable_parameters(model)
    clean = images.subset([0, 1, 3, 4, 5]).collate(CPU)
    dirty = images.collate(CPU)
    dirty.inputs["pixel_values"][2] *= bad
    for clipping in ("flat", "per-layer"):
        wanted, _ = _sums(model, trained, lambda m: model_losses(m, clean), mode=mode, clipping=clipping)
        found, counts = _sums(model, trained, lambda m: model_losses(m, dirty), mode=mode, clipping=clipping)
        assert (counts.examples, counts.non_finite) == (6, 1)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_not_finite_is_no_gradient(mode, tiny_model, make_examples):
    model, batch = tiny_model(), make_examples(5).collate(CPU)
    weights = torch.tensor([1.0, float("inf"), 1.0, float("nan"), 1.0])
    trained = trainable_parameters(model)
    found, counts = _sums(model, trained, lambda m: model_losses(m, batch) * weights, mode=mode)
    assert counts.non_finite == 2
    others = make_examples(5).subset([0, 2, 4]).collate(CPU)
    wanted, _ = _sums(model, trained, lambda m: model_losses(m, others), mode=mode)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_model_is_left_as_it_was(mode, checkpointing, tiny_model, make_examples):
    if mode == "ghost" and checkpointing:
        pytest.skip("refused; see below")
    model, batch = tiny_model(), make_examples(5).collate(CPU)
    trained = {n: p for n, p in trainable_parameters(model).items() if n.endswith("lora_B")}
    before = [set(vars(m)) for m in model.modules()], [p.requires_grad for p in model.parameters()]

    def interrupted(m):
        model_losses(m, batch).sum().backward()  # leaves private activations and gradients behind
        raise KeyboardInterrupt

    options = {"mode": mode, "gradient_checkpointing": checkpointing}
    for losses in (lambda m: model_losses(m, batch), interrupted):
        try:
            _sums(model, trained, losses, **options)
        except KeyboardInterrupt:
            assert losses is interrupted
        assert (
            [set(vars(m)) for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
        ) == before
        assert not any(m.training or m._forward_hooks or m._backward_hooks for m in model.modules())
        left = {name for p in model.parameters() for name in vars(p)} - {"summed_grad"}
        assert not left
        assert all(p.grad is None for p in model.parameters())


def test_a_replaced_forward_stays_in_force(tiny_model, make_examples):
    """Such as a wrapper that moves a layer's inputs to its device."""
    model, batch = tiny_model(), make_examples(5).collate(CPU)
    layer = next(m for name, m in model.named_modules() if name.endswith("lora_B.default"))
    calls, real = [], layer.forward
    layer.forward = lambda inputs: calls.append(1) or real(inputs)
    choice = choose_engine(model, trainable_parameters(model))
    assert choice.name == "hooks"
    assert "has been replaced" in choice.reason
    _sums(model, trainable_parameters(model), lambda m: model_losses(m, batch))
    assert calls
    assert "forward" in vars(layer)


# Trap 6: gradient checkpointing.
def test_checkpointing_runs_layers_twice_and_keeps_random_states(tiny_model, make_examples):
    model, batch = tiny_model("llama-lm"), make_examples(5, labels=False).collate(CPU)
    runs = []
    attention = next(m for name, m in model.named_modules() if name.endswith("layers.0.self_attn"))
    attention.register_forward_hook(lambda *_: runs.append(1))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for mode in ("direct", "hooks"):
        runs.clear()
        _sums(
            model, trainable_parameters(model), lambda m: model_losses(m, batch), mode=mode,
            gradient_checkpointing=True,
        )  # fmt: skip
        assert len(runs) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpointing_is_refused_where_it_cannot_be_exact(tiny_model):
    model = tiny_model()
    trained = trainable_parameters(model)
    with (
        pytest.raises(ConfigError, match="ghost clipping runs backward twice"),
        per_example_clipping(model, trained, mode="ghost", gradient_checkpointing=True),
    ):
        pass
    small = Small()
    with (
        pytest.raises(ConfigError, match="no layers that can be recomputed"),
        per_example_clipping(small, _named(small, "last"), gradient_checkpointing=True),
    ):
        pass
    model.get_base_model().encoder.gradient_checkpointing_enable()
    for mode in MODES:
        with (
            pytest.raises(ConfigError, match="gradient checkpointing is on"),
            per_example_clipping(model, trained, mode=mode),
        ):
            pass


def test_the_trainer_says_which_engine_and_why(tiny_model):
    trainer = PrivateTrainer(tiny_model())
    common = {"steps": 1, "sample_rate": 1.0, "planned_batch_size": 1.0, "noise_multiplier": 1.0,
              "clip_norm": 1.0, "learning_rate": 0.1}  # fmt: skip
    choice = trainer.engine(StepSettings(**common))
    assert (choice.name, choice.reason) == ("direct", "the fastest: all 9 trained layers are linear")
    assert trainer.engine(StepSettings(**common, mode="ghost")).name == "ghost"
    assert trainer.engine(StepSettings(**common), frozenset({"B"})).reason.startswith("the fastest: all 4")


def test_a_trained_array_without_gradient_is_an_error(tiny_model, make_examples):
    model, batch = tiny_model(), make_examples(4).collate(CPU)
    trained, encoder = trainable_parameters(model), model.get_base_model().encoder
    for mode in MODES:
        with pytest.raises(FedloraError, match=r"classifier.bias got no per-example gradient"):
            _sums(model, trained, lambda _: encoder(**batch.inputs).last_hidden_state.sum((1, 2)), mode=mode)
    assert read_state(model).keys() == trained.keys()


def test_norms_of_cancelling_tokens_are_not_too_small():
    """Two tokens that nearly cancel: in float32 the sum over pairs loses the whole norm."""
    inputs, outputs = _inputs(3, 1, 40), _inputs(3, 1, 50) + 1
    inputs = torch.cat([inputs, inputs], dim=1)
    outputs = torch.cat([outputs, -outputs * (1 + 2**-16)], dim=1)
    exact = (outputs.double().transpose(1, 2) @ inputs.double()).square().sum(dim=(1, 2))
    pairs = (inputs @ inputs.transpose(1, 2)) * (outputs @ outputs.transpose(1, 2))
    assert (pairs.sum(dim=(1, 2)).clamp(min=0) < 0.5 * exact).any()  # what is avoided
    ours = LinearGradients(inputs, outputs).squares()
    assert (ours >= exact).all()
    assert (ours < 1.01 * exact).all()


def test_tokens_that_cancel_altogether_are_still_clipped():
    """At 2^-26 apart even float64 loses the norm; what is added must stay within the clip norm all the same."""
    layer, clip_norm = nn.Linear(64, 8, bias=False), 1e-3
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(1, 1, 64, generator=generator).repeat(1, 2, 1)
    inputs[:, 0] += 1e-6 * torch.rand(64, generator=generator)
    outputs = 1e6 * torch.rand(1, 1, 8, generator=generator) * torch.tensor([1.0, -1.0])[None, :, None]
    sums, _ = _sums(
        layer,
        {"weight": layer.weight},
        lambda m: (m(inputs) * outputs).flatten(1).sum(1),
        clip_norm=clip_norm,
    )
    assert float(sums["weight"].norm()) <= clip_norm


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [1e30, 1e36])
def test_factors_that_float32_cannot_hold_leave_the_example_out(mode, norm):
    """A factor of 1e-41 has three digits in float32, and the clip norm would be exceeded by a thousandth."""
    model = Small()
    trained = _named(model, "last")
    inputs = _inputs(3, 2, 5)
    for clip_norm in (1e-5, 1e-4):
        sums, counts = _sums(
            model, trained, lambda m: m(inputs).flatten(1).sum(1) * norm, clip_norm=clip_norm, mode=mode
        )
        assert counts.non_finite == 3
        assert all(not value.any() for value in sums.values())


class Sharing(Small):
    """Runs its trained layer on the examples, and on something that all of them share, as DeBERTa does."""

    def forward(self, inputs):
        hidden = self.first(inputs)
        shared = self.middle(hidden.new_ones(1, *hidden.shape[1:])).tanh()
        return self.last(self.middle(hidden).tanh() * shared)


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_also_used_on_what_examples_share_is_refused(mode):
    """The gradient of the shared use is everybody's: no example's own clipping bounds it."""
    model = Sharing()
    with pytest.raises(ConfigError, match=r"one row for each example|no ghost clipping"):
        _sums(model, _named(model, "middle"), _squares(_inputs(4, 7, 5)), mode=mode)
    inputs = _inputs(1, 7, 5)  # alone, everything is its own
    if mode != "ghost":
        sums, _ = _sums(model, _named(model, "middle"), _squares(inputs), mode=mode)
        for name, wanted in _alone(model, _named(model, "middle"), inputs, 0.3).items():
            torch.testing.assert_close(sums[name], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("tokens", "width", "out"), [(1, 64, 64), (4, 64, 3), (50, 64, 8), (50, 8, 64)])
def test_both_forms_of_a_linear_gradient_agree(tokens, width, out):
    inputs, outputs, weights = (
        _inputs(5, tokens, width),
        _inputs(5, tokens, out) - 0.3,
        torch.rand(5).double(),
    )
    factors = LinearGradients(inputs, outputs)
    rows = factors.one_by_one()
    torch.testing.assert_close(factors.squares(), rows.squares(), rtol=1e-5, atol=0)
    wanted = torch.einsum("n,nto,nti->oi", weights, outputs.double(), inputs.double())
    torch.testing.assert_close(factors.weighted_sum(weights), wanted)
    torch.testing.assert_close(rows.weighted_sum(weights), wanted, rtol=1e-5, atol=1e-5)
    chosen = weight_gradients(
        inputs if tokens > 1 else inputs[:, 0], outputs if tokens > 1 else outputs[:, 0]
    )
    assert isinstance(chosen, LinearGradients if tokens == 1 else GradientRows)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_is_cut_off_leaves_no_sum_behind(mode):
    """Parameters carry their attributes into pickles; a sum without noise must not be among them."""
    model = Small()
    trained = _named(model, "last")
    seen = []

    def cut_off():
        with per_example_clipping(model, trained, mode=mode) as engine:
            engine.add(_squares(_inputs(4, 7, 5)), 1.0)
            seen.extend(bool(parameter.summed_grad.any()) for parameter in trained.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert seen == [True, True]
    for parameter in trained.values():
        assert getattr(parameter, "summed_grad", None) is None
        assert parameter.grad is None
