"""What is wrong with a file, a setting or a checkpoint is said before training starts."""

from __future__ import annotations

import lightning as L
import pytest
from data.loops import trainer
from data.texts import plain_tokenizer, text, word_tokenizer, write

from lightning_gaudi.data import TextDataModule
from lightning_gaudi.errors import ConfigurationError


def make(tmp_path, content=None, name="train.jsonl", tokenizer=None, **options):
    path = tmp_path / name
    if content is None:
        write(path, [{"text": text(n), "label": n % 2} for n in (3, 5, 9)])
    else:
        path.write_bytes(content)
    return TextDataModule(tokenizer or word_tokenizer(), **{"train": path, **options})


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        (b"", {}, r"train.jsonl has no rows, and it is the file to train with"),
        (b'{"text": "a"}\n', {}, r"no column 'label' in .*line 1: it has \['text'\]"),
        (None, {"text_column": "body"}, r"no column 'body' .*line 1: it has \['label', 'text'\]"),
        (None, {"target_column": "to"}, r"no column 'to' .*line 1: it has"),
        (b'{"text": 3, "label": 0}\n', {}, r"'text' in .*line 1 is 3, which is no text"),
        (b'{"text": \n', {}, r"train.jsonl, line 1 is no JSON"),
        (None, {"too_long": "raise", "max_length": 8}, r"line 3 has 11 tokens, more than 8"),
        (None, {"too_long": "raise", "buckets": [4, 8]}, r"line 3 has 11 tokens, more than 8"),
        (
            None,
            {
                "too_long": "raise", "max_length": 8, "objective": "causal-lm",
                "target_column": "text", "tokenizer": plain_tokenizer(),
            },
            r"line 2 have 11 tokens together, more than 8",
        ),
        (
            None,
            {"objective": "masked-lm", "tokenizer": plain_tokenizer()},
            "has no mask token. Use a tokenizer such as BERT",
        ),
        (
            None,
            {"tokenizer": word_tokenizer(pad_token=None)},
            r"has no pad token.*tokenizer.pad_token = tokenizer.eos_token",
        ),
        (None, {"tokenizer": "/no/such"}, r"there is no tokenizer at '/no/such'"),
        (None, {"label_names": ["a"]}, r"label 1 .*line 1 is not one of label_names \['a'\]"),
        (None, {"train": None}, r"there is no file to train with.*train=\.\.\."),
    ],
    ids=[
        "empty", "no_label", "no_text_column", "no_target_column", "no_text", "no_json", "too_long",
        "beyond_the_buckets", "too_long_together", "no_mask", "no_padding", "no_tokenizer",
        "unknown_label", "no_file",
    ],
)  # fmt: skip
def test_fit_with_wrong_data(tmp_path, content, options, text):
    given = make(tmp_path, content, **options)
    with pytest.raises(ConfigurationError, match=text):
        given.setup("fit")


@pytest.mark.parametrize("split", ["validate", "test"])
def test_an_empty_file_to_evaluate_with(tmp_path, split):
    empty = tmp_path / "empty.txt"
    empty.touch()
    given = make(tmp_path, **{split: empty})
    with pytest.raises(ConfigurationError, match=f"has no rows, and it is the file to {split}"):
        given.setup(split)


def test_an_empty_file_to_predict_for(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    for given in (make(tmp_path, predict=empty), TextDataModule(word_tokenizer(), predict=empty)):
        given.setup("predict")
        assert len(given.predict_dataloader()) == 0
        assert list(given.predict_dataloader()) == []


def test_nothing_left_to_train_on(tmp_path):
    for shuffle in (False, True):
        given = make(tmp_path, drop_last=True, shuffle=shuffle, batch_size=4)
        given.setup("fit")
        with pytest.raises(ConfigurationError, match="drop_last=True leaves nothing to train on"):
            given.train_dataloader()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_buckets": 0}, "num_buckets must be a whole number above 0, but it is 0"),
        ({"num_target_buckets": 0}, "num_buckets must be a whole number above 0"),
        ({"buckets": []}, "buckets must be one or more whole numbers above 0"),
        ({"buckets": [8, 0]}, "buckets must be one or more whole numbers above 0"),
        ({"target_buckets": [-1]}, "buckets must be one or more whole numbers above 0"),
        ({"multiple_of": 0}, "multiple_of must be"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"max_length": 0}, "max_length must be 1 or more"),
        ({"max_target_length": -2}, "max_target_length must be 1 or more"),
        ({"mask_fraction": 0.0}, "mask_fraction must be above 0"),
        ({"objective": "clm"}, r"objective must be one of \(None, 'causal-lm', 'masked-lm'\)"),
        ({"too_long": "cut"}, "too_long must be one of"),
        ({"padding_side": "both"}, "padding_side must be one of"),
    ],
)
def test_wrong_settings(options, text):
    with pytest.raises(ConfigurationError, match=text):
        TextDataModule(word_tokenizer(), **options)


@pytest.mark.parametrize("split", ["validate", "test", "predict"])
def test_a_stage_without_its_file(tmp_path, split):
    class Module(L.LightningModule):
        def validation_step(self, batch, batch_idx):
            raise AssertionError

        test_step = predict_step = validation_step

    with pytest.raises(ConfigurationError, match=rf"no file to {split} with: .*{split}=\.\.\."):
        getattr(trainer(), split)(Module(), make(tmp_path))


def test_names_of_labels_that_a_checkpoint_has(tmp_path):
    first = make(tmp_path, b'{"text": "w1", "label": "a"}\n{"text": "w1", "label": "b"}\n')
    first.setup("fit")
    again = make(tmp_path, b'{"text": "w1", "label": "b"}\n{"text": "w1", "label": "c"}\n')
    again.setup("fit")
    first.load_state_dict(first.state_dict())
    with pytest.raises(ConfigurationError, match=r"trained with label_names \['a', 'b'\], .* \['b"):
        again.load_state_dict(first.state_dict())
    numbers = make(tmp_path)
    numbers.setup("fit")
    numbers.load_state_dict(numbers.state_dict())


def test_names_of_labels_are_needed_without_the_training_file(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"text": "w1", "label": "b"}\n')
    with pytest.raises(ConfigurationError, match=r"labels such as 'b' .* Give label_names"):
        TextDataModule(word_tokenizer(), test=path).setup("test")
    given = TextDataModule(word_tokenizer(), test=path, label_names=["a", "b"])
    given.setup("test")
    (batch,) = given.test_dataloader()
    assert batch["labels"].tolist() == [1]
