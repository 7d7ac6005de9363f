"""Microbatches partition the batch, stay within the token bound, and do not change the clipped sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_priv.errors import DataError
from fedlora_priv.training import TokenisedExamples, tokenise
from fedlora_priv.training.batching import collate, microbatches


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_microbatches_partition_within_the_bound(lengths, max_tokens):
    groups = microbatches(np.array(lengths, dtype=np.int64), max_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert padded <= max_tokens or len(group) == 1


def test_sorting_by_length_saves_padding():
    lengths = np.array([2, 40] * 20)
    padded = sum(len(g) * lengths[g].max() for g in microbatches(lengths, 400))
    assert padded < 1.1 * lengths.sum()


def test_collate_pads_on_the_right_and_masks():
    batch = collate(TokenisedExamples((np.array([5, 6]), np.array([7])), None, pad_id=9), torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


class _Words:
    """A tokenizer without special tokens: one id per word."""

    pad_token_id = 0

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[len(word) for word in text.split()][:max_length] for text in texts]}


def test_tokenise_cuts_and_keeps_empty_texts_valid():
    examples = tokenise(_Words(), ["a bb ccc", "", "dd"], [0, 1, 1], max_length=2)
    assert [ids.tolist() for ids in examples.input_ids] == [[1, 2], [0], [2]]
    assert len(tokenise(_Words(), [], [], max_length=2)) == 0


def test_examples_are_checked_and_hidden():
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        TokenisedExamples((np.array([1]), np.array([2])), np.array([0]), 0)
    with pytest.raises(DataError, match="no tokens"):
        TokenisedExamples((np.array([], dtype=np.int64),), None, 0)
    assert "12345" not in repr(TokenisedExamples((np.array([12345]),), np.array([1]), 0))
