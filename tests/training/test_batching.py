"""Microbatches partition the batch, stay within the token bound, and do not change the clipped sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_priv.errors import ConfigError, DataError
from fedlora_priv.training import TokenisedExamples, tokenise
from fedlora_priv.training.batching import microbatches, padded_widths
from fedlora_priv.training.examples import ImageExamples
from fedlora_priv.training.losses import example_losses, next_token_losses

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_microbatches_partition_within_the_bound(lengths, max_tokens):
    groups = microbatches(np.array(lengths, dtype=np.int64), max_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        widths = {-(-lengths[i] // 8) * 8 for i in group}
        assert len(widths) == 1  # nobody's padding depends on who else was drawn
        assert (
            len({lengths[i] % 8 == 0 for i in group}) == 1
        )  # nor whether there is any: models drop an idle mask
        assert len(group) * widths.pop() <= max_tokens or len(group) == 1


def test_microbatches_of_a_width_are_equally_large():
    assert [len(group) for group in microbatches(np.full(9, 5), max_tokens=64)] == [5, 4]


def test_widths_save_padding():
    lengths = np.random.default_rng(0).integers(3, 64, 500)
    padded = sum(len(g) * padded_widths(lengths[g]).max() for g in microbatches(lengths, 1024))
    assert padded < 1.15 * lengths.sum()
    assert padded < 0.65 * len(lengths) * lengths.max()


def test_collate_pads_on_the_right_and_masks():
    batch = TokenisedExamples((np.array([5, 6]), np.array([7])), np.array([1, 0]), pad_id=9).collate(CPU)
    assert len(batch) == 2
    assert batch.inputs["input_ids"].tolist() == [[5, 6, *[9] * 6], [7, *[9] * 7]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, *[0] * 6], [1, *[0] * 7]]
    assert batch.labels.tolist() == [1, 0]
    assert batch.targets is None


def test_targets_leave_out_the_first_token_the_prompt_and_the_padding():
    ids = (np.arange(1, 5), np.arange(1, 4), np.array([1]))
    assert TokenisedExamples(ids, None, 0).collate(CPU).targets.int().tolist() == [
        [0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0], [0] * 8
    ]  # fmt: skip
    prompted = TokenisedExamples(ids, None, 0, np.array([2, 3, 0])).subset([1, 0])
    assert prompted.collate(CPU).targets.int().tolist() == [[0] * 8, [0, 0, 1, 1, 0, 0, 0, 0]]


def test_the_loss_counts_the_answer_only(tiny_base):
    model = tiny_base("llama-lm").eval()
    answer, longer = np.array([7, 8, 9]), np.arange(20, 40)
    prompts = (np.array([3, 4]), np.array([5, 6]))
    ids = (*(np.concatenate([prompt, answer]) for prompt in prompts), longer)
    batch = TokenisedExamples(ids, None, 0, np.array([2, 2, 20])).collate(CPU)
    logits = model(**batch.inputs).logits.detach().requires_grad_(True)
    losses = example_losses(logits, batch)
    logs = logits.detach().log_softmax(dim=-1)
    wanted = -logs[:2, [1, 2, 3], answer].mean(dim=1)
    torch.testing.assert_close(losses[:2].detach(), wanted)
    assert losses[2] == 0  # all prompt: nothing to learn, and no nan
    losses.sum().backward()
    assert not logits.grad[:, 0].any()
    assert not logits.grad[2].any()
    assert logits.grad[:2, 1:4].any(dim=-1).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_next_token_losses_equal_brute_force(lengths, random):
    ids = tuple(np.array([random.randrange(1, 11) for _ in range(n)]) for n in lengths)
    prompts = np.array([random.randrange(0, n + 2) for n in lengths])
    batch = TokenisedExamples(ids, None, 0, prompts).collate(CPU)
    logits = torch.randn(*batch.targets.shape, 11, generator=torch.Generator().manual_seed(len(ids)))
    losses = next_token_losses(logits, batch.inputs["input_ids"], batch.targets)
    for row, (tokens, prompt) in enumerate(zip(ids, prompts, strict=True)):
        terms = [
            -float(logits[row, t - 1].log_softmax(dim=0)[tokens[t]])
            for t in range(1, len(tokens)) if t >= prompt
        ]  # fmt: skip
        assert float(losses[row]) == pytest.approx(np.mean(terms) if terms else 0.0, rel=1e-5, abs=1e-6)


def test_losses_are_float32_whatever_the_logits_are():
    ids = torch.tensor([[1, 2]])
    logits = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert next_token_losses(logits, ids, torch.tensor([[False, True]])).dtype == torch.float32


def test_logits_and_labels_of_different_kinds_are_refused():
    batch = TokenisedExamples((np.array([5, 6]),), np.array([1]), 0).collate(CPU)
    with pytest.raises(ConfigError, match="logits of 3 dimensions"):
        example_losses(torch.zeros(1, 2, 5), batch)


def test_images_are_examples_too():
    pixels = np.random.default_rng(0).normal(size=(3, 1, 32, 48)).astype(np.float32)
    images = ImageExamples(pixels, np.array([2, 0, 1]))
    assert images.lengths().tolist() == [6, 6, 6]
    batch = images.subset([2, 0]).collate(CPU)
    assert torch.equal(batch.inputs["pixel_values"], torch.from_numpy(pixels[[2, 0]]))
    assert batch.labels.tolist() == [1, 2]
    with pytest.raises(DataError, match="float32"):
        ImageExamples(pixels.astype(np.float64), np.array([2, 0, 1]))
    with pytest.raises(DataError, match="3 images but 2 labels"):
        ImageExamples(pixels, np.array([2, 0]))


def test_examples_of_a_kind_are_joined():
    first = TokenisedExamples((np.array([1]),), None, 0, np.array([1]))
    second = TokenisedExamples((np.array([2]), np.array([3])), None, 0, np.array([0, 1]))
    joined = first + second
    assert [ids.tolist() for ids in joined.input_ids] == [[1], [2], [3]]
    assert joined.prompt_lengths.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="only one of the two"):
        first + TokenisedExamples((np.array([2]),), None, 0)


class _Words:
    """A tokenizer without special tokens: one id per word."""

    pad_token_id = 0
    eos_token_id = 50

    def __call__(self, texts, truncation=False, max_length=None, add_special_tokens=True):
        return {"input_ids": [[len(word) for word in text.split()][:max_length] for text in texts]}


def test_tokenise_cuts_and_keeps_empty_texts_valid():
    examples = tokenise(_Words(), ["a bb ccc", "", "dd"], [0, 1, 1], max_length=2)
    assert [ids.tolist() for ids in examples.input_ids] == [[1, 2], [0], [2]]
    assert len(tokenise(_Words(), [], [], max_length=2)) == 0


def test_prompts_are_tokenised_apart_and_answers_end():
    examples = tokenise(_Words(), ["a bb ccc", "dd"], None, max_length=5, prompts=["x y", ""])
    assert [ids.tolist() for ids in examples.input_ids] == [[1, 1, 1, 2, 3], [2, 50]]
    assert examples.prompt_lengths.tolist() == [2, 0]
    with pytest.raises(DataError, match="1 texts but 2 prompts"):
        tokenise(_Words(), ["a"], None, max_length=5, prompts=["b", "c"])


def test_examples_are_checked_and_hidden():
    with pytest.raises(DataError, match="1 texts but 2 prompts"):
        TokenisedExamples((np.array([1]),), None, 0, np.array([1, 1]))
    with pytest.raises(DataError, match="labels and prompts"):
        TokenisedExamples((np.array([1]),), np.array([1]), 0, np.array([1]))
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        TokenisedExamples((np.array([1]), np.array([2])), np.array([0]), 0)
    with pytest.raises(DataError, match="no tokens"):
        TokenisedExamples((np.array([], dtype=np.int64),), None, 0)
    assert "12345" not in repr(TokenisedExamples((np.array([12345]),), np.array([1]), 0))
