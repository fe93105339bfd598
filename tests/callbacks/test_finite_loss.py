"""A loss or a weight that is NaN ends a fit, and costs no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.jobs import run_ranks
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from training import NUM_BATCHES, Classifier, features, mlp, trainer

from lightning_gaudi import FiniteLoss, GaudiStrategy, emulator
from lightning_gaudi.errors import ConfigurationError, NonFiniteError


class Net(Classifier):
    """Has a loss of its own choice at one batch, on one rank."""

    def __init__(self, batch: int = -1, value: float = float("nan"), rank: int = 0) -> None:
        super().__init__(mlp())
        self.batch, self.value, self.rank = batch, value, rank
        self.num_batches = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.num_batches == self.batch and self.global_rank == self.rank:
            loss = loss * self.value
        self.num_batches += 1
        return loss


def fit(net: Any, *callbacks: Any, **settings: Any) -> None:
    has_files = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    run = trainer(callbacks=[*callbacks], enable_checkpointing=has_files, **settings)
    run.fit(net, features())


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("accelerator", ["hpu", "cpu"])
def test_the_error_names_batch_value_and_checkpoint(
    tmp_path: Path, accelerator: str, value: float
) -> None:
    files = ModelCheckpoint(tmp_path, every_n_epochs=1)
    net = Net(batch=NUM_BATCHES + 2, value=value)
    with pytest.raises(NonFiniteError) as raised:
        fit(net, FiniteLoss(every_n_batches=4), files, accelerator=accelerator)
    text = str(raised.value)
    assert f"the loss of training batch {NUM_BATCHES + 2} on rank 0 is {value} " in text
    assert f"this is known after batch {NUM_BATCHES + 3}, as" in text
    assert net.num_batches == NUM_BATCHES + 4
    path = next(tmp_path.iterdir())
    if accelerator == "hpu":
        assert f"The last checkpoint, with finite weights, is {path}." in text
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in state.values())


def test_without_a_checkpoint_it_says_so() -> None:
    with pytest.raises(NonFiniteError, match="This fit has saved no checkpoint"):
        fit(Net(batch=1), FiniteLoss(every_n_batches=1))


def test_the_end_of_training_reads_the_note() -> None:
    with pytest.raises(NonFiniteError, match="loss of training batch 11 "):
        fit(Net(batch=2 * NUM_BATCHES - 1), FiniteLoss())


@pytest.mark.parametrize("only_weights", [False, True])
def test_no_checkpoint_is_written_or_replaced(tmp_path: Path, only_weights: bool) -> None:
    files = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=2, save_weights_only=only_weights
    )
    with pytest.raises(NonFiniteError, match="loss of training batch 4 on"):
        fit(Net(batch=4), FiniteLoss(every_n_batches=1000), files)
    assert [path.name for path in tmp_path.iterdir()] == ["step=4.ckpt"]


def test_nor_for_the_exception_itself(tmp_path: Path) -> None:
    files = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1000, save_on_exception=True
    )
    with (
        pytest.warns(UserWarning, match="No checkpoint is written of the run that has failed"),
        pytest.raises(NonFiniteError),
    ):
        fit(Net(batch=1), FiniteLoss(every_n_batches=2), files)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_finite_loss_has_spoilt(tmp_path: Path) -> None:
    class Spoilt(Net):
        def on_after_backward(self) -> None:
            if self.num_batches == 3:
                self.network[2].bias.grad[0] = float("nan")

    files = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    expected = "weights on rank 0 are NaN or infinite after batch 2, though every loss was finite"
    with pytest.raises(NonFiniteError, match=expected) as raised:
        fit(Spoilt(), FiniteLoss(), files)
    assert ": network.2.bias. They are not saved. The last checkpoint" in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=1.ckpt", "step=2.ckpt"]


def test_losses_and_weights_are_those_of_a_fit_without_it() -> None:
    nets = []
    for callbacks in ([], [FiniteLoss(every_n_batches=2)]):
        torch.manual_seed(0)
        nets.append(Classifier(mlp()))
        fit(nets[-1], *callbacks)
    assert nets[0].losses == nets[1].losses
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name])


def test_it_reads_and_compiles_nothing_in_a_usual_step() -> None:
    reads: dict[int, list[str]] = {}

    class Watched(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.recording = emulator.record()
            self.events = self.recording.__enter__()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.recording.__exit__(None, None, None)
            kinds = [event.kind for event in self.events]
            reads[batch_idx] = [kind for kind in kinds if kind in ("host_read", "d2h", "compile")]

    # Once around, so that all graphs are known, reads of the note included.
    fit(Watched(), FiniteLoss(every_n_batches=5), max_epochs=3)
    assert reads.pop(4) == ["host_read", "d2h"]  # one transfer
    assert reads == {step: [] for step in (0, 1, 2, 3, 5)}


def test_manual_optimization_and_steps_without_a_loss() -> None:
    class Manual(Net):
        automatic_optimization = False

        def __init__(self, returns: bool) -> None:
            nn.Module.__init__(self)
            super().__init__(batch=2)
            self.automatic_optimization = False
            self.returns = returns

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss} if self.returns else None

    with pytest.raises(NonFiniteError, match="loss of training batch 2 "):
        fit(Manual(returns=True), FiniteLoss(every_n_batches=3))
    fit(Manual(returns=False), FiniteLoss(every_n_batches=3))


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "5"])
def test_how_often_must_be_a_number(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="every_n_batches must be 1 or more, but it is"):
        FiniteLoss(every_n_batches=wrong)


def _two(folder: str) -> None:
    files = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=2)
    run = trainer(
        devices=2,
        strategy=GaudiStrategy(),
        callbacks=[FiniteLoss(every_n_batches=1000), files],
        enable_checkpointing=True,
        max_epochs=3,
    )
    run.fit(Net(batch=4, rank=1), features())


@pytest.mark.slow
def test_all_ranks_stop_with_the_same_error(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    outcomes = run_ranks(tmp_path, _two, str(folder))
    for outcome in outcomes:
        # Its own error: what the other rank has failed of is told with any.
        assert "NonFiniteError: the loss of training batch 4 on rank 1 is nan" in outcome.error
        assert "The run has ended because" not in outcome.error
        assert f"The last checkpoint, with finite weights, is {folder}/step=4.ckpt" in outcome.error
    assert sorted(path.name for path in folder.iterdir()) == ["step=2.ckpt", "step=4.ckpt"]
