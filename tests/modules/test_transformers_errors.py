"""What cannot be is refused, by a message that says what to do."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
import training
import transformers as tf
from modules.tasks_cases import BART, BERT, SMALL, batches, config_of, make
from torch.utils.data import DataLoader, TensorDataset

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules import TransformersModule
from lightning_gaudi.modules.batches import num_positions_of

pytestmark = training.IGNORED_WARNINGS
BERT_DICT = config_of("classes")


def with_classes() -> tf.PreTrainedModel:
    return tf.BertForSequenceClassification(tf.BertConfig(**BERT, num_labels=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"task": "classify"},
            "task must be one of 'sequence-classification', 'token-classification', .*'feature-"
            "extraction', but it is 'classify'",
            id="task",
        ),
        pytest.param(
            {"model": "./no/such/model"},
            r"there is no model at '\./no/such/model' \(working directory .*save_pretrained",
            id="path",
        ),
        pytest.param(
            {"model": "nosuchmodel"},
            "there is no model 'nosuchmodel': it is no directory in .* with a config.json",
            id="name",
        ),
        pytest.param(
            {"model": {"hidden_size": 32}}, "needs 'model_type'.*'hidden_size'", id="type"
        ),
        pytest.param(
            {"model": {"model_type": "bertt"}}, "'bertt' is none that .*mean 'bert'", id="typo"
        ),
        pytest.param(
            {"model": {"model_type": "bert", "hiden_size": 3}},
            "a 'bert' config has no 'hiden_size'. Did you mean 'hidden_size'",
            id="key",
        ),
        pytest.param({"model": 3}, "model must be a path, .* but it is a int", id="number"),
        pytest.param(
            {"model": torch.nn.Linear(2, 2)}, "a Linear, which is no PreTrainedModel", id="module"
        ),
        pytest.param(
            {"task": "image-classification"},
            "no head for task='image-classification' on a 'bert' model. It has heads for "
            "'sequence-classification', ",
            id="head",
        ),
        pytest.param(
            {"model": with_classes(), "task": "token-classification"},
            "BertForSequenceClassification has no head for task='token-classification', but for "
            "'sequence-classification'. Use transformers.AutoModelForTokenClassification",
            id="class",
        ),
        pytest.param(
            {"model": with_classes(), "num_labels": 4},
            "the model's head has 3 labels, but num_labels says 4",
            id="labels-of-a-model",
        ),
        pytest.param(
            {"model": with_classes(), "model_arguments": {"dtype": "auto"}},
            "model_arguments=.* are for a model that is made here",
            id="arguments-of-a-model",
        ),
        pytest.param(
            {"num_labels": 2, "label_names": ["a", "b", "c"]},
            "num_labels is 2, but label_names has 3 names",
            id="names",
        ),
        pytest.param({"label_names": ["a", "a"]}, "label_names must be distinct", id="twice"),
        pytest.param({"num_labels": 0}, "num_labels must be 1 or more", id="no-labels"),
        pytest.param(
            {"task": "masked-lm", "num_labels": 2}, "has no labels of its own", id="labels-of-lm"
        ),
        pytest.param(
            {"task": "masked-lm", "problem_type": "regression"},
            "problem_type='regression' has no meaning for task='masked-lm'",
            id="problem-of-lm",
        ),
        pytest.param(
            {"problem_type": "multilabel"},
            "problem_type must be one of 'single_label_classification', ",
            id="problem",
        ),
        pytest.param(
            {"num_labels": 1, "problem_type": "single_label_classification"},
            "needs num_labels of 2 or more, but it is 1",
            id="one-class",
        ),
        pytest.param(
            {"optimizer": "adam"}, "optimizer must be one of 'auto', 'adamw', 'fused-adamw'", id="o"
        ),
        pytest.param({"schedule": "step"}, "schedule must be one of 'linear', 'cosine', ", id="s"),
        pytest.param({"warmup_steps": -1}, "warmup_steps must be a number of steps", id="warmup"),
        pytest.param({"warmup_steps": 1.5}, "a float from 0 to 1.*1.5", id="warmup-fraction"),
        pytest.param({"learning_rate": -1.0}, "learning_rate must be 0 or more", id="rate"),
        pytest.param({"learning_rate": float("nan")}, "learning_rate must be .*nan", id="rate-nan"),
        pytest.param({"betas": (0.9, 1.0)}, r"betas must be two numbers.*\(0.9, 1.0\)", id="betas"),
        pytest.param({"betas": (0.9,)}, "betas must be two numbers", id="one-beta"),
        pytest.param({"label_smoothing": 1.0}, "label_smoothing must be", id="smoothing"),
        pytest.param(
            {"label_smoothing": 0.1, "problem_type": "regression"},
            "label_smoothing=0.1 has no meaning for task='sequence-classification' and problem_type"
            "='regression': leave it out",
            id="smoothing-of-numbers",
        ),
        pytest.param(
            {"label_smoothing": 0.1, "task": "question-answering"},
            "label_smoothing=0.1 has no meaning for task='question-answering': leave it out",
            id="smoothing-of-spans",
        ),
        pytest.param({"pooling": "cls"}, "pooling='cls' has no meaning", id="pooling-of-classes"),
        pytest.param({"normalize": True}, "normalize=True has no meaning", id="norm-of-classes"),
        pytest.param({"pooling": "max"}, "pooling must be 'mean', 'cls' or 'last'", id="pooling"),
        pytest.param({"max_answer_length": 0}, "max_answer_length must be 1 or more", id="answer"),
        pytest.param(
            {
                "model": {"model_type": "funnel", "vocab_size": 9, "d_model": 8, "n_head": 2},
                "gradient_checkpointing": True,
            },
            "gradient_checkpointing=True: Funnel.* does not support it",
            id="checkpointing",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*huggingface_hub.*")
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TransformersModule(**{"model": BERT_DICT, **arguments})


def run(module: TransformersModule, batch: Any, stage: str = "fit") -> None:
    getattr(training.trainer(max_epochs=1), stage)(module, DataLoader([batch], batch_size=None))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        pytest.param("classes", {"labels": None}, "a batch for train needs 'labels', but", id="la"),
        pytest.param(
            "classes", {"input_ids": None}, "a batch needs 'input_ids', but it has", id="ids"
        ),
        pytest.param("images", {"pixel_values": None}, "a batch needs 'pixel_values'", id="pixels"),
        pytest.param(
            "spans", {"end_positions": None}, "a batch for train needs 'end_positions'", id="end"
        ),
        pytest.param(
            "classes",
            {"labels": torch.tensor([0, 1, 2, 3])},
            r"must be in 0 to 2, or -100 for none, but it holds 3",
            id="range",
        ),
        pytest.param(
            "classes",
            {"input_ids": torch.full((4, 8), 64)},
            r"batch\['input_ids'\] must be in 0 to 63, but it goes from 64 to 64",
            id="token",
        ),
        pytest.param(
            "gpt2",
            dict.fromkeys(("input_ids", "attention_mask", "labels"), torch.ones(2, 41).long()),
            r"has rows of 41 tokens, but the model has positions for 40. Cut them, .*max_length=40",
            id="length",
        ),
    ],
)
def test_batches(name: str, change: dict[str, Any], message: str) -> None:
    (batch,) = batches(name)
    batch = {key: value for key, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        run(make(name), batch)


@pytest.mark.parametrize(("name", "key"), [("classes", "labels"), ("spans", "end_positions")])
def test_labels_that_are_no_tensor(name: str, key: str) -> None:
    (batch,) = batches(name)
    listed = {**batch, key: batch[key].tolist()}
    with pytest.raises(TypeError, match=rf"batch\['{key}'\] must be a tensor, but it is a list"):
        run(make(name), listed)
    trainer = training.trainer()  # which needs none
    (found,) = trainer.predict(make(name), DataLoader([listed], batch_size=None)) or []
    assert found["logits"].shape[0] == 4


@pytest.mark.parametrize(
    ("model_type", "config", "expected"),
    [
        ("bert", {"max_position_embeddings": 20}, 20),
        # RoBERTa's begin after the padding's, BART's at 2, and Llama's have no table.
        ("roberta", {"max_position_embeddings": 22, "pad_token_id": 1}, 20),
        ("bart", {**BART, "max_position_embeddings": 20}, 20),
        ("llama", {"max_position_embeddings": 20}, None),
    ],
    ids=str,
)
def test_positions_against_what_stock_takes(
    model_type: str, config: dict[str, Any], expected: int | None
) -> None:
    own = {} if model_type == "bart" else {"vocab_size": 64, **SMALL}
    model = tf.AutoModel.from_config(tf.AutoConfig.for_model(model_type, **{**own, **config}))
    assert num_positions_of(model) == expected
    for length in (20, 21):
        given = {"input_ids": torch.full((1, length), 5)}
        if model_type == "bart":
            given["decoder_input_ids"] = torch.full((1, 2), 5)
        if length == 20 or expected is None:
            model(**given)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(**given)


def test_batches_that_are_no_dict() -> None:
    data = TensorDataset(torch.zeros(2, 8).long(), torch.zeros(2).long())
    with pytest.raises(TypeError, match=r"a batch must be a dict .*'input_ids'.* it is a list"):
        training.trainer(max_epochs=1).fit(make("classes"), DataLoader(data))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_needs_labels_and_prediction_does_not(stage: str) -> None:
    (batch,) = batches("classes")
    del batch["labels"]
    with pytest.raises(ValueError, match="needs 'labels'"):
        run(make("classes"), batch, stage)
    run(make("classes"), batch, "predict")


def test_nothing_to_decode() -> None:
    (batch,) = batches("t5")
    del batch["labels"]
    with pytest.raises(ValueError, match="needs 'labels' or 'decoder_input_ids'"):
        run(make("t5"), batch, "predict")


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_features_have_no_loss(stage: str) -> None:
    module = TransformersModule(BERT_DICT, "feature-extraction")
    with pytest.raises(ConfigurationError, match=r"has no loss, so it cannot .*trainer\.predict"):
        run(module, batches("classes")[0], stage)


def test_what_the_forward_does_not_take_is_left_out_and_said_once() -> None:
    (batch,) = batches("classes")
    extra = {"index": torch.arange(4), "text": ["a", "b", "c", "d"], "lengths": torch.ones(4)}
    module = make("classes").eval()
    (expected,) = training.trainer().predict(module, DataLoader([batch], batch_size=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # metadata is no mistake
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*treespec.*")
        (found,) = training.trainer().predict(
            module, DataLoader([{**batch, **extra}], batch_size=None)
        )
    assert torch.equal(found["logits"], expected["logits"])
    called_with = module.hpu_graph_arguments("model", {**batch, **extra})
    assert set(called_with) == {"input_ids", "attention_mask"}
    misspelt = {**batch, "token_types_ids": torch.zeros(4, 8).long()}
    with pytest.warns(UserWarning, match="takes no 'token_types_ids', so it is left out") as said:
        training.trainer().predict(module, DataLoader([misspelt] * 3, batch_size=None))
    assert sum("token_types_ids" in str(w.message) for w in said) == 1


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"lightning-gaudi\[transformers\]"):
        TransformersModule(BERT_DICT)
