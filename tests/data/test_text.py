"""`TextDataModule` gives what the tokenizer gives, in few shapes, and every row once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from data.texts import NUM_SPECIAL, plain_tokenizer, text, word_tokenizer, write

from lightning_gaudi.data import TextDataModule, choose_buckets
from lightning_gaudi.data.batching import Filler

LENGTHS = [3, 9, 4, 5, 8, 2, 9, 20, 1, 12]


def rows(lengths=LENGTHS, **columns):
    made = [{"text": text(n, i), "label": i % 2} for i, n in enumerate(lengths)]
    for name, value in columns.items():
        for i, row in enumerate(made):
            row[name] = value(i)
    return made


def module(tmp_path, data=None, tokenizer=None, suffix="jsonl", **options):
    path = write(tmp_path / f"train.{suffix}", data or rows())
    options = {"train": path, "num_buckets": 3, "batch_size": 2, "shuffle": False, **options}
    return TextDataModule(tokenizer or word_tokenizer(), **options)


def rows_of(loader):
    """Each real row of a loader by its number: the batch's row without padding, and its label."""
    found = {}
    for indices, batch in zip(loader.batch_sampler, loader, strict=True):
        for i, index in enumerate(indices):
            if not isinstance(index, Filler):
                mask = batch["attention_mask"][i].bool()
                is_of_tokens = {
                    n: v.dim() > 1 and v.shape[1] == len(mask) for n, v in batch.items()
                }
                row = {n: v[i][mask] if is_of_tokens[n] else v[i] for n, v in batch.items()}
                assert index not in found
                found[index] = row
    return found


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_against_the_tokenizer(tmp_path, suffix):
    tokenizer = word_tokenizer()
    data = rows(second=lambda i: text(1 + i % 4, 30))
    held_out = write(tmp_path / f"test.{suffix}", data[::-1])
    given = module(tmp_path, data, tokenizer, suffix, text_pair_column="second", test=held_out)
    given.setup("test")
    found = rows_of(given.test_dataloader())
    assert len(found) == len(data)
    for i, row in enumerate(data[::-1]):
        expected = tokenizer(row["text"], row["second"], return_tensors="pt")
        assert found[i].keys() == expected.keys() | {"labels"}
        assert all(torch.equal(found[i][name], expected[name][0]) for name in expected)
        assert int(found[i]["labels"]) == row["label"]


def test_buckets_are_those_of_the_training_texts(tmp_path):
    others = write(tmp_path / "a.txt", rows([1, 2]))
    given = module(tmp_path, validate=None, predict=others)
    assert given.buckets == []
    given.setup("predict")
    assert given.buckets == choose_buckets([n + NUM_SPECIAL for n in LENGTHS], 3)
    assert {b["input_ids"].shape[1] for b in given.predict_dataloader()} == {given.buckets[0]}
    assert all(
        set(b) == {"input_ids", "token_type_ids", "attention_mask"}
        for b in given.predict_dataloader()
    )
    alone = TextDataModule(word_tokenizer(), predict=others, num_buckets=1)
    alone.setup("predict")
    assert alone.buckets == [4]
    assert alone.predict_dataloader().batch_sampler.buckets == [4]


def test_without_training_texts_each_file_has_its_own_buckets(tmp_path):
    long = write(tmp_path / "long.jsonl", rows([30], target=lambda i: text(20)))
    short = write(tmp_path / "short.jsonl", rows([3], target=lambda i: text(2)))
    given = TextDataModule(
        word_tokenizer(), validate=short, test=long, predict=short, target_column="target"
    )
    given.setup()
    given.setup("test")
    assert given.buckets == [32]
    given.setup("predict")
    assert given.buckets == [5]
    (tested,) = given.test_dataloader()
    (validated,) = given.val_dataloader()
    (predicted,) = given.predict_dataloader()
    assert tested["input_ids"].shape == (1, 32)
    assert tested["labels"].shape == (1, 22)
    assert validated["labels"].shape == (1, 4)
    assert predicted["input_ids"].shape == (1, 5)


def test_options_of_buckets(tmp_path):
    given = module(tmp_path, multiple_of=8, tokenizer=word_tokenizer(model_max_length=20))
    given.setup("fit")
    assert given.buckets == [8, 16, 20], "no bucket beyond what the model takes"
    given = module(tmp_path, buckets=[30, 8], tokens_per_batch=32)
    given.setup("fit")
    assert given.buckets == [8, 30]
    assert [tuple(b["input_ids"].shape) for b in given.train_dataloader()][-1] == (4, 8)


def test_training_batches_all_have_the_same_number_of_rows(tmp_path):
    given = module(tmp_path, shuffle=True, batch_size=4)
    given.setup("fit")
    loader = given.train_dataloader()
    assert {len(b["labels"]) for b in loader} == {4}
    assert {i for batch in loader.batch_sampler for i in batch} == set(range(10))
    given = module(tmp_path, drop_last=True, batch_size=4, num_buckets=1)
    given.setup("fit")
    seen = [i for batch in given.train_dataloader().batch_sampler for i in batch]
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize(
    ("label", "names", "expected", "ignored"),
    [
        (lambda i: "yx"[i % 2], ["x", "y"], torch.tensor([1, 0]), -100),
        (lambda i: i + 0.5, None, torch.tensor([0.5, 1.5]), math.nan),
        (lambda i: [0.0, i], None, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), math.nan),
        (lambda i: "yx"[: i + 1], ["y", "yx"], torch.tensor([0, 1]), -100),
    ],
    ids=["names", "numbers", "several", "long_names"],
)
def test_labels_and_those_of_fillers(tmp_path, label, names, expected, ignored):
    given = module(tmp_path, rows([3, 3], label=label), validate=tmp_path / "train.jsonl")
    given.setup("fit")
    assert given.label_names == names
    batch = next(iter(given.val_dataloader()))
    assert torch.equal(batch["labels"], expected)
    filler = given.val_dataloader().dataset[Filler(1)]["labels"]
    assert filler.dtype == expected.numpy().dtype
    assert filler.shape == tuple(expected.shape[1:])
    assert np.array_equal(filler, np.full_like(filler, ignored), equal_nan=filler.dtype == "f4")


def test_whole_numbers_are_numbers_where_the_training_file_has_fractions(tmp_path):
    rows = [{"text": text(3), "label": value} for value in (2, 1)]
    given = TextDataModule(
        word_tokenizer(),
        train=write(tmp_path / "train.jsonl", [*rows, {"text": text(3), "label": 0.5}]),
        validate=write(tmp_path / "validate.jsonl", rows),
        buckets=[8],
    )
    given.setup("validate")
    (batch,) = given.val_dataloader()
    assert batch["labels"].tolist() == [2.0, 1.0]
    assert batch["labels"].dtype == torch.float32


def test_next_tokens_are_labels(tmp_path):
    options = {"objective": "causal-lm", "num_buckets": 1}
    given = module(tmp_path, rows([3, 1]), plain_tokenizer(), **options)
    given.setup("fit")
    (batch,) = given.train_dataloader()
    assert batch["input_ids"].tolist() == [[5, 6, 7], [6, 0, 0]]
    assert torch.equal(
        batch["labels"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    )
    filler = given.train_dataloader().dataset[Filler(0)]
    assert filler["labels"].tolist() == [-100] * 3
    assert filler["input_ids"].tolist() == [5, 6, 7]


def test_prompts_to_go_on_from_are_padded_left(tmp_path):
    path = write(tmp_path / "prompts.txt", rows([1, 3, 0]))
    given = TextDataModule(plain_tokenizer(), predict=path, objective="causal-lm", num_buckets=1)
    given.setup("predict")
    (batch,) = given.predict_dataloader()
    # A text without any token has the tokenizer's end of a sequence, so that something is read.
    assert batch["input_ids"].tolist() == [[0, 0, 5], [6, 7, 8], [0, 0, 2]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 1]]


def test_targets_follow_their_prompts(tmp_path):
    data = rows([2, 1, 1], target=lambda i: text([3, 2, 0][i], 40))
    options = {"objective": "causal-lm", "target_column": "target", "num_buckets": 1}
    options["batch_size"] = 3
    given = module(tmp_path, data, plain_tokenizer(), **options)
    given.setup("fit")
    (batch,) = given.train_dataloader()
    _ = -100
    assert batch["input_ids"].tolist() == [
        [5, 6, 45, 46, 47, 2],
        [6, 45, 46, 2, 0, 0],
        [7, 2] + [0] * 4,
    ]
    assert batch["labels"].tolist() == [
        [_, _, 45, 46, 47, 2],
        [_, 45, 46, 2, _, _],
        [_, 2] + [_] * 4,
    ]


def test_targets_have_buckets_of_their_own(tmp_path):
    tokenizer = word_tokenizer()
    data = rows([2, 6, 4], target=lambda i: text(5 - i, 40))
    given = module(tmp_path, data, tokenizer, target_column="target", num_buckets=1, batch_size=3)
    given.setup("fit")
    (batch,) = given.train_dataloader()
    expected = [tokenizer(text_target=row["target"])["input_ids"] for row in data]
    assert batch["labels"].shape == (3, 7)
    assert [[i for i in row if i >= 0] for row in batch["labels"].tolist()] == expected
    filler = given.train_dataloader().dataset[Filler(0)]["labels"]
    assert filler.tolist() == [-100] * 7


def test_hidden_tokens(tmp_path):
    data = rows([40] * 60)
    given = module(
        tmp_path, data, objective="masked-lm", mask_fraction=0.3, validate=tmp_path / "train.jsonl"
    )
    given.setup("fit")
    train, validate = given.train_dataloader().dataset, given.val_dataloader().dataset
    original = np.stack([[1, *[5 + (i + j) % 45 for j in range(40)], 2] for i in range(60)])
    drawn = [train[i] for i in range(60)]
    ids, labels = (torch.stack([row[name] for row in drawn]) for name in ("input_ids", "labels"))
    chosen = labels != -100
    assert torch.equal(labels[chosen], torch.from_numpy(original)[chosen])
    assert torch.equal(ids[~chosen], torch.from_numpy(original)[~chosen])
    assert not chosen[:, [0, -1]].any(), "a special token was hidden"
    assert abs(float(chosen.float().mean()) - 0.3 * 40 / 42) < 0.03
    assert abs(float((ids[chosen] == 3).float().mean()) - 0.8) < 0.06
    assert abs(float((ids[chosen] == labels[chosen]).float().mean()) - 0.1) < 0.05
    assert not torch.equal(train[0]["labels"], labels[0]), "the same tokens each time"
    assert torch.equal(validate[0]["labels"], validate[0]["labels"])
    assert not torch.equal(validate[0]["labels"], validate[1]["labels"])
    assert (validate[Filler(0)]["labels"] == -100).all()
    assert "special_tokens_mask" not in train[0]


def test_texts_cut_where_asked(tmp_path):
    tokenizer = word_tokenizer()
    given = module(tmp_path, tokenizer=tokenizer, max_length=8)
    given.setup("fit")
    assert given.buckets[-1] == 8
    found = rows_of(given.train_dataloader())
    expected = tokenizer(text(20, 7), truncation=True, max_length=8)["input_ids"]
    assert found[7]["input_ids"].tolist() == expected


def test_longer_texts_than_in_training_are_cut_with_a_warning(tmp_path):
    longer = write(tmp_path / "longer.txt", rows([3, 30]))
    given = module(tmp_path, predict=longer)
    with pytest.warns(
        UserWarning, match=r"1 texts in .*longer.txt were cut to 22 .*larger buckets"
    ):
        given.setup("predict")
    assert max(given.predict_dataloader().dataset.lengths) == 22


def test_longer_targets_than_in_training(tmp_path):
    longer = write(tmp_path / "a.jsonl", rows([3], target=lambda i: text(9)))
    options = {"target_column": "target", "test": longer}
    data = rows([3, 5], target=lambda i: text(2))
    given = module(tmp_path, data, **options)
    message = r"1 targets in .*a.jsonl were cut to 4 .*larger target_buckets to keep"
    with pytest.warns(UserWarning, match=message):
        given.setup("test")
    (batch,) = given.test_dataloader()
    assert batch["labels"].tolist() == [word_tokenizer()(text(2))["input_ids"]]
    given = module(tmp_path, data, **options, target_buckets=[4, 16])
    given.setup("test")
    (batch,) = given.test_dataloader()
    assert batch["labels"].shape == (1, 16)


def test_a_path_of_a_tokenizer_and_a_pickled_dataset(tmp_path):
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    given = module(tmp_path, tokenizer=str(tmp_path / "tokenizer"), num_workers=1)
    loaded = module(tmp_path)
    given.setup("fit")
    loaded.setup("fit")
    for a, b in zip(given.train_dataloader(), loaded.train_dataloader(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
