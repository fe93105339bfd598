"""Checkpoints and exports: what is loaded again predicts the same."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import training
import transformers as tf
from modules.tasks_cases import BERT, CASES, T5, batches, config_of, make
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules import TransformersModule

pytestmark = training.IGNORED_WARNINGS
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = ["ham", "spam", "eggs"]


def loader(data: list[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None)


def predicted(module: TransformersModule, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    (found,) = training.trainer().predict(module.eval(), loader([batch]))
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_export_is_loaded_by_stock_transformers(name: str, tmp_path) -> None:
    module = make(name, learning_rate=1e-2)
    training.trainer(max_epochs=1).fit(module, loader(batches(name, 3)))
    (batch,) = batches(name, seed=5)
    expected = predicted(module, batch)["logits"]
    module.to("hpu").save_pretrained(tmp_path)
    stock = type(module.model).from_pretrained(tmp_path).eval()
    assert stock.config._attn_implementation == "sdpa"
    with torch.no_grad():
        outputs = stock(**batch)
    if name == "spans":
        logits = torch.stack([outputs.start_logits, outputs.end_logits], -1)
    else:
        logits = outputs.logits
    torch.testing.assert_close(expected, logits, **CLOSE)
    again = TransformersModule(tmp_path, module.task)
    torch.testing.assert_close(predicted(again, batch)["logits"], expected, **CLOSE)
    if name == "multilabel":
        assert stock.config.problem_type == "multi_label_classification"


def test_an_export_leaves_the_module_as_it_was(tmp_path) -> None:
    module = make("t5").to("hpu")
    module.save_pretrained(tmp_path)
    assert {p.device.type for p in module.parameters()} == {"hpu"}
    assert module.model.config._attn_implementation == "gaudi_sdpa"
    text = (tmp_path / "config.json").read_text()
    assert "gaudi" not in text
    # Shared weights are written once.
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    shared = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert keys & (shared | {"lm_head.weight"}) == {"shared.weight"}


def test_names_of_labels_are_kept(tmp_path) -> None:
    module = make("classes", num_labels=None, label_names=NAMES)
    assert module.label_names == NAMES
    trainer = training.trainer(max_epochs=1)
    trainer.fit(module, loader(batches("classes")))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = TransformersModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.label_names == NAMES
    loaded.save_pretrained(tmp_path / "export")
    config = tf.AutoConfig.from_pretrained(tmp_path / "export")
    assert config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
    assert config.label2id == {"ham": 0, "spam": 1, "eggs": 2}
    assert make("masked-lm").label_names == []


class Data(L.LightningDataModule):
    def __init__(self, label_names: list[str]) -> None:
        super().__init__()
        self.label_names = label_names

    def train_dataloader(self) -> Any:
        return loader(batches("classes"))


def test_names_of_the_data_are_taken(tmp_path) -> None:
    module = make("classes")
    trainer = training.trainer(max_epochs=1)
    trainer.fit(module, Data(NAMES))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert TransformersModule.load_from_checkpoint(tmp_path / "last.ckpt").label_names == NAMES
    trainer.fit(module, Data(NAMES))  # the same names again
    assert module.name_labels(torch.tensor(1)) == "spam"


@pytest.mark.parametrize(
    ("own", "names"),
    [(None, ["ham", "spam"]), (NAMES, NAMES[::-1])],
    ids=["number", "order"],
)
def test_names_of_the_data_that_are_others(own: list[str] | None, names: list[str]) -> None:
    module = make("classes", **({"label_names": own} if own else {}))
    with pytest.raises(ConfigurationError, match=r"the data's labels are \['.*but the model's are"):
        training.trainer(max_epochs=1).fit(module, Data(names))


@pytest.mark.parametrize("source", ["dict", "config", "model", "path"])
def test_checkpoints_need_nothing_else(source: str, tmp_path) -> None:
    config = tf.BertConfig(**BERT, num_labels=3)
    model = tf.BertForSequenceClassification(config)
    directory = tmp_path / "model"
    model.save_pretrained(directory)
    given = {"dict": config_of("classes"), "config": config, "model": model, "path": directory}
    module = TransformersModule(
        given[source], num_labels=3, learning_rate=1e-2, warmup_steps=0.5, betas=(0.8, 0.9)
    )
    trainer = training.trainer(max_epochs=1)
    trainer.fit(module, loader(batches("classes", 3)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = predicted(module, batches("classes", seed=5)[0])
    directory.rename(tmp_path / "moved")
    loaded = TransformersModule.load_from_checkpoint(tmp_path / "last.ckpt")
    found = predicted(loaded, batches("classes", seed=5)[0])
    assert torch.equal(found["logits"], expected["logits"])
    for name in ("learning_rate", "warmup_steps", "betas", "task"):
        assert loaded.hparams[name] == module.hparams[name]
    text = str(torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"])
    assert len(text) < 5000  # the config, not the model


def test_a_class_of_ones_own_is_given_again(tmp_path) -> None:
    class Mine(tf.BertForSequenceClassification):
        pass

    module = TransformersModule(Mine(tf.BertConfig(**BERT, num_labels=3)))
    trainer = training.trainer(max_epochs=1)
    trainer.fit(module, loader(batches("classes")))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(TypeError, match="model"):
        TransformersModule.load_from_checkpoint(tmp_path / "last.ckpt")
    again = Mine(tf.BertConfig(**BERT, num_labels=3))
    loaded = TransformersModule.load_from_checkpoint(tmp_path / "last.ckpt", model=again)
    assert type(loaded.model) is Mine
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key].cpu(), value.cpu())


def test_a_class_that_is_not_the_first_of_its_type_is_given_again() -> None:
    """AutoModel would make another one of the same config."""
    module = TransformersModule(tf.T5EncoderModel(tf.T5Config(**T5)), "feature-extraction")
    assert "model" not in module.hparams


def test_a_subclass_with_arguments_of_its_own(tmp_path) -> None:
    class Scaled(TransformersModule):
        def __init__(self, model: Any, scale: float = 1.0, **rest: Any) -> None:
            super().__init__(model, **rest)
            self.scale = scale

    module = Scaled(config_of("classes"), scale=3.0, num_labels=3)
    trainer = training.trainer(max_epochs=1)
    trainer.fit(module, loader(batches("classes")))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Scaled.load_from_checkpoint(tmp_path / "last.ckpt")
    assert (loaded.scale, loaded.hparams["num_labels"]) == (3.0, 3)


@pytest.mark.parametrize("optimizer", ["adamw", "fused-adamw"])
def test_a_run_goes_on_where_it_stopped(optimizer: str, tmp_path) -> None:
    data = batches("classes", 4)

    def fit(start: Any = None) -> TransformersModule:
        module = make("classes", optimizer=optimizer, learning_rate=1e-2, schedule="cosine")
        training.trainer(max_epochs=4).fit(module, loader(data), ckpt_path=start)
        return module

    whole = fit()

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    module = make("classes", optimizer=optimizer, learning_rate=1e-2, schedule="cosine")
    training.trainer(max_epochs=4, callbacks=[Stop()]).fit(module, loader(data))
    resumed = fit(tmp_path / "half.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key].cpu(), value.cpu()), key


def test_a_tokenizer_is_exported_too(tmp_path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    tokenizer = tf.BertTokenizer(str(vocabulary))
    make("classes", tokenizer=tokenizer).save_pretrained(tmp_path / "one")
    make("classes", tokenizer=str(tmp_path / "one")).save_pretrained(tmp_path / "two")
    for directory in ("one", "two"):
        loaded = tf.AutoTokenizer.from_pretrained(tmp_path / directory)
        assert loaded("hello")["input_ids"] == tokenizer("hello")["input_ids"]


def test_an_image_processor_is_exported_too(tmp_path) -> None:
    processor = tf.ViTImageProcessorPil(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "processor")
    make("images", tokenizer=str(tmp_path / "processor")).save_pretrained(tmp_path / "out")
    loaded = tf.ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.size == {"height": 8, "width": 8}


@pytest.mark.slow
def test_a_pickled_module_is_used_by_a_new_process(tmp_path, run_python) -> None:
    module = make("classes").eval()
    (batch,) = batches("classes")
    torch.save((module, batch), tmp_path / "module.pt")
    run_python("""
        import torch
        module, batch = torch.load("module.pt", weights_only=False)
        with torch.no_grad():
            torch.save(module.predict_step(batch, 0)["logits"], "logits.pt")
    """)
    with torch.no_grad():
        expected = module.predict_step(batch, 0)["logits"]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
