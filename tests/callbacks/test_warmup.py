"""`warmup`: graphs that are there before the first batch."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from callbacks.runs import Classifier, WithForward, data, make, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.data import BucketBatchSampler, BucketCollator
from lightning_gaudi.errors import ConfigurationError


class Tagger(L.LightningModule):
    """Takes a batch's names as arguments."""

    hpu_graph_targets = ("model",)

    def __init__(self):
        super().__init__()
        self.model = Embeds()

    def predict_step(self, batch, batch_idx):
        return self.model(**{name: batch[name] for name in ("ids", "mask")})


class Embeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, ids, mask):
        return (self.embedding(ids) * mask[..., None]).sum(1)


class Collator:
    buckets = (4, 8)

    def __call__(self, rows):
        length = next(bucket for bucket in self.buckets if bucket >= max(map(len, rows)))
        ids = torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in rows])
        return {"ids": ids, "mask": (ids > 0).float(), "label": torch.zeros(len(rows))}


def texts():
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, 10, (n,), generator=generator) for n in (3, 4, 7, 8, 2, 6, 1, 4)]
    return DataLoader(rows, batch_size=2, collate_fn=Collator())


class CountsCaptures(L.Callback):
    """Captures that there are when the first batch comes."""

    def __init__(self, callback):
        self.callback = callback
        self.before = None

    def on_predict_batch_start(self, *args):
        if self.before is None:
            self.before = sum(
                len(graphs.forward.stats.graphs) for graphs in self.callback._graphs.values()
            )


def predict(module, loader, callback):
    counts = CountsCaptures(callback)
    found = torch.cat(trainer(callback, counts).predict(module, loader))
    assert torch.equal(found, torch.cat(trainer().predict(module, loader)))
    return counts.before


def test_shapes_by_argument_name():
    warmup = [{"ids": [2, n, "int64"], "mask": [2, n]} for n in (4, 8)]
    callback = HPUGraphCallback(warmup=warmup, pad_batch=False)
    assert predict(make(Tagger), texts(), callback) == 2
    assert callback.stats.captures == 2
    one = HPUGraphCallback(warmup=warmup[0], pad_batch=False)
    assert predict(make(Tagger), texts(), one) == 1


@pytest.mark.parametrize("warmup", [[[[4, 4]], [[2, 4]]], [[4, 4], [2, 4, "float32"]]], ids=str)
def test_shapes_of_positional_arguments(warmup):
    callback = HPUGraphCallback(warmup=warmup, pad_batch=False)
    assert predict(make(WithForward), data(), callback) == 2
    assert callback.stats.captures == 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions(precision):
    callback = HPUGraphCallback(warmup=[[4, 4], [2, 4]], pad_batch=False)
    module = make(WithForward)
    trainer(callback, precision=precision).predict(module, data())
    assert callback.stats.captures == 2


def test_several_targets():
    warmup = {"body": [4, 4], "head": [[4, 8], [2, 8]]}
    callback = HPUGraphCallback(targets=["body", "head"], warmup=warmup, pad_batch=False)
    assert predict(make(), data(), callback) == 3
    assert callback.stats.captures == 4


def test_buckets_of_a_collator():
    callback = HPUGraphCallback(warmup="buckets", pad_batch=False)
    assert predict(make(Tagger), texts(), callback) == 2
    assert callback.stats.captures == 2


def test_buckets_of_a_datamodule():
    class Module(L.LightningDataModule):
        buckets = (4, 8, 16)

        def predict_dataloader(self):
            return DataLoader(texts().dataset, batch_size=2, collate_fn=lambda r: Collator()(r))

    callback = HPUGraphCallback(warmup="buckets", pad_batch=False)
    trainer(callback).predict(make(Tagger), datamodule=Module())
    assert callback.stats.captures == 3


def test_graphs_are_warm_over_the_validations_of_a_fit():
    callback = HPUGraphCallback(
        "validate", targets=["body"], warmup=[[4, 4], [2, 4]], pad_batch=False
    )
    trainer(callback, max_epochs=3).fit(make(), data(), data())
    assert callback.stats.captures == 2


def test_a_progress_bar(capsys):
    callback = HPUGraphCallback(warmup=[[4, 4]])
    trainer(callback, enable_progress_bar=True).predict(make(WithForward), data())
    assert "Capturing HPU graphs" in capsys.readouterr().out
    trainer(HPUGraphCallback(warmup=[[4, 4]])).predict(make(WithForward), data())
    assert "Capturing HPU graphs" not in capsys.readouterr().out


def test_a_warmup_that_no_call_fits_is_said():
    callback = HPUGraphCallback(warmup={"x": [4, 4]}, pad_batch=False)  # the step passes no name
    with pytest.warns(UserWarning, match="no call of 'forward' had the shapes of warmup.*4x4 flo"):
        predict(make(WithForward), data(), callback)


class OddBatches(Collator):
    def __call__(self, rows):
        return [*super().__call__(rows).values()]


class OddLength(Collator):
    buckets = (5, 6)

    def __call__(self, rows):
        return Collator()(rows)


class OddNames(Collator):
    def __call__(self, rows):
        return {"words": super().__call__(rows)["ids"]}


def odd(collator):
    return lambda: DataLoader(texts().dataset, batch_size=2, collate_fn=collator())


@pytest.mark.parametrize(
    ("warmup", "loader", "message"),
    [
        ("buckets", data, "warmup='buckets' needs buckets, and neither the datamodule"),
        ("buckets", odd(OddBatches), "mappings of argument names to tensors.*type list"),
        ("buckets", odd(OddLength), r"no tensor of a batch has one of the buckets \[5, 6\]"),
        ("buckets", odd(OddNames), r"target 'model' takes none of a batch's \['words'\] by name"),
        ({"ids": [2, "int65"]}, texts, "'int65' is no dtype of torch"),
        ({"ids": [2, -4]}, texts, r"\[2, -4\] is no shape"),
        ({"modle": {"ids": [2, 4]}}, texts, "warmup names a target 'modle', but the targets are"),
        (["ids"], texts, "a call must be a mapping of argument names to shapes.*it is 'ids'"),
    ],
)
def test_what_cannot_be_warmed_up(warmup, loader, message):
    with pytest.raises(ConfigurationError, match=message):
        trainer(HPUGraphCallback(warmup=warmup)).predict(make(Tagger), loader())


def test_several_targets_must_be_named():
    with pytest.raises(ConfigurationError, match=r"which target its shapes are.*'body', 'head'"):
        trainer(HPUGraphCallback(warmup=[[4, 4]])).predict(make(Classifier), data())


class TakesAll(L.LightningModule):
    """Takes batches as `BucketCollator` makes them, in the collator's order of names."""

    hpu_graph_targets = ("model",)

    def __init__(self):
        super().__init__()
        self.model = Wide()

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.model(**batch)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, labels, input_ids, attention_mask):
        embedded = self.embedding(input_ids) * attention_mask[..., None]
        return embedded.sum((1, 2)) + labels.float().sum(1)


LENGTHS = [3, 4, 7, 8, 2, 6, 1, 4]


def bucketed(label_of, lengths=LENGTHS, label_buckets=None):
    rows = [{"labels": label_of(n), "input_ids": [1] * n} for n in lengths]
    return DataLoader(
        rows,
        batch_sampler=BucketBatchSampler(lengths, [4, 8], 2),
        collate_fn=BucketCollator([4, 8], pad_token_id=0, label_buckets=label_buckets),
    )


@pytest.mark.parametrize(
    ("label_of", "label_buckets", "shapes"),
    [
        (lambda n: [0.5] * 4, None, {(4, 4), (8, 4)}),  # as many numbers as a bucket has tokens
        (lambda n: [1] * 8, None, {(4, 8), (8, 8)}),
        (lambda n: [1] * n, [4, 8], {(4, 4), (4, 8), (8, 4), (8, 8)}),
        (lambda n: [1] * n, None, {(4, 4), (8, 8)}),
    ],
    ids=["numbers", "classes", "targets", "tokens"],
)
def test_labels_in_their_own_shapes(label_of, label_buckets, shapes):
    callback = HPUGraphCallback(warmup="buckets")
    loader = bucketed(label_of, label_buckets=label_buckets)
    predict(make(TakesAll), loader, callback)
    graphs = {row.inputs for row in callback.stats.graphs}
    kind = "float32" if isinstance(label_of(1)[0], float) else "int64"
    assert graphs == {f"2x{m} {kind}, 2x{n} int64, 2x{n} int64" for n, m in shapes}


def test_a_dataloader_without_rows_beside_another():
    callback = HPUGraphCallback(warmup="buckets")
    loaders = [bucketed(lambda n: [1] * n, lengths) for lengths in ([], LENGTHS)]
    with pytest.warns(UserWarning, match="across ranks is zero"):
        trainer(callback).predict(make(TakesAll), loaders)
    assert callback.stats.captures == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter(texts().dataset)


def test_a_stream_has_no_rows_to_warm_up_with():
    loader = DataLoader(Stream(), batch_size=2, collate_fn=Collator())
    with pytest.raises(ConfigurationError, match=r"DataLoader over Stream has none.*give the shap"):
        trainer(HPUGraphCallback(warmup="buckets")).predict(make(Tagger), loader)
