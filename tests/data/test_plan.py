"""Forecasts are what then happens, and bad arguments are named."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.data import BucketBatchSampler, BucketCollator
from lightning_gaudi.data.plan import (
    Forecast,
    forecast_buckets,
    forecast_unbucketed,
    recommend,
)
from lightning_gaudi.errors import ConfigurationError

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def batches_of(lengths, forecast, batch_size):
    rows = [{"input_ids": [1] * length} for length in lengths]
    if not forecast.buckets:
        collator = BucketCollator(range(1, max(lengths) + 1), pad_token_id=0)
        return list(DataLoader(rows, batch_size, collate_fn=collator))
    collator = BucketCollator(forecast.buckets, pad_token_id=0)
    sampler = BucketBatchSampler(lengths, forecast.buckets, batch_size, rank=0, world_size=1)
    return list(DataLoader(rows, batch_sampler=sampler, collate_fn=collator))


def happened(batches):
    """Captures by length, padding, steps and bytes of two int64 fields, from the batches."""
    rows_of = {}
    for batch in batches:
        rows, length = batch["input_ids"].shape
        rows_of[length] = max(rows, rows_of.get(length, 0))
    masks = [batch["attention_mask"] for batch in batches]
    tokens = sum(mask.numel() for mask in masks)
    return (
        len(rows_of),
        1 - sum(int(mask.sum()) for mask in masks) / tokens,
        len(batches),
        sum(16 * rows * length for length, rows in rows_of.items()),
    )


@given(LENGTHS, st.integers(1, 7), st.integers(1, 6))
@settings(deadline=None)  # the machine may be busy
def test_forecasts_are_what_the_batches_have(lengths, batch_size, max_buckets):
    forecasts = forecast_buckets(lengths, batch_size, max_buckets)
    assert len(forecasts) == min(max_buckets, len(set(lengths)))
    for forecast in [*forecasts, forecast_unbucketed(lengths, batch_size)]:
        captures, padding, steps, num_bytes = happened(batches_of(lengths, forecast, batch_size))
        assert (forecast.captures, forecast.steps) == (captures, steps)
        assert forecast.input_bytes == num_bytes
        assert forecast.padding_fraction == pytest.approx(padding)


def test_multiples_and_fields_are_counted():
    (one,) = forecast_buckets([3, 5], 2, 1, multiple_of=4, num_fields=3)
    assert one == Forecast(
        buckets=[8], captures=1, padding_fraction=0.5, steps=1, input_bytes=3 * 2 * 8 * 8
    )


class Embedder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Embedding(2, 3)

    def predict_step(self, batch, batch_idx):
        return self.net(batch["input_ids"])


def test_the_callback_captures_as_forecast():
    lengths = torch.randint(1, 40, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    forecast = forecast_buckets(lengths, 4)[4]
    rows = [{"input_ids": [1] * length} for length in lengths]
    loader = DataLoader(
        rows,
        batch_sampler=BucketBatchSampler(lengths, forecast.buckets, 4),
        collate_fn=BucketCollator(forecast.buckets, pad_token_id=0),
    )
    graphs = HPUGraphCallback()
    trainer = L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        callbacks=[graphs],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    predictions = trainer.predict(Embedder(), loader)
    assert graphs.stats.captures == forecast.captures == 5
    assert len(predictions) == forecast.steps
    (target,) = graphs.stats.per_target
    assert target == "net"


def test_the_fewest_buckets_with_little_padding_are_recommended():
    lengths = [2, 3, 5, 8, 13, 21]
    forecasts = forecast_buckets(lengths, 1)
    chosen = recommend(forecasts, 0.2)
    assert chosen is not None
    assert chosen.padding_fraction <= 0.2
    fewer = [f for f in forecasts if len(f.buckets) < len(chosen.buckets)]
    assert fewer
    assert all(f.padding_fraction > 0.2 for f in fewer)
    assert recommend(forecasts[:2], 0.0) is None
    assert recommend(forecasts, 0.0) == forecasts[-1]


@pytest.mark.parametrize("run", [forecast_buckets, forecast_unbucketed], ids=["buckets", "without"])
def test_bad_arguments_are_named(run):
    with pytest.raises(ConfigurationError, match="there are no lengths"):
        run([], 4)
    with pytest.raises(ConfigurationError, match="batch_size must be a whole number above 0, but"):
        run([1, 2], 0)
    with pytest.raises(ConfigurationError, match="num_fields must be"):
        run([1, 2], 4, num_fields=0)


def test_a_fraction_is_a_fraction():
    with pytest.raises(ConfigurationError, match="max_padding must be a fraction from 0 to 1"):
        recommend(forecast_buckets([1, 2], 1), 12)
