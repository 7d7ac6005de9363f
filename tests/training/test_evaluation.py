"""Accuracy and perplexity over public examples, against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedlora_priv.errors import DataError
from fedlora_priv.training import PrivateTrainer, TokenisedExamples
from fedlora_priv.training.evaluation import LARGEST_MEAN_LOSS, evaluate


def by_hand(model, examples):
    """Every token that follows a prompt, one example at a time, without padding or batches."""
    losses = []
    prompts = examples.prompt_lengths if examples.prompt_lengths is not None else [0] * len(examples)
    for ids, prompt in zip(examples.input_ids, prompts, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].double()
        for position in range(max(1, int(prompt)), len(ids)):
            losses.append(-float(logits[position - 1].log_softmax(-1)[ids[position]]))
    return losses


@pytest.mark.parametrize("with_prompts", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 20, 4096])
def test_perplexity_is_over_tokens_however_batches_are_cut(
    tiny_model, make_examples, with_prompts, max_tokens
):
    examples = make_examples(9, labels=False)
    if with_prompts:
        lengths = np.minimum(np.arange(9) % 4, examples.lengths())
        examples = TokenisedExamples(examples.input_ids, None, examples.pad_id, lengths.astype(np.int64))
    trainer = PrivateTrainer(tiny_model("llama-lm"))
    losses = by_hand(trainer.model, examples)
    found = trainer.evaluate(examples, max_tokens_per_microbatch=max_tokens)
    assert (found.metric, found.counted) == ("perplexity", len(losses))
    assert found.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_nothing_to_predict_is_refused(tiny_model):
    trainer = PrivateTrainer(tiny_model("llama-lm"))
    one_token = TokenisedExamples((np.array([5]), np.array([6])), None, 0)
    for examples in (one_token, one_token.subset([])):
        with pytest.raises(DataError, match="nothing to evaluate on"):
            trainer.evaluate(examples)


@pytest.mark.parametrize("logit", [math.nan, 1e30])
def test_a_diverged_model_has_a_finite_figure(make_examples, logit):
    """A run that has been paid for is reported, and a report holds finite numbers only."""

    class Diverged(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, 97)
            logits[..., 0] = logit  # the padding token, which no example holds

            class Output:
                pass

            output = Output()
            output.logits = logits
            return output

    batch = make_examples(3, labels=False).collate(torch.device("cpu"))
    assert evaluate(Diverged(), [batch]).value == math.exp(LARGEST_MEAN_LOSS)
