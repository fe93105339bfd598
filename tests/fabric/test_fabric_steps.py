"""Where the lazy graph breaks in a Fabric loop, and that a loop of fixed shapes compiles once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import RunPython
from fabric.runs import adamw, fabric, loss_of, sgd, train
from lightning.fabric.wrappers import _FabricDataLoader
from torch.utils.data import DataLoader, TensorDataset
from training import conv_net, features, mlp, tokens

from lightning_gaudi import emulator
from lightning_gaudi.emulator import accounting
from lightning_gaudi.fabric import GaudiFabricStrategy


class Order:
    """What happened, in order: marks, and what a loop noted itself."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        with emulator.record() as self._events:
            self._num_read = 0
            yield
            self._read()

    def note(self, name: str) -> None:
        self._read()
        self.seen.append(name)

    def _read(self) -> None:
        events = list(self._events)
        self.seen += ["mark" for event in events[self._num_read :] if event.kind == "mark_step"]
        self._num_read = len(events)


def rows(num: int) -> DataLoader[torch.Tensor]:
    return features(rows=num * 4)


def test_training_marks_after_backward_and_after_the_optimizer() -> None:
    run, order = fabric(), Order()
    network = mlp()
    model, optimizer = run.setup(network, sgd(network.parameters()))
    loader = run.setup_dataloaders(rows(2))
    with order.watch():
        for _ in range(2):
            for batch in loader:
                order.note("batch")
                loss = loss_of(model, batch)
                run.backward(loss)
                order.note("backward")
                optimizer.step()
                order.note("step")
                optimizer.zero_grad()
    epoch = ["mark", *["batch", "mark", "backward", "mark", "step"] * 2]
    assert order.seen == epoch * 2


def test_each_micro_batch_marks() -> None:
    run, order = fabric(), Order()
    network = mlp()
    model, optimizer = run.setup(network, sgd(network.parameters()))
    with order.watch():
        for index, batch in enumerate(run.setup_dataloaders(rows(4))):
            order.note("batch")
            with run.no_backward_sync(model, enabled=index % 2 == 0):
                run.backward(loss_of(model, batch))
            order.note("backward")
            if index % 2:
                optimizer.step()
                order.note("step")
    micro = ["batch", "mark", "backward"]
    assert order.seen == ["mark", *[*micro, *micro, "mark", "step"] * 2]


def test_without_marks_after_backward_a_micro_batch_is_no_evaluation() -> None:
    run, order = fabric(strategy=GaudiFabricStrategy(mark_step_after_backward=False)), Order()
    network = mlp()
    model, optimizer = run.setup(network, sgd(network.parameters()))
    with order.watch():
        for index, batch in enumerate(run.setup_dataloaders(rows(4))):
            order.note("batch")
            run.backward(loss_of(model, batch))
            if index % 2:
                optimizer.step()
                order.note("step")
    assert order.seen == ["mark", *["batch", "batch", "mark", "step"] * 2]


def test_each_evaluated_batch_marks() -> None:
    run, order = fabric(), Order()
    model = run.setup_module(mlp())
    loader = run.setup_dataloaders(rows(3))
    with order.watch(), torch.no_grad():
        for batch in loader:
            order.note("batch")
            model(batch[0])
        order.note("end")
    assert order.seen == ["mark", *["batch", "mark"] * 3, "end"]


def test_a_validation_inside_an_epoch_is_kept_apart() -> None:
    run, order = fabric(), Order()
    network = mlp()
    model, optimizer = run.setup(network, sgd(network.parameters()))
    train_loader, val_loader = run.setup_dataloaders(rows(3), rows(2))
    with order.watch():
        for index, batch in enumerate(train_loader):
            order.note("train")
            run.backward(loss_of(model, batch))
            optimizer.step()
            if index == 1:
                with torch.no_grad():
                    for val_batch in val_loader:
                        order.note("val")
                        model(val_batch[0])
    step = ["train", "mark", "mark"]
    assert order.seen == ["mark", *step, *step, "mark", *["val", "mark"] * 2, "mark", *step]


def test_a_validation_that_stops_early_leaves_nothing_in_the_next_step() -> None:
    run, order = fabric(), Order()
    network = mlp()
    model, _ = run.setup(network, sgd(network.parameters()))
    train_loader, val_loader = run.setup_dataloaders(rows(2), rows(2))
    with order.watch():
        for batch in train_loader:
            order.note("train")
            run.backward(loss_of(model, batch))
            for val_batch in val_loader:
                order.note("val")
                model(val_batch[0])
                break
    assert order.seen == ["mark", *["train", "mark", "mark", "val", "mark"] * 2]


def test_two_loaders_in_step_mark_once() -> None:
    run, order = fabric(), Order()
    model = run.setup_module(mlp())
    first, second = run.setup_dataloaders(rows(3), rows(3))
    with order.watch(), torch.no_grad():
        for one, two in zip(first, second, strict=True):
            order.note("batches")
            model(one[0] + two[0])
    # Once more after the first batch: the second loop began behind the first one's back.
    assert order.seen == ["mark", "mark", *["batches", "mark"] * 3]


def test_two_models_and_optimizers_each_mark() -> None:
    run, order = fabric(), Order()
    networks = mlp(), mlp()
    pairs = [run.setup(network, sgd(network.parameters())) for network in networks]
    with order.watch():
        for batch in run.setup_dataloaders(rows(2)):
            order.note("batch")
            for model, optimizer in pairs:
                run.backward(loss_of(model, batch))
                optimizer.step()
    assert order.seen == ["mark", *["batch", *["mark"] * 4] * 2]


def test_a_barrier_and_mark_step_mark() -> None:
    run, order = fabric(), Order()
    model = run.setup_module(mlp())
    with order.watch(), torch.no_grad():
        for batch in rows(2):
            order.note("batch")
            model(run.to_device(batch[0]))
            run.strategy.mark_step()
        model(run.to_device(batch[0]))
        run.barrier()
        order.note("barrier")
    assert order.seen == ["batch", "mark", "batch", "mark", "mark", "barrier"]


@pytest.fixture
def _no_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that another test has compiled is known."""
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())


@pytest.mark.usefixtures("_no_recipes")
def test_an_evaluation_is_no_one_graph() -> None:
    run = fabric()
    model = run.setup_module(mlp())
    sizes = []
    for num in (2, 8):
        loader = run.setup_dataloaders(rows(num))
        with emulator.record() as events, torch.no_grad():
            kept = [model(batch[0]) for batch in loader]
            assert len(kept) == num
        sizes.append(sum(event.kind == "compile" for event in events))
    assert sizes == [1, 0]


@pytest.mark.usefixtures("_no_recipes")
@pytest.mark.parametrize("clip", [{}, {"max_norm": 0.1}, {"clip_val": 0.01}], ids=repr)
@pytest.mark.parametrize(
    ("network", "loader", "optimizer"),
    [
        pytest.param(mlp, features, sgd, id="mlp, SGD"),
        pytest.param(conv_net, lambda: features((1, 6, 6)), adamw, id="conv_net, AdamW"),
    ],
)
def test_nothing_compiles_after_the_third_step(network, loader, optimizer, clip) -> None:
    run = fabric()
    order = []
    backward = run.strategy.backward

    def counted(*args, **kwargs) -> None:
        order.append(len(compilations(events)))
        backward(*args, **kwargs)

    run.strategy.backward = counted  # type: ignore[method-assign]
    with emulator.record() as events:
        train(run, network, loader, optimizer, num_epochs=2, **clip)
    assert len(order) == 12
    assert order[0] < order[3]  # the count counts
    assert len(compilations(events)) == order[3]


def compilations(events: list[emulator.Event]) -> list[emulator.Event]:
    return [event for event in events if event.kind == "compile"]


def test_the_loader_keeps_its_attributes() -> None:
    run = fabric()
    plain = tokens()
    loader = run.setup_dataloaders(plain)
    assert type(loader) is _FabricDataLoader
    assert loader.dataset is plain.dataset
    assert loader.batch_size == 4
    assert len(loader) == len(plain)
    assert type(loader.sampler) is type(plain.sampler)
    assert [batch[0].tolist() for batch in loader] == [batch[0].tolist() for batch in plain]
    on_host = run.setup_dataloaders(tokens(), move_to_device=False)
    assert {batch[0].device.type for batch in on_host} == {"cpu"}


def test_a_loader_with_a_state_can_be_saved() -> None:
    class Counting(DataLoader):
        position = 7

        def state_dict(self) -> dict[str, int]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.position = state["position"]

    run = fabric()
    dataset = TensorDataset(torch.ones(4, 2))
    first, second = Counting(dataset), Counting(dataset)
    loaders = run.setup_dataloaders(first, second)
    loaders[0]._dataloader.load_state_dict({"position": 9})
    assert loaders[0]._dataloader.state_dict() == {"position": 9}
    assert first.position == 9
    assert second.position == 7


def test_backward_without_fabric_is_refused() -> None:
    run = fabric()
    model = run.setup_module(mlp())
    loss = model(torch.ones(1, 4, device=run.device)).sum()
    with pytest.raises(RuntimeError, match=r"requires you to call `fabric\.backward\(loss\)`"):
        loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["gaudi_eager", "gaudi_compile"])
def test_the_other_modes_do_not_mark_and_train_alike(run_python: RunPython, strategy: str) -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[2])
        import torch
        import lightning_gaudi
        from fabric.runs import fabric, on_cpu, train
        from lightning_gaudi import emulator
        from lightning.fabric.wrappers import _FabricDataLoader
        from training import conv_net, features

        strategy = sys.argv[1]
        case = conv_net, lambda: features((1, 6, 6))
        run = fabric(strategy=strategy)
        assert run.strategy.mode == strategy.removeprefix("gaudi_")
        with emulator.record() as events:
            found = train(run, *case)
        assert not [event for event in events if event.kind == "mark_step"]
        expected = train(fabric("cpu"), *case)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found[0][0] != found[0][-1]

        network = conv_net()
        model = run.setup_module(network)
        assert ("forward" in vars(network)) == (strategy == "gaudi_compile")
        assert list(model.state_dict()) == list(conv_net().state_dict())
        print("done")
    """
    tests = str(Path(__file__).parent.parent)
    result = run_python(code, args=(strategy, tests), PT_HPU_LAZY_MODE="0")
    assert result.stdout.endswith("done\n")
