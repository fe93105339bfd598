"""Several cards: DDP over HCCL, one process a card, equal to stock Lightning's DDP on the CPU."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import by_lightning, free_port, run_ranks, values
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from torch import Tensor
from training import Classifier, conv_net, features, trainer

from lightning_gaudi import GaudiStrategy

pytestmark = training.IGNORED_WARNINGS


class Net(Classifier):
    """Logs and gathers what the ranks reduce together."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log("val_loss", loss, sync_dist=True)
        self.log("val_max", loss, sync_dist=True, reduce_fx="max")
        self.log("val_rank", float(self.global_rank), sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.gathered = self.all_gather(batch[0].sum())

    def on_train_start(self) -> None:
        self.card = os.environ.get("HLS_MODULE_ID")
        self.sampler = type(self.trainer.train_dataloader.sampler).__name__
        self.wrapper = type(self.trainer.strategy.model).__name__


def fit_and_test(folder: Path, accelerator: str, strategy: str) -> tuple[Any, Any]:
    """What a fit and a test give, and what this process is in them."""
    torch.manual_seed(0)
    net = Net(conv_net())
    run = trainer(
        accelerator,
        strategy=strategy,
        devices=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=[ModelCheckpoint(folder, filename="last")],
        enable_checkpointing=True,
    )
    data = features((1, 6, 6))
    run.fit(net, data, data)
    results: dict[str, Any] = {
        "losses": net.losses,
        "metrics": {name: value.item() for name, value in run.callback_metrics.items()},
        "state": net.state_dict(),
    }
    run.test(net, data, verbose=False)
    results["gathered"] = net.gathered.cpu()
    results["decision"] = run.strategy.reduce_boolean_decision(run.global_rank == 0, all=True)
    about = {
        "ranks": (run.global_rank, run.local_rank, run.world_size, run.num_devices),
        "strategy": type(run.strategy).__name__,
        "wrapper": net.wrapper,
        "sampler": net.sampler,
        "card": net.card,
        "backend": torch.distributed.get_backend(),
    }
    return results, about


def on_two_ranks(folder: Path, accelerator: str, strategy: str) -> list[Any]:
    folder.mkdir()
    port = free_port()
    # As a process that another rank started would inherit it.
    given = [by_lightning(rank, 2, port, HLS_MODULE_ID="0") for rank in range(2)]
    return values(run_ranks(folder, fit_and_test, folder, accelerator, strategy, variables=given))


def test_two_cards_against_stock_ddp_on_the_cpu(tmp_path: Path) -> None:
    on_hpu = on_two_ranks(tmp_path / "hpu", "hpu", "auto")
    on_cpu = on_two_ranks(tmp_path / "cpu", "cpu", "ddp")
    for rank, ((found, about), (expected, _)) in enumerate(zip(on_hpu, on_cpu, strict=True)):
        assert about == {
            "ranks": (rank, rank, 2, 2),
            "strategy": "GaudiStrategy",
            "wrapper": "DistributedDataParallel",
            "sampler": "DistributedSampler",
            "card": str(rank),
            "backend": "hccl",
        }
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert on_hpu[0][0]["losses"] != on_hpu[1][0]["losses"]
    assert on_hpu[0][0]["metrics"]["val_rank"] == 0.5
    assert on_hpu[0][0]["decision"] is False

    content = torch.load(tmp_path / "hpu" / "last.ckpt", weights_only=True)
    torch.testing.assert_close(dict(content["state_dict"]), dict(on_hpu[0][0]["state"]))


@pytest.fixture
def _two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")


@pytest.mark.usefixtures("_two_cards")
def test_several_devices_are_distributed() -> None:
    run = trainer(devices=2)
    strategy = run.strategy
    assert type(strategy) is GaudiStrategy
    assert not strategy.has_one_device
    assert run.num_devices == run.world_size == 2
    assert run._accelerator_connector.is_distributed
    assert type(strategy.launcher) is _SubprocessScriptLauncher
    assert strategy.process_group_backend == "hccl"
    assert strategy.root_device == torch.device("hpu", 0)
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 2, "rank": 0}
    assert strategy.determine_ddp_device_ids() is None


@pytest.mark.usefixtures("_two_cards")
def test_auto_takes_all_cards() -> None:
    import lightning as L

    for devices in ("auto", -1):
        assert L.Trainer(accelerator="hpu", devices=devices, logger=False).num_devices == 2


def test_several_nodes_of_one_card_are_distributed() -> None:
    strategy = GaudiStrategy(cluster_environment=LightningEnvironment())
    run = trainer(strategy=strategy, num_nodes=2)
    assert run.world_size == 2
    assert not strategy.has_one_device


@pytest.mark.usefixtures("_two_cards")
def test_arguments_of_ddp_are_passed_on() -> None:
    strategy = GaudiStrategy(
        find_unused_parameters=True,
        bucket_cap_mb=25,
        start_method="spawn",
        timeout=timedelta(seconds=7),
        process_group_backend="gloo",
    )
    assert strategy._ddp_kwargs == {
        "find_unused_parameters": True,
        "bucket_cap_mb": 25,
        "gradient_as_bucket_view": True,
    }
    assert strategy._timeout == timedelta(seconds=7)
    run = trainer(devices=2, strategy=strategy)
    assert type(run.strategy.launcher) is _MultiProcessingLauncher
    assert strategy.process_group_backend == "gloo"


def test_several_processes_for_one_device_do_not_train_each_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"devices=1.* does not match the world size \(2\)"):
        trainer(devices=1)


def test_one_device_starts_nothing() -> None:
    strategy = trainer().strategy
    assert strategy.has_one_device
    assert strategy.launcher is None
    value = torch.ones(2, device="hpu")
    assert strategy.reduce(value) is value
    assert strategy.reduce("text") == "text"
    assert strategy.reduce_boolean_decision(False) is False
    assert strategy.broadcast({"a": 1}) == {"a": 1}
    assert strategy.all_gather(value) is value
    strategy.barrier()
    assert not torch.distributed.is_initialized()
