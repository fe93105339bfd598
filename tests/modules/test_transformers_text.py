"""`TransformersModule` with `TextDataModule`: the curve is the same with and without graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import training
from data.texts import classifier, labelled_rows, word_tokenizer, write

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.data import TextDataModule

pytestmark = training.IGNORED_WARNINGS


class Curve(L.Callback):
    """Keeps the loss of every training step, and the metrics of every validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validated: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.losses.append(outputs["loss"].item())

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        metrics = trainer.callback_metrics
        self.validated.append({k: float(v) for k, v in metrics.items() if k.startswith("val/")})


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"pad_batch": False}, id="unpadded"),
        pytest.param({"pad_batch": False, "disable_tensor_cache": True}, id="no-tensor-cache"),
        pytest.param({"pad_batch": False, "verify": True}, id="verified"),
        pytest.param({"warmup": "buckets"}, id="padded"),
    ],
)
def test_graphs_leave_the_curve_as_it_is(options: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, with dropout and a shuffled training set."""
    path = write(tmp_path / "rows.jsonl", labelled_rows())

    def fit(*callbacks: L.Callback) -> Curve:
        L.seed_everything(3, verbose=False)
        module = classifier()
        assert module.model.config.hidden_dropout_prob == 0.1
        module.learning_rate = 1e-3
        data = TextDataModule(
            word_tokenizer(), train=path, validate=path, num_buckets=3, batch_size=4
        )
        curve = Curve()
        trainer = training.trainer(callbacks=[curve, *callbacks], max_epochs=3)
        trainer.fit(module, data)
        assert len(curve.losses) == trainer.global_step
        return curve

    plain = fit()
    assert len(set(plain.losses)) == len(plain.losses) >= 9
    losses = [metrics["val/loss"] for metrics in plain.validated]
    assert len(set(losses)) == 3
    graphs = HPUGraphCallback(**options)
    replayed = fit(graphs)
    assert replayed.losses == plain.losses
    if options.get("pad_batch", True):  # a matrix with more rows may differ in its last bits
        assert graphs.stats.padded_calls > 0
        assert graphs.stats.captures == 3
        expected = [pytest.approx(metrics, rel=1e-6) for metrics in plain.validated]
        assert replayed.validated == expected
    else:
        assert replayed.validated == plain.validated
        assert 0 < graphs.stats.captures <= 6
    assert graphs.stats.replays >= 2 * graphs.stats.captures
    assert graphs.stats.eager_calls == 0


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_rate_that_lightning_finds_is_used(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    path = write(tmp_path / "rows.jsonl", labelled_rows())
    data = TextDataModule(word_tokenizer(), train=path, num_buckets=3, batch_size=4)
    module = classifier()
    trainer = training.trainer(max_epochs=20, default_root_dir=tmp_path)
    found = Tuner(trainer).lr_find(module, data, num_training=40)
    assert found is not None
    rate = found.suggestion()
    assert rate is not None
    assert module.learning_rate == module.hparams["learning_rate"] == rate != 5e-5
    trainer.fit_loop.max_epochs = 1
    trainer.fit(module, data)
    assert [group["initial_lr"] for group in trainer.optimizers[0].param_groups] == [rate] * 2
