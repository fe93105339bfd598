"""Fabric on two cards: equal to stock DDP on the CPU, and half batches equal to one card."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.conftest import _no_process_left  # noqa: F401 - autouse
from distributed.jobs import (
    Outcome,
    by_lightning,
    finish,
    free_port,
    run_ranks,
    start_command,
    start_script,
    values,
)
from fabric.runs import adamw, fabric, loss_of, on_cpu, sgd, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training import features, mlp

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EIGHT_ROWS = 8


def make(accelerator: str, **settings: Any) -> Any:
    """A Fabric for two devices; stock DDP on the CPU."""
    if accelerator == "cpu":
        settings.setdefault("strategy", "ddp")
    run = fabric(accelerator, **({"devices": 2} | settings))
    run.launch()
    return run


def train_both(accelerator: str) -> list[Any]:
    run = make(accelerator)
    return [
        train(run, accumulate=2, max_norm=0.1),
        train(run, make_optimizer=sgd),
        (run.global_rank, run.local_rank, run.world_size, run.is_global_zero),
    ]


@pytest.mark.slow
def test_training_against_stock_ddp_on_the_cpu(tmp_path: Path) -> None:
    found = values(run_ranks(tmp_path, train_both, "hpu"))
    expected = values(run_ranks(tmp_path, train_both, "cpu"))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert [result[2] for result in found] == [(0, 0, 2, True), (1, 1, 2, False)]
    assert found[0][0][0] != found[1][0][0]  # each has batches of its own
    torch.testing.assert_close(found[0][0][1], found[1][0][1], rtol=0, atol=0)


def train_plainly(accelerator: str, **settings: Any) -> Any:
    return train(make(accelerator, **settings))


def train_compiled() -> Any:
    return train_plainly("hpu", strategy="gaudi_compile")


@pytest.mark.slow
def test_compiled_training_against_stock_ddp_on_the_cpu(tmp_path: Path) -> None:
    port = free_port()
    variables = [by_lightning(rank, 2, port, PT_HPU_LAZY_MODE="0") for rank in range(2)]
    found = values(run_ranks(tmp_path, train_compiled, variables=variables))
    expected = values(run_ranks(tmp_path, train_plainly, "cpu"))
    torch.testing.assert_close(found, expected, **CLOSE)


def halves(rank: int | None) -> DataLoader[Any]:
    """Batches of 8 rows, or this rank's half of each."""
    inputs, labels = features(rows=3 * EIGHT_ROWS).dataset.tensors
    if rank is None:
        return DataLoader(TensorDataset(inputs, labels), batch_size=EIGHT_ROWS)
    rows = torch.arange(len(inputs)).view(-1, 2, EIGHT_ROWS // 2)[:, rank].flatten()
    return DataLoader(TensorDataset(inputs[rows], labels[rows]), batch_size=EIGHT_ROWS // 2)


def train_half(accumulate: int) -> Any:
    run = make("hpu")
    torch.manual_seed(0)
    network = mlp()
    model, optimizer = run.setup(network, adamw(network.parameters()))
    loader = run.setup_dataloaders(halves(run.global_rank), use_distributed_sampler=False)
    losses = []
    for index, batch in enumerate(loader):
        is_last = (index + 1) % accumulate == 0
        with run.no_backward_sync(model, enabled=not is_last):
            loss = loss_of(model, batch)
            run.backward(loss / accumulate)
        if is_last:
            run.clip_gradients(model, optimizer, max_norm=0.1)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(run.all_reduce(loss.detach()).item())
    return losses, on_cpu(model)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_half_batches_on_two_cards_equal_one_card(tmp_path: Path, accumulate: int) -> None:
    found = values(run_ranks(tmp_path, train_half, accumulate))
    run = fabric()
    expected = train(
        run, make_loader=lambda: halves(None), accumulate=accumulate, num_epochs=1, max_norm=0.1
    )
    for result in found:
        torch.testing.assert_close(result, expected, **CLOSE)


def count_collectives() -> list[int]:
    """All-reductions in each of four backwards, of which the second and the last communicate."""
    run = make("hpu")
    network = mlp()
    model, _ = run.setup(network, sgd(network.parameters()))
    calls = []
    # The hook takes the place of DDP's own: a sum, divided.
    state = torch.distributed.group.WORLD

    def hook(group, bucket):  # DDP looks at annotations
        calls.append(bucket.index())
        reduced = torch.distributed.all_reduce(bucket.buffer() / 2, group=group, async_op=True)
        return reduced.get_future().then(lambda done: done.value()[0])

    model._forward_module.register_comm_hook(state, hook)
    counts = []
    for index, batch in enumerate(run.setup_dataloaders(features(rows=32))):
        with run.no_backward_sync(model, enabled=index % 2 == 0):
            run.backward(loss_of(model, batch))
        counts.append(len(calls))
        calls.clear()
    return counts


@pytest.mark.slow
def test_micro_batches_do_not_communicate(tmp_path: Path) -> None:
    for counts in values(run_ranks(tmp_path, count_collectives)):
        assert counts == [0, 1, 0, 1]


def talk(accelerator: str, folder: str) -> dict[str, Any]:
    run = make(accelerator)
    rank = run.global_rank
    device = run.device

    def tensor(*numbers: float) -> torch.Tensor:
        return torch.tensor(numbers, device=device) + rank

    results: dict[str, Any] = {
        "gathered": run.all_gather({"a": tensor(1.0, 2.0), "b": 3.0 + rank}),
        "mean": run.all_reduce(tensor(1.0, 2.0)),
        "whole mean": run.all_reduce(torch.tensor(4 + 2 * rank, device=device)),
        "sum": run.all_reduce(tensor(1.0), reduce_op="sum"),
        "max": run.all_reduce(tensor(1.0), reduce_op="max"),
        "objects": run.broadcast({"name": f"rank {rank}", "values": [rank, None]}),
        "of rank 1": run.broadcast(tensor(5.0, 6.0), src=1),
        "all": run.strategy.reduce_boolean_decision(rank == 0),
        "any": run.strategy.reduce_boolean_decision(rank == 0, all=False),
    }
    leaf = tensor(1.0, 2.0).requires_grad_()
    weights = torch.tensor([1.0 + rank, 2.0], device=device)
    run.backward((run.all_gather(leaf, sync_grads=True) * weights).sum())
    results["gradient"] = leaf.grad
    log = Path(folder) / f"order-{accelerator}.txt"
    with run.rank_zero_first(), log.open("a") as file:
        file.write(f"{rank}\n")
    run.barrier()
    results["order"] = log.read_text()
    devices = {value.device.type for value in flat(results) if isinstance(value, torch.Tensor)}
    assert devices == {accelerator}, devices
    return {name: cpu(value) for name, value in results.items()}


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from flat(inner)
    else:
        yield value


def cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: cpu(inner) for name, inner in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


@pytest.mark.slow
def test_collectives_against_the_cpu(tmp_path: Path) -> None:
    found = values(run_ranks(tmp_path, talk, "hpu", str(tmp_path)))
    expected = values(run_ranks(tmp_path, talk, "cpu", str(tmp_path)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name in ("objects", "order"):
                assert value == theirs[name]
            else:
                torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    assert found[1]["objects"] == {"name": "rank 0", "values": [0, None]}
    assert found[1]["mean"].tolist() == [1.5, 2.5]
    assert found[0]["of rank 1"].tolist() == [6.0, 7.0]
    assert found[0]["order"] == "0\n1\n"


def fails_in_one_rank() -> None:
    class Failing(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if run.global_rank == 1:
                raise ValueError("rank 1 cannot go on")
            return super().forward(inputs)

    run = make("hpu", strategy=strategy(timeout=timedelta(seconds=15)))
    model = run.setup_module(Failing(4, 3))
    for batch in run.setup_dataloaders(features()):
        run.backward(loss_of(model, batch))


def strategy(**settings: Any) -> Any:
    from lightning_gaudi.fabric import GaudiFabricStrategy

    return GaudiFabricStrategy(**settings)


@pytest.mark.slow
def test_a_forward_that_raises_in_one_rank_ends_both(tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path, fails_in_one_rank)
    assert second.error.startswith("ValueError: rank 1 cannot go on")
    assert first.exit_code == second.exit_code == 1
    assert isinstance(first, Outcome)
    assert first.error


def in_two_modes() -> None:
    mode = "lazy"
    import os

    if os.environ["LOCAL_RANK"] == "1":
        os.environ["PT_HPU_LAZY_MODE"] = "0"
        mode = "eager"
    make("hpu", strategy=strategy(mode=mode, timeout=timedelta(seconds=60)))


@pytest.mark.slow
def test_processes_in_different_modes_are_told(tmp_path: Path) -> None:
    for outcome in run_ranks(tmp_path, in_two_modes):
        assert "must have the same mode" in outcome.error


# Fabric's launcher, torchrun and `fabric run` start this script once a rank.
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from lightning.fabric import Fabric
from lightning_gaudi.fabric import GaudiFabricStrategy
from fabric.runs import fabric, train
from training import mlp

folder, start = sys.argv[1:]

def work(run, name):
    result = train(run, mlp)
    run.print(f"printed by {run.global_rank}")
    torch.save([name, run.world_size, type(run.strategy).__name__, *result],
               f"{folder}/rank{run.global_rank}.pt")
    return run.global_rank

if __name__ == "__main__":
    if start == "cli":
        work(Fabric(), "given")
    elif start == "spawn":
        run = fabric("hpu", devices=2, strategy=GaudiFabricStrategy(start_method="spawn"))
        assert run.launch(work, "given") == 0
    else:
        run = fabric("hpu", devices=2, strategy="gaudi")
        if start == "function":
            assert run.launch(work, "given") == run.global_rank
        else:
            run.launch()
            work(run, "given")
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["function", "spawn", "torchrun", "cli"])
def test_launchers(tmp_path: Path, start: str) -> None:
    if start == "cli":
        pytest.importorskip("click")
        (tmp_path / "script.py").write_text(SCRIPT)
        process = start_command(
            tmp_path,
            [
                *(sys.executable, "-W", "ignore", "-m", "lightning.fabric.cli"),
                *("--devices", "2", "--main-port", str(free_port())),
                *("script.py", str(tmp_path), start),
            ],
            # Its options know the names of Lightning's own accelerators and strategies only.
            LT_ACCELERATOR="hpu",
            LT_STRATEGY="gaudi",
        )
    else:
        launcher = (
            ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
            if start == "torchrun"
            else ()
        )
        process = start_script(tmp_path, SCRIPT, str(tmp_path), start, launcher=launcher)
    code, out, err = finish(process)
    assert code == 0, err
    assert out.count("printed by 0") == 1
    assert "printed by 1" not in out
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first[:3] == second[:3] == ["given", 2, "GaudiFabricStrategy"]
    assert first[3] != second[3]
    torch.testing.assert_close(first[4], second[4], rtol=0, atol=0)
