"""Steps on two cards: marks and host reads of one card, graphs, and runs that follow each other."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import run_ranks, values
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from training import Classifier, TinyTransformer, features, mlp, tokens, trainer

from lightning_gaudi import GaudiStrategy, HPUGraphCallback, emulator

pytestmark = training.IGNORED_WARNINGS


class Quiet(Classifier):
    """Reads nothing on the host, and notes how many events there were at each point of a step."""

    def __init__(self, network: Any = None) -> None:
        super().__init__(network or mlp(), lambda parameters: torch.optim.AdamW(parameters, 0.01))
        self.points: list[tuple[str, int]] = []

    def note(self, name: str) -> None:
        self.points.append((name, len(self.events)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.note("step")
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        self.note("backward")

    def on_after_backward(self) -> None:
        self.note("after")

    def on_train_batch_end(self, *args: Any) -> None:
        self.note("end")


def kinds_of_steps(size: int, **settings: Any) -> list[list[str]]:
    """For each micro-batch the points and the marks, flushes for other reasons and host reads."""
    net = Quiet()
    with emulator.record() as events:
        net.events = events
        trainer(
            strategy=GaudiStrategy(),
            devices=size,
            max_epochs=1,
            use_distributed_sampler=False,
            **settings,
        ).fit(net, features())
    told: list[list[str]] = []
    for (name, start), (_, end) in zip(net.points, [*net.points[1:], ("", 0)], strict=True):
        if name == "step":
            told.append([])
        told[-1].append(name)
        kinds = ("mark_step", "host_read", "d2h")
        told[-1] += [event.kind for event in events[start:end] if event.kind in kinds]
    return told


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}],
    ids=["plain", "accumulate"],
)
def test_marks_and_host_reads_are_those_of_one_card(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    on_one_card = kinds_of_steps(1, **settings)
    for told in values(run_ranks(tmp_path, partial(kinds_of_steps, 2, **settings))):
        # Behind the first step that reduced, DDP orders its buckets anew: four small copies, once.
        copies = [(number, step.count("d2h")) for number, step in enumerate(told)]
        first = settings.get("accumulate_grad_batches", 1) - 1
        assert [copy for copy in copies if copy[1]] == [(first, 4)]
        told = [[word for word in step if word != "d2h"] for step in told]
        assert told == on_one_card
        assert all("host_read" not in step for step in told)
        last = ["step", "backward", "after", "mark_step", "mark_step", "end"]
        assert told[2] == last
        if settings:
            assert told[1] == ["step", "backward", "after", "mark_step", "end"]


def num_compilations(size: int) -> list[int]:
    net = Quiet()
    with emulator.record() as events:
        net.events = events
        trainer(devices=size, use_distributed_sampler=False, max_epochs=1).fit(net, features())
    starts = [number for name, number in net.points if name == "step"]
    late = [event for event in events[starts[3] : starts[-1]] if event.kind == "compile"]
    return [len(starts), len(late)]


def test_nothing_is_compiled_after_the_third_step(tmp_path: Path) -> None:
    assert values(run_ranks(tmp_path, num_compilations, 2)) == [[6, 0]] * 2


class Ended(Quiet):
    """Is told to end in its third step, on one rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.rank = rank

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if len([name for name, _ in self.points if name == "end"]) == 2:
            if self.global_rank == self.rank:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2 * (1 - self.global_rank))  # the other is a step ahead, if it can be
        return super().training_step(batch, batch_idx)


def fit_until_told(rank: int) -> list[str]:
    net = Ended(rank)
    with pytest.raises(SIGTERMException):
        trainer(devices=2, max_epochs=50).fit(net, features())
    return [name for name, _ in net.points]


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_ends_all_ranks_at_the_same_step(tmp_path: Path, rank: int) -> None:
    first, second = values(run_ranks(tmp_path, fit_until_told, rank, limit_s=60))
    assert first == second
    assert first.count("end") == first.count("step") == 3


def fit_with_graphs(name: str, with_graphs: bool, **ddp: Any) -> Any:
    make, loader = {"mlp": (mlp, features), "transformer": (TinyTransformer, tokens)}[name]
    torch.manual_seed(0)
    net = Classifier(make())
    graphs = HPUGraphCallback(("fit", "validate"))
    run = trainer(
        strategy=GaudiStrategy(**ddp),
        devices=2,
        callbacks=[graphs] if with_graphs else [],
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        max_epochs=3,
    )
    run.fit(net, loader(), loader())
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    return net.losses, state, graphs.stats.replays if with_graphs else 0


def fit_with_and_without_graphs(name: str) -> list[Any]:
    return [
        fit_with_graphs(name, True),
        fit_with_graphs(name, False),
        fit_with_graphs(name, True, gradient_as_bucket_view=False),
    ]


@pytest.mark.parametrize("name", ["mlp", pytest.param("transformer", marks=pytest.mark.slow)])
def test_graphs_of_training_with_gradients_in_buckets(tmp_path: Path, name: str) -> None:
    for one, plain, other in values(run_ranks(tmp_path, fit_with_and_without_graphs, name)):
        assert one[0] == plain[0] == other[0]
        assert all(torch.equal(one[1][key], plain[1][key]) for key in plain[1])
        assert all(torch.equal(other[1][key], plain[1][key]) for key in plain[1])
        assert one[2] >= 9


def runs_in_a_row() -> Any:
    """A test behind a fit, a second fit, and a second Trainer, on one process group."""
    torch.manual_seed(0)
    net = Classifier(mlp())
    run = trainer(devices=2, max_epochs=1)
    group = []
    weights = []
    run.fit(net, features())
    group.append(torch.distributed.group.WORLD)
    weights.append(net.network[0].weight.detach().clone())
    (first,) = run.test(net, features(), verbose=False)
    run.fit_loop.max_epochs = 2
    run.fit(net, features())
    weights.append(net.network[0].weight.detach().clone())
    run = trainer(devices=2, max_epochs=1)
    run.fit(net, features())
    weights.append(net.network[0].weight.detach().clone())
    group.append(torch.distributed.group.WORLD)
    (last,) = run.test(net, features(), verbose=False)
    assert group[0] is group[1]
    assert all(weight.device.type == "cpu" for weight in weights), "the fit has ended"
    return weights, first["test_loss"], last["test_loss"], len(net.losses)


def test_runs_that_follow_each_other(tmp_path: Path) -> None:
    (weights, first, last, num), (others, *_) = values(run_ranks(tmp_path, runs_in_a_row))
    assert num == 9
    assert last < first
    for weight, other in zip(weights, others, strict=True):
        assert torch.equal(weight, other)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
