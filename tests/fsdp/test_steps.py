"""What happens in a step under FSDP: marks, graphs, memory, communication."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import training
from distributed.jobs import run_ranks, values
from fsdp.runs import batches, classifier, loader, make_trainer
from test_step_boundary import Witness
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from training import Classifier, mlp, trainer

from lightning_gaudi import GaudiStrategy, emulator

pytestmark = [
    *training.IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:You called `self.log.*no logger configured"),
]

MARK = "mark_step"


def order(strategy: str, *, is_manual: bool) -> list[str]:
    """What Lightning calls, and the marks between."""
    with emulator.record() as events:
        torch.manual_seed(0)
        net = Witness(events, is_manual=is_manual)  # type: ignore[arg-type]
        if strategy == "ddp":
            ddp = GaudiStrategy(find_unused_parameters=is_manual)
            run = trainer(strategy=ddp, devices=2, use_distributed_sampler=False)
        else:
            run = make_trainer(2, max_epochs=2)
        data = loader(run, is_text=False)
        run.fit(net, data, data)
        run.predict(net, data)
    return [
        event if isinstance(event, str) else event.kind
        for event in events
        if isinstance(event, str) or event.kind == MARK
    ]


def orders() -> list[Any]:
    return [
        (order("ddp", is_manual=is_manual), order("fsdp", is_manual=is_manual))
        for is_manual in (False, True)
    ]


@pytest.mark.slow
def test_marks_are_where_those_of_ddp_are(tmp_path: Path) -> None:
    for cases in values(run_ranks(tmp_path, orders)):
        for of_ddp, of_fsdp in cases:
            assert of_fsdp == of_ddp
            assert of_ddp.count(MARK) > 2 * 2 * len(batches())
            assert "train 0" in of_ddp


class Counting(Classifier):
    """Keeps the compilations and the collectives of each training step, and reads nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.compilations: list[int] = []
        self.host_reads: list[int] = []
        self.events: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        # Before it Lightning itself reads, on several processes, whether one got a signal to end.
        self._begin = len(self.events)
        return self.loss(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        kinds = Counter(event.kind for event in self.events[self._begin :])
        self.compilations.append(kinds["compile"])
        self.host_reads.append(kinds["host_read"])


def count() -> Any:
    torch.manual_seed(0)
    net = Counting(training.TinyTransformer())
    run = make_trainer(2, max_epochs=2, gradient_clip_val=0.1)
    with emulator.record() as events:
        net.events = events
        run.fit(net, loader(run))
    return net.compilations, net.host_reads


@pytest.mark.slow
def test_no_compilation_after_the_third_step_and_no_host_read(tmp_path: Path) -> None:
    for compilations, host_reads in values(run_ranks(tmp_path, count)):
        assert compilations[0] > 0
        assert compilations[3:] == [0] * (2 * len(batches()) - 3)
        assert host_reads == [0] * len(compilations)


def wide() -> nn.Module:
    """Eight blocks of a megabyte of float32 each."""
    return nn.Sequential(nn.Linear(4, 512), *(nn.Linear(512, 512) for _ in range(8)))


def use_memory(**fsdp: Any) -> dict[str, int]:
    net = classifier(wide, lambda parameters: torch.optim.Adam(parameters, 1e-3))
    run = make_trainer(2, fsdp, max_epochs=1)
    seen: dict[str, int] = {}

    class Watch(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            torch.hpu.reset_peak_memory_stats()
            seen["sharded"] = torch.hpu.memory_allocated()

        def on_train_batch_end(self, *args: Any) -> None:
            seen["after a step"] = torch.hpu.memory_allocated()
            seen["peak"] = torch.hpu.max_memory_allocated()

    run.callbacks.append(Watch())
    run.fit(net, loader(run, is_text=False))
    parameters = list(net.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters)
    seen["local"] = sum(p.to_local().numel() * p.element_size() for p in parameters)
    seen["all"] = sum(p.numel() * p.element_size() for p in parameters)
    state = run.optimizers[0].state.values()
    seen["moments"] = sum(
        s[name].to_local().numel() * 4 for s in state for name in ("exp_avg", "exp_avg_sq")
    )
    return seen


def use_memory_in_both_ways() -> Any:
    return use_memory(), use_memory(reshard_after_forward=False)


@pytest.mark.slow
def test_each_card_has_half_of_everything(tmp_path: Path) -> None:
    for seen, kept in values(run_ranks(tmp_path, use_memory_in_both_ways)):
        assert seen["local"] == seen["all"] / 2
        assert seen["moments"] == 2 * seen["local"]
        # Little more than what was counted, and the gradients: nothing whole is left, of the model
        # on its way or of the last step.
        assert seen["local"] <= seen["sharded"] < 1.1 * seen["local"]
        assert seen["after a step"] < 1.1 * (2 * seen["local"] + seen["moments"])
        # A step adds gradients in parts, and two or three blocks of nine that are whole.
        block = seen["all"] / 8
        assert seen["peak"] < 4 * seen["local"] + 6 * block
        assert kept["peak"] > seen["peak"] + 2 * block  # all of them, from forward to backward


def reduced() -> Any:
    """How gradients are reduced: the ops, by what asked for them."""
    asked: list[Any] = []
    is_new = hasattr(dist, "reduce_scatter_single")
    name = "reduce_scatter_single" if is_new else "reduce_scatter_tensor"
    plain = getattr(dist, name)

    def watch(*args: Any, **kwargs: Any) -> Any:
        asked.append(str(kwargs.get("op")))
        return plain(*args, **kwargs)

    net = classifier(mlp)
    run = make_trainer(2, max_epochs=1, accumulate_grad_batches=3)
    with pytest.MonkeyPatch.context() as patch:
        # Not before, since the backend brings its own.
        net.on_train_start = lambda: patch.setattr(dist, name, watch)  # type: ignore[method-assign]
        run.fit(net, loader(run, is_text=False))
    return asked


@pytest.mark.slow
def test_gradients_are_reduced_with_sums(tmp_path: Path) -> None:
    for asked in values(run_ranks(tmp_path, reduced)):
        # Two groups; each micro-batch, so that no whole gradient is kept between them.
        assert asked == [str(dist.ReduceOp.SUM)] * (2 * len(batches()))
