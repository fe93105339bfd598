"""`trainer.predict` returns the rows in order, from every kind of sampler and dataloader."""

from __future__ import annotations

import pytest
import torch
from data.loops import LENGTHS, Notes, loader, rows, trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lightning_gaudi.callbacks.prediction_order import PredictionOrder
from lightning_gaudi.data import BucketCollator
from lightning_gaudi.errors import ConfigurationError


class Writer(BasePredictionWriter):
    def __init__(self):
        super().__init__("batch_and_epoch")
        self.batches = []

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, *_):
        self.batches.append((prediction["index"].tolist(), batch_indices))

    def write_on_epoch_end(self, trainer, module, predictions, batch_indices):
        self.predictions, self.batch_indices = list(predictions), [list(b) for b in batch_indices]


def indices(predictions):
    return [int(row["index"]) for row in predictions]


def plain(**options):
    return DataLoader(rows(), collate_fn=BucketCollator([9], pad_token_id=0), **options)


@pytest.mark.parametrize(
    "make",
    [
        loader,
        lambda: loader(fill="filler", batch_size=3),
        lambda: loader(shuffle=True, num_workers=1),
        lambda: plain(batch_size=3),
        lambda: plain(batch_size=2, shuffle=True, drop_last=True),
        lambda: plain(
            batch_size=2, sampler=DistributedSampler(range(7), num_replicas=3, rank=1, shuffle=True)
        ),
    ],
    ids=["buckets", "fillers", "shuffled_buckets", "stock", "stock_shuffled", "distributed"],
)
@pytest.mark.filterwarnings("ignore:Your `predict_dataloader`'s sampler has shuffling enabled")
def test_rows_in_order(make):
    data = make()
    predicted = trainer(PredictionOrder()).predict(Notes(), data)
    expected = sorted(set(data.sampler)) if type(data.sampler) is DistributedSampler else range(7)
    assert indices(predicted) == list(expected)
    assert [int(row["length"]) for row in predicted] == [LENGTHS[i] for i in expected]


def test_several_dataloaders_have_a_list_each():
    predicted = trainer(PredictionOrder()).predict(Notes(), [loader(), plain(batch_size=4)])
    assert [indices(of_loader) for of_loader in predicted] == [list(range(7))] * 2


def test_rows_left_out_by_a_limit_are_left_out():
    predicted = trainer(PredictionOrder(), limit_predict_batches=2).predict(Notes(), loader())
    assert indices(predicted) == [1, 3, 4, 6]


def test_writers_get_row_numbers():
    before, after = Writer(), Writer()
    trainer(before, PredictionOrder(), after, limit_predict_batches=2).predict(Notes(), loader())
    assert before.batches == after.batches == [([1, 3], [1, 3]), ([4, 6], [4, 6])]
    assert before.batch_indices == [[[1, 3], [4, 6]]]
    assert [p["index"].tolist() for p in before.predictions] == [[1, 3], [4, 6]]
    assert after.batch_indices == [[[1], [3], [4], [6]]]
    assert indices(after.predictions) == [1, 3, 4, 6]


def test_predictions_that_are_not_returned():
    writer = Writer()
    run = trainer(PredictionOrder(), writer)
    assert run.predict(Notes(), loader(), return_predictions=False) is None
    assert indices(writer.predictions) == list(range(7))


def test_without_rows_there_is_no_loop():
    data = DataLoader([], batch_size=2)
    with pytest.warns(UserWarning, match="is zero"):
        assert trainer(PredictionOrder()).predict(Notes(), data) is None


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows()


def test_a_stream_has_no_order():
    net = Notes()
    data = DataLoader(Stream(), batch_size=2, collate_fn=BucketCollator([9], pad_token_id=0))
    with pytest.raises(
        ConfigurationError,
        match=r"order of dataloader 0, DataLoader over Stream: .* no row numbers",
    ):
        trainer(PredictionOrder()).predict(net, data)
    assert not net.seen, "a batch was predicted first"


def test_a_result_without_rows():
    class Total(Notes):
        def predict_step(self, batch, batch_idx):
            return {"loss": torch.tensor(1.0)}

    with pytest.raises(ConfigurationError, match=r"its result\['loss'\] is of shape \[\]"):
        trainer(PredictionOrder()).predict(Total(), loader())


def test_an_unknown_gather():
    with pytest.raises(ConfigurationError, match="gather must be all, first or none"):
        PredictionOrder(gather="rank0")
