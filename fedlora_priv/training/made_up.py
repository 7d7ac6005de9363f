"""Made-up examples and adapters, for checks of a model that must cost no budget and see no data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.adapters import read_state
from fedlora_priv.methods.layout import Layout
from fedlora_priv.training.examples import Examples, ImageExamples, TokenisedExamples
from fedlora_priv.training.fitting import takes_images


def made_up_examples(model: Any, lengths: tuple[int, ...]) -> Examples:
    """Return one example of random tokens for each length, or as many random images if the model takes images.

    A classifier's have labels, all the classes in turn.

    Args:
        model: a PEFT model; its configuration says what it takes.
        lengths: in tokens, at most what the model's positions allow.
    """
    base = model.get_base_model()
    config = base.config
    generator = np.random.default_rng(1)
    labels = np.arange(len(lengths), dtype=np.int64) % max(2, int(config.num_labels))
    if takes_images(base):
        sides = config.image_size
        height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
        shape = (len(lengths), config.num_channels, height, width)
        return ImageExamples(generator.normal(size=shape).astype(np.float32), labels)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    tokens = np.delete(np.arange(config.vocab_size), pad)
    ids = tuple(generator.choice(tokens, length).astype(np.int64) for length in lengths)
    is_generative = type(base).__name__.endswith(("LMHeadModel", "ForCausalLM"))
    return TokenisedExamples(ids, None if is_generative else labels, pad)


def made_up_state(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return random adapters and head, of a size at which everything that is trained has a gradient.

    At B = 0, where training begins, every gradient of A is zero, and any comparison of them succeeds.
    """
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(0, 0.05, value.shape).astype(np.float32)
        for name, value in read_state(model).items()
    }


def made_up_residual(layout: Layout) -> dict[str, NDArray[np.float32]]:
    """Return random residuals of rank 1 for all base weights of a model, in the form of a state."""
    generator = np.random.default_rng(2)
    residual = {}
    for module in layout.modules:
        shapes = {"base_B": (module.out_features, 1), "base_A": (1, module.in_features)}
        for part, shape in shapes.items():
            residual[f"{module.name}.{part}"] = generator.normal(0, 0.05, shape).astype(np.float32)
    return residual
