"""What else Fabric offers, on one HPU: checkpoints, seeds, loggers, callbacks, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from fabric.runs import adamw, fabric, loss_of, on_cpu, sgd
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn
from training import Classifier, conv_net, features, mlp

from lightning_gaudi import HPUCheckpointIO, emulator
from lightning_gaudi.graphs import GraphedForward

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def steps(run: Fabric, state: dict[str, Any], num: int) -> list[float]:
    """Train on with what a checkpoint holds."""
    losses = []
    for batch in list(run.setup_dataloaders(features()))[:num]:
        state["optimizer"].zero_grad()
        loss = loss_of(state["model"], batch)
        run.backward(loss)
        state["optimizer"].step()
        state["step"] += 1
        losses.append(loss.item())
    return losses


def new_state(run: Fabric) -> dict[str, Any]:
    network = mlp()
    model, optimizer = run.setup(network, adamw(network.parameters()))
    return {"model": model, "optimizer": optimizer, "step": 0}


def test_a_checkpoint_is_plain_and_goes_on_where_it_was(tmp_path: Path) -> None:
    run = fabric()
    assert type(run.strategy.checkpoint_io) is HPUCheckpointIO
    state = new_state(run)
    steps(run, state, 3)
    path = tmp_path / "folder" / "state.ckpt"
    run.save(path, state)
    expected = steps(run, state, 2)
    final = on_cpu(state["model"])

    content = torch.load(path, weights_only=True)  # by plain PyTorch, on the CPU
    assert list(content) == ["model", "optimizer", "step"]
    assert list(content["model"]) == list(mlp().state_dict())
    tensors = [*content["model"].values(), *content["optimizer"]["state"][0].values()]
    assert {type(value) for value in tensors} == {Tensor}
    assert {value.device.type for value in tensors} == {"cpu"}
    assert content["step"] == 3

    torch.manual_seed(5)
    other = fabric()
    restored = new_state(other)
    assert other.load(path, restored) == {}
    assert restored["step"] == 3
    assert steps(other, restored, 2) == expected
    torch.testing.assert_close(on_cpu(restored["model"]), final, rtol=0, atol=0)
    assert {p.device.type for p in restored["model"].parameters()} == {"hpu"}

    on_host = fabric("cpu")
    moved = new_state(on_host)
    on_host.load(path, moved)
    assert steps(on_host, moved, 2) == pytest.approx(expected, abs=1e-5)


def test_raw_weights_and_filters(tmp_path: Path) -> None:
    run = fabric()
    model = run.setup_module(mlp())
    run.save(
        tmp_path / "some.ckpt", {"model": model}, filter={"model": lambda name, _: "0." in name}
    )
    assert list(torch.load(tmp_path / "some.ckpt")["model"]) == ["0.weight", "0.bias"]
    torch.save(conv_net().state_dict(), tmp_path / "raw.ckpt")
    network = run.setup_module(conv_net())
    run.load_raw(tmp_path / "raw.ckpt", network)
    expected = torch.load(tmp_path / "raw.ckpt")
    torch.testing.assert_close(on_cpu(network), dict(expected), rtol=0, atol=0)


def test_the_users_checkpoint_io_stays(tmp_path: Path) -> None:
    users = TorchCheckpointIO()
    run = fabric(plugins=users)
    assert run.strategy.checkpoint_io is users
    run.save(tmp_path / "state.ckpt", {"model": run.setup_module(mlp())})
    assert torch.load(tmp_path / "state.ckpt")["model"]["0.weight"].device.type == "cpu"


def test_an_asynchronous_checkpoint_is_of_when_it_was_saved(tmp_path: Path) -> None:
    run = fabric(plugins=HPUCheckpointIO(asynchronous=True))
    state = new_state(run)
    before = on_cpu(state["model"])
    run.save(tmp_path / "state.ckpt", state)
    steps(run, state, 2)
    found = run.load(tmp_path / "state.ckpt")["model"]  # waits for it
    torch.testing.assert_close(dict(found), before, rtol=0, atol=0)


def test_seed_everything_seeds_the_device_too() -> None:
    def draw(seed: int) -> list[Any]:
        run = fabric()
        run.seed_everything(seed, verbose=False)
        model = run.setup_module(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)))
        inputs = torch.ones(2, 4, device=run.device)
        return [model(inputs).tolist(), torch.rand(2).tolist(), np.random.rand()]

    found, again, other = draw(7), draw(7), draw(8)
    assert found == again
    assert all(one != two for one, two in zip(found, other, strict=True))
    assert 0.0 in found[0][0] + found[0][1]


class Noting:
    """A callback that notes what Fabric and the loop tell it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_after_setup(self, fabric: Fabric, module: Any) -> None:
        self.seen.append(("setup", str(fabric.device), type(module).__name__))

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        self.seen.append(("step", type(strategy).__name__, type(optimizer).__name__))

    def on_epoch(self, number: int) -> None:
        self.seen.append(number)


def test_callbacks_loggers_and_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback, logger = Noting(), CSVLogger(tmp_path, name="run", version=0)
    run = fabric(callbacks=callback, loggers=logger)
    network = mlp()
    model, optimizer = run.setup(network, sgd(network.parameters()))
    batch = run.to_device(next(iter(features())))
    loss = loss_of(model, batch)
    run.backward(loss)
    optimizer.step()
    run.call("on_epoch", number=3)
    run.log("loss", loss, step=0)
    run.log_dict({"accuracy": torch.tensor(0.5, device=run.device)}, step=1)
    logger.save()
    assert callback.seen == [
        ("setup", "hpu:0", "_FabricModule"),
        ("step", "GaudiFabricStrategy", "SGD"),
        3,
    ]
    lines = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()
    assert lines[0] == "accuracy,loss,step"
    assert float(lines[1].split(",")[1]) == pytest.approx(loss.item())
    assert lines[2] == "0.5,,1"
    run.print("hello", "there")
    assert capsys.readouterr().out == "hello there\n"


def test_collectives_of_one() -> None:
    run = fabric()
    value = torch.tensor([1.0, 2.0], device=run.device)
    assert run.all_reduce(value) is value
    assert run.all_gather(value) is value
    assert run.all_reduce(3.0).item() == 3.0
    assert run.broadcast(value) is value
    assert run.strategy.reduce_boolean_decision(False) is False
    with emulator.record() as events:
        run.strategy.reduce_boolean_decision(True)
        run.all_reduce(value)
    assert not [event for event in events if event.kind == "host_read"]
    run.barrier()
    with run.rank_zero_first():
        pass
    assert not torch.distributed.is_initialized()


def test_launch_runs_a_function_here() -> None:
    def work(run: Fabric, number: int, *, name: str) -> list[Any]:
        return [run.device, number, name]

    run = fabric()
    assert run.launch(work, 3, name="here") == [torch.device("hpu", 0), 3, "here"]


def test_a_lightning_module_in_fabric_against_the_cpu() -> None:
    class Module(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("loss", loss := self.loss(batch))
            return loss

        def log(self, name: str, value: Any, **_: Any) -> None:
            self.losses.append(value.item())

    def train(run: Fabric) -> list[Any]:
        torch.manual_seed(0)
        module = Module(mlp())
        model, optimizer = run.setup(module, module.configure_optimizers())
        for index, batch in enumerate(run.setup_dataloaders(features())):
            optimizer.zero_grad()
            run.backward(model.training_step(batch, index))
            optimizer.step()
        return [module.losses, on_cpu(model)]

    found = train(fabric())
    assert isinstance(Module(mlp()), L.LightningModule)
    torch.testing.assert_close(found, train(fabric("cpu")), **CLOSE)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_replayed_evaluation_equals_running_op_by_op(precision: str) -> None:
    run = fabric(precision=precision)
    network = conv_net()
    model, optimizer = run.setup(network, sgd(network.parameters()))
    train_loader, loader = run.setup_dataloaders(features((1, 6, 6)), features((1, 6, 6), rows=22))
    graphed = GraphedForward(model)
    for _ in range(2):
        model.train()
        for batch in train_loader:
            run.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            expected = [model(batch[0]).cpu() for batch in loader]
            found = [graphed(batch[0]).cpu() for batch in loader]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert {result.dtype for result in found} == {torch.float32}
    assert graphed.stats.captures == 1
    assert graphed.stats.eager_calls == 0
    assert graphed.stats.padded_calls == 2  # the batches of 2 rows


def test_a_replayed_loop_compiles_nothing_more() -> None:
    run = fabric()
    model = run.setup_module(mlp()).eval()
    graphed = GraphedForward(model)
    loader = run.setup_dataloaders(features())
    with torch.no_grad():
        first = [graphed(batch[0]) for batch in loader]
        with emulator.record() as events:
            second = [graphed(batch[0]) for batch in loader]
    kinds = [event.kind for event in events]
    assert kinds.count("replay") == 6
    assert not kinds.count("compile")
    assert not kinds.count("host_read")
    torch.testing.assert_close(second, first, rtol=0, atol=0)
