"""From files through fit, test and predict on the emulated HPU, against stock Transformers."""

from __future__ import annotations

import re

import lightning as L
import pytest
import torch
from data.loops import trainer
from data.texts import WORDS, text, word_tokenizer, write
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.callbacks import PredictionOrder
from lightning_gaudi.data import TextDataModule

LENGTHS = [3, 9, 4, 5, 8, 2, 9, 20, 1, 12, 0, 15, 6, 7]


class Classifier(L.LightningModule):
    """Stock BERT as users write it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = BertForSequenceClassification(config)
        self.losses = []

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits

    def loss(self, batch):
        labels = batch.pop("labels")
        return cross_entropy(self(**batch), labels, reduction="none"), labels

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)[0].mean()
        self.losses.append(loss.detach())
        return loss

    def test_step(self, batch, batch_idx):
        losses, labels = self.loss(batch)
        self.log("loss", losses.mean(), batch_size=len(labels))

    def validation_step(self, batch, batch_idx):
        self.test_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        logits = self(**batch)
        return {"logits": logits, "label": logits.argmax(1)}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


@pytest.fixture
def data(tmp_path):
    rows = [{"text": text(n, 3 * i), "label": i % 2} for i, n in enumerate(LENGTHS)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "a.txt", rows)
    return rows, TextDataModule(
        word_tokenizer(),
        train=tmp_path / "a.jsonl",
        validate=tmp_path / "a.jsonl",
        test=tmp_path / "a.jsonl",
        predict=tmp_path / "a.txt",
        num_buckets=3,
        batch_size=4,
    )


def stock(model, rows):
    """Row by row on the CPU, without padding."""
    tokenizer = word_tokenizer()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(r["text"], return_tensors="pt")).logits for r in rows])


def test_fit_test_and_predict_against_stock_transformers(data):
    rows, given = data
    net = Classifier()
    trainer(max_epochs=4).fit(net, given)
    losses = torch.stack(net.losses).cpu()
    assert len(losses) == 4 * len(given.train_dataloader())
    assert losses[-5:].mean() < losses[:5].mean()
    graphs = HPUGraphCallback()
    run = trainer(PredictionOrder(), graphs)
    predicted = run.predict(net, given)
    assert graphs.stats.captures <= len(given.buckets) == 3
    assert graphs.stats.replays > 0
    (tested,) = run.test(net, given, verbose=False)
    expected = stock(net.model.cpu().eval(), rows)
    found = torch.stack([row["logits"] for row in predicted])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert [int(row["label"]) for row in predicted] == expected.argmax(1).tolist()
    labels = torch.tensor([row["label"] for row in rows])
    assert tested["loss"] == pytest.approx(float(cross_entropy(expected, labels)), rel=1e-4)


@pytest.mark.parametrize("size", [{"batch_size": 4}, {"tokens_per_batch": 44}], ids=str)
def test_graphs_captured_ahead_for_every_bucket(data, tmp_path, size):
    given = TextDataModule(
        word_tokenizer(),
        train=tmp_path / "a.jsonl",
        predict=tmp_path / "a.txt",
        num_buckets=3,
        **size,
    )
    graphs = HPUGraphCallback(warmup="buckets")
    net = Classifier().eval()
    trainer(graphs).predict(net, given)
    assert graphs.stats.captures == len(given.buckets) == 3
    assert graphs.stats.eager_calls == 0
    captured = sorted(graph.inputs.split(",")[0] for graph in graphs.stats.graphs)
    sizes = given.predict_dataloader().batch_sampler.batch_sizes
    expected = [f"{n}x{bucket} int64" for n, bucket in zip(sizes, given.buckets, strict=True)]
    assert captured == sorted(expected)


def test_a_fit_goes_on_in_the_middle_of_an_epoch(data, tmp_path):
    _, given = data
    options = {"accelerator": "cpu", "strategy": "auto", "max_epochs": 2}
    saved = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, monitor="step", every_n_train_steps=1
    )
    whole = Classifier()
    trainer(saved, **options).fit(whole, given)
    steps = sorted(int(re.findall(r"step=(\d+)", p.name)[0]) for p in tmp_path.glob("*.ckpt"))
    assert len(steps) == len(whole.losses)
    step = len(steps) // 2 + 2
    rest = Classifier()
    again = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, monitor="step", every_n_train_steps=1
    )
    trainer(again, **options).fit(rest, given, ckpt_path=tmp_path / f"step={step}.ckpt")
    torch.testing.assert_close(torch.stack(rest.losses), torch.stack(whole.losses[step:]))


def test_a_fit_without_validation_texts(data, tmp_path):
    given = TextDataModule(word_tokenizer(), train=tmp_path / "a.jsonl")
    net = Classifier()
    trainer(max_epochs=1).fit(net, given)
    assert net.losses


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled .* shuffling")
def test_overfitting_takes_the_same_batches_in_every_epoch(data):
    _, given = data
    given.setup("fit")
    run = trainer(overfit_batches=2, max_epochs=2)
    net = Classifier()
    net.seen = []
    net.on_train_batch_start = lambda batch, i: net.seen.append(batch["input_ids"].cpu())
    run.fit(net, given)
    assert len(net.seen) == 4
    assert all(torch.equal(net.seen[i], net.seen[i + 2]) for i in range(2))
