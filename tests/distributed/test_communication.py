"""What the cards tell each other: gradients once a step, means as sums, statistics, decisions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import training
from distributed.jobs import run_ranks, values
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from training import Classifier, conv_net, features, mlp, trainer

from lightning_gaudi import GaudiStrategy, emulator

pytestmark = training.IGNORED_WARNINGS


class Counting(Classifier):
    """Notes after which micro-batches gradients have been reduced."""

    def on_train_start(self) -> None:
        self.calls: list[int] = []

        def hook(state, bucket):  # DDP checks annotations, and not as text
            assert bucket.buffer().device.type == "hpu"
            self.calls.append(self.batch)
            return default_hooks.allreduce_hook(state, bucket)

        self.trainer.strategy.model.register_comm_hook(None, hook)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.batch = batch_idx
        return super().training_step(batch, batch_idx)


class CountingByHand(Counting):
    """Manual optimization: two backwards a step, of which Lightning reduces each."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        self.batch = batch_idx
        optimizer = self.optimizers()
        with self.trainer.strategy.block_backward_sync():
            self.manual_backward(self.loss(batch))
        self.manual_backward(self.loss(batch))
        optimizer.step()
        optimizer.zero_grad()
        self.losses.append(0.0)


def fit_counting(by_hand: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    net = CountingByHand() if by_hand else Counting(mlp())
    settings: dict[str, Any] = {} if by_hand else {"accumulate_grad_batches": 3}
    run = trainer(
        strategy=GaudiStrategy(),
        devices=2,
        max_epochs=1,
        use_distributed_sampler=False,
        **settings,
    )
    with emulator.record() as events:
        run.fit(net, features(rows=7 * 4))
    marks = [event.cause for event in events if event.kind == "mark_step"]
    return {"calls": net.calls, "num_marks": len(marks), "state": net.network[0].weight.cpu()}


def test_micro_batches_do_not_communicate(tmp_path: Path) -> None:
    first, second = values(run_ranks(tmp_path, fit_counting, False))
    # Batches 2 and 5 fill up three, 6 is the last; one bucket.
    assert first["calls"] == second["calls"] == [2, 5, 6]
    assert torch.equal(first["state"], second["state"])


def test_a_backward_that_the_user_holds_back_does_not_communicate(tmp_path: Path) -> None:
    first, second = values(run_ranks(tmp_path, fit_counting, True))
    assert first["calls"] == second["calls"] == list(range(7))
    assert torch.equal(first["state"], second["state"])


def fit_compressed() -> Any:
    torch.manual_seed(0)
    wrapped = []

    def wrapper(hook: Any) -> Any:
        wrapped.append(hook)
        return hook

    strategy = GaudiStrategy(
        ddp_comm_hook=default_hooks.fp16_compress_hook, ddp_comm_wrapper=wrapper
    )
    net = Classifier(mlp(), lambda parameters: torch.optim.SGD(parameters, 0.1))
    trainer(strategy=strategy, devices=2, max_epochs=1, use_distributed_sampler=False).fit(
        net, features(rows=4)
    )
    assert wrapped == [default_hooks.fp16_compress_hook]
    return net.network[0].bias.grad.cpu()


def test_a_communication_hook_of_the_users(tmp_path: Path) -> None:
    first, second = values(run_ranks(tmp_path, fit_compressed))
    assert torch.equal(first, second)
    net = Classifier(torch.manual_seed(0) and mlp())
    net.loss(next(iter(features(rows=4)))).backward()
    expected = net.network[0].bias.grad
    # Rounded to float16 on its way, and so not equal to the last bit.
    assert not torch.equal(first, expected)
    assert torch.equal(first, expected.half().float())


class Logging(L.LightningModule):
    """Logs and reduces numbers that say which rank they are from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.accuracy = MulticlassAccuracy(num_classes=3, average="micro")
        self.mean = MeanMetric()
        self.found: dict[str, Any] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        number = float(self.global_rank + 1 + batch_idx)
        self.log("step", number, on_step=True, on_epoch=True, sync_dist=True)
        return self.weight.sum() * number

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        # Rank 0 has rows 0, 2, 4, 6 and rank 1 the others, in batches of 3 and 1.
        value = batch.float().mean()
        rows = len(batch)
        for name, fx in (("mean", "mean"), ("sum", "sum"), ("max", "max"), ("min", "min")):
            self.log(name, value, sync_dist=True, reduce_fx=fx, batch_size=rows)
        self.log("whole", batch.sum(), sync_dist=True, reduce_fx="sum", batch_size=rows)
        self.mean.update(value, weight=rows)
        self.accuracy.update(batch % 3, torch.zeros_like(batch))
        self.log("metric", self.mean, batch_size=rows)
        self.log("accuracy", self.accuracy, batch_size=rows)

    def on_train_end(self) -> None:
        strategy, rank = self.trainer.strategy, self.global_rank
        one = torch.tensor([rank + 1.0], device=self.device)
        for op in ("mean", "avg", "sum", "max", "min", torch.distributed.ReduceOp.AVG):
            self.found[str(op)] = strategy.reduce(one.clone(), reduce_op=op).item()
        self.found["whole_mean"] = strategy.reduce(torch.tensor([rank * 3], device="hpu")).item()
        self.found["text"] = strategy.reduce("text")
        for everyone in (True, False):
            self.found[f"all={everyone}"] = [
                strategy.reduce_boolean_decision(decision, all=everyone)
                for decision in (True, False, rank == 0)
            ]
        self.found["broadcast"] = strategy.broadcast({"from": rank}, src=1)
        leaf = torch.tensor([1.0, 2.0 + rank], device=self.device, requires_grad=True)
        gathered = self.all_gather(leaf, sync_grads=True)
        (gathered * torch.tensor([[1.0, 1.0], [10.0, 10.0]], device=self.device)).sum().backward()
        self.found["gathered"] = gathered.tolist()
        self.found["gradient"] = leaf.grad.tolist()
        self.found["no_gradient"] = self.all_gather(leaf).requires_grad
        self.found["nested"] = {
            name: value.tolist() for name, value in self.all_gather({"rank": one}).items()
        }

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1.0)


def reduce_means() -> dict[str, Any]:
    net = Logging()
    run = trainer(devices=2, max_epochs=1)
    run.fit(net, DataLoader(range(4)), DataLoader(range(8), batch_size=3))
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    return {"metrics": metrics, "weight": net.weight.tolist(), **net.found}


def test_means_are_sums_and_divisions(tmp_path: Path) -> None:
    first, second = values(run_ranks(tmp_path, reduce_means))
    for found in (first, second):
        # Of two training steps: rank 0 logs 1, 2 and rank 1 logs 2, 3.
        assert found["metrics"] == pytest.approx(
            {
                "step": 2.0,
                "step_step": 2.5,
                "step_epoch": 2.0,
                "mean": 3.5,  # of all rows
                "sum": 2 + 6 + 3 + 7,
                "max": 7,
                "min": 2,
                "whole": 28,
                "metric": 3.5,
                "accuracy": 3 / 8,
            }
        )
        assert found["weight"] == [1 - 1.5 - 2.5] * 2
        assert {found[name] for name in ("mean", "avg", "RedOpType.AVG")} == {1.5}
        assert (found["sum"], found["max"], found["min"]) == (3.0, 2.0, 1.0)
        assert found["whole_mean"] == 1  # 1.5, cut as a whole number is
        assert found["text"] == "text"
        assert found["all=True"] == [True, False, False]
        assert found["all=False"] == [True, False, True]
        assert found["broadcast"] == {"from": 1}
        assert found["gathered"] == [[1.0, 2.0], [1.0, 3.0]]
        assert found["no_gradient"] is False
        assert found["nested"] == {"rank": [[1.0], [2.0]]}
    # Each rank's own row is worth its factor in both ranks' sums.
    assert (first["gradient"], second["gradient"]) == ([2.0, 2.0], [20.0, 20.0])


class Worse(Classifier):
    """Gets worse on rank 1 only; what both together see decides."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        score = [5.0, 4.0, 4.5, 6.0, 0.0][self.current_epoch] * (1 + self.global_rank)
        self.log("score", score, sync_dist=True)
        self.log("own", score + self.global_rank * self.current_epoch, sync_dist=False)


def fit_monitored(folder: str) -> Any:
    torch.manual_seed(0)
    stopping = EarlyStopping("score", patience=2, check_finite=True)
    best = ModelCheckpoint(folder, "{epoch}", monitor="score", save_top_k=1)
    net = Worse(mlp())
    run = trainer(devices=2, max_epochs=5, callbacks=[stopping, best], enable_checkpointing=True)
    run.fit(net, features(), features(rows=8))
    return (
        run.current_epoch,
        stopping.stopped_epoch,
        best.best_model_path,
        float(best.best_model_score),
    )


def test_monitors_decide_together(tmp_path: Path) -> None:
    both = values(run_ranks(tmp_path, fit_monitored, str(tmp_path)))
    # Scores 7.5, 6, 6.75, 9: two epochs without a better one after epoch 1.
    assert both == [(4, 3, f"{tmp_path}/epoch=1.ckpt", 6.0)] * 2
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=1.ckpt"]


class Unused(Classifier):
    """Has a layer that no loss comes from."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)}))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.network["used"](batch[0]), batch[1])


def fit_unused(**ddp: Any) -> list[float]:
    torch.manual_seed(0)
    net = Unused()
    trainer(strategy=GaudiStrategy(**ddp), devices=2, max_epochs=1).fit(net, features())
    return net.losses


def test_unused_parameters(tmp_path: Path) -> None:
    for outcome in run_ranks(tmp_path, fit_unused):
        assert "RuntimeError: Expected to have finished reduction" in outcome.error
        assert "If that is meant, use GaudiStrategy(find_unused_parameters=True)." in outcome.error
        assert "ddp_find_unused_parameters_true" not in outcome.error
    found = values(run_ranks(tmp_path, partial(fit_unused, find_unused_parameters=True)))
    assert [len(losses) for losses in found] == [3, 3]


def fit_conv(rows: list[tuple[int, int]], size: int, **settings: Any) -> Any:
    """Train on given rows of each batch of 6; what the network then is, and its gradients."""
    torch.manual_seed(0)
    net = Classifier(conv_net(), lambda parameters: torch.optim.SGD(parameters, 0.1))
    strategy = GaudiStrategy()
    run = trainer(
        strategy=strategy, devices=size, max_epochs=1, use_distributed_sampler=False, **settings
    )
    start, end = rows[run.global_rank]
    images = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(12) % 3
    own = [(images[i : i + 6][start:end], labels[i : i + 6][start:end]) for i in (0, 6)]
    if size > 1:
        # DDP's mean of the ranks' means is that of all rows where each counts by its rows.
        share = (end - start) / (6 / size)
        net.loss = lambda batch: Classifier.loss(net, batch) * share
    run.fit(net, DataLoader(own, batch_size=None))
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    return net.losses, state, [parameter.grad.cpu() for parameter in net.parameters()]


@pytest.mark.parametrize("rows", [[(0, 3), (3, 6)], [(0, 4), (4, 6)]], ids=["even", "uneven"])
def test_batch_norm_over_cards_against_one_card(
    tmp_path: Path, rows: list[tuple[int, int]]
) -> None:
    job = partial(fit_conv, rows, 2, sync_batchnorm=True)
    (losses, state, gradients), (others, other_state, _) = values(run_ranks(tmp_path, job))
    expected_losses, expected, expected_gradients = fit_conv([(0, 6)], 1)
    mean = [(a + b) / 2 for a, b in zip(losses, others, strict=True)]
    assert mean == pytest.approx(expected_losses, abs=1e-5)
    torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, other_state)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-5)
    if rows[0] == (0, 3):
        without = values(run_ranks(tmp_path, partial(fit_conv, rows, 2)))[0][1]
        difference = without["network.1.running_var"] - expected["network.1.running_var"]
        assert difference.abs().max() > 1e-3, "the two would be equal without it"
