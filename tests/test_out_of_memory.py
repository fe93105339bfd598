"""The HPU runs out of memory: how it is told, what it says, and that Lightning's tuner knows it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import memory as lightning_memory
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

from lightning_gaudi import HPUGraphCallback, batch_size_finder
from lightning_gaudi.emulator import memory
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs.kept import kept
from lightning_gaudi.graphs.out_of_memory import explain_out_of_memory
from lightning_gaudi.runtime import device
from lightning_gaudi.runtime.out_of_memory import is_out_of_memory

pytestmark = IGNORED_WARNINGS

KIB = 2**10
Limit = Callable[[int], None]


@pytest.fixture
def leave() -> Iterator[Limit]:
    """Leave so many bytes of device memory free."""

    def leave(nbytes: int) -> None:
        gc.collect()
        memory.set_limit(device.memory_stats()["InUse"] + nbytes)

    yield leave
    memory.set_limit(None)


def notes_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


# --- telling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB",
        "FATAL ERROR :: MODULE:BRIDGE Exception in Launch thread...\n"
        "FATAL ERROR :: MODULE:DEVMEM Allocation failed for size::40960000 (39.0625)MB",
        "FATAL ERROR :: MODULE:SYNHELPER workspace Allocation of size ::14493510400 failed!",
        "[Rank:3] FATAL ERROR :: MODULE:PT_DEVMEM OOM: No enough memory for defragment.",
    ],
    ids=["tensor", "launch", "workspace", "defragment"],
)
def test_messages_of_the_bridge(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert lightning_memory.is_oom_error(RuntimeError(message))
    wrapped = ValueError("another")
    wrapped.__cause__ = RuntimeError(message)
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ValueError(message))


def test_other_errors_are_told_as_before() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no memory"))
    for message in ("FATAL ERROR :: MODULE:PT_DEVMEM pool creation failed", "shape mismatch", ""):
        assert not is_out_of_memory(RuntimeError(message))
        assert not lightning_memory.is_oom_error(RuntimeError(message))
    assert lightning_memory.is_oom_error(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(None)


def test_lightning_is_taught_once() -> None:
    taught = lightning_memory.is_oom_error
    batch_size_finder.register()
    assert lightning_memory.is_oom_error is taught


# --- the emulated device ------------------------------------------------------------------------


def test_an_allocation_beyond_the_limit(leave: Limit) -> None:
    leave(10 * KIB)
    before = device.memory_stats()
    held = torch.ones(2 * KIB, device="hpu")  # of four bytes each
    assert device.memory_stats()["Limit"] == before["InUse"] + 10 * KIB
    with pytest.raises(
        RuntimeError,
        match=r"^\[Rank:0\] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for "
        r"size::8192 \(0.0078125\)MB$",
    ):
        held + 1
    with pytest.raises(RuntimeError, match="Allocation failed for size::12288"):
        torch.zeros(3 * KIB).to("hpu")
    held += 1  # in place there is room
    assert held.sum().item() == 2 * 2 * KIB
    del held
    gc.collect()
    after = device.memory_stats()
    assert (after["InUse"], after["ActiveAllocs"]) == (before["InUse"], before["ActiveAllocs"])
    torch.ones(2 * KIB, device="hpu")


def test_a_storage_that_grows_beyond_it(leave: Limit) -> None:
    tensor = torch.ones(KIB, device="hpu")
    leave(7 * KIB)
    tensor.resize_(2 * KIB)
    with pytest.raises(RuntimeError, match="Allocation failed for size::12288"):
        tensor.resize_(3 * KIB)


@pytest.mark.parametrize("text", ["none", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.LIMIT, text)
    with pytest.raises(ValueError, match=f"must be a number of GiB above 0, but it is '{text}'"):
        memory.attach()


def test_the_limit_of_the_environment(run_python: Any) -> None:
    result = run_python(
        """
        import torch
        held = torch.zeros(2**18, device="hpu")
        print(torch.hpu.memory_stats()["Limit"])
        try:
            torch.zeros(2**18, device="hpu")
        except RuntimeError as error:
            print(error)
        """,
        LIGHTNING_GAUDI_EMULATOR_MEMORY_GIB="0.0015",
    )
    limit, error = result.stdout.splitlines()
    assert int(limit) == int(0.0015 * 2**30)
    assert error.endswith("Allocation failed for size::1048576 (1)MB")


def test_without_a_limit_allocating_is_what_it_was() -> None:
    assert memory.Block.__init__ is memory._plain_init
    assert device.memory_stats()["Limit"] == 96 * 2**30


# --- graphs -------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Needs 64 times its input's memory on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.repeat(64, 1).tanh() * 2).sum(0)


@pytest.mark.parametrize("disable_tensor_cache", [False, True], ids=["kept", "bound"])
def test_a_capture_without_memory_leaves_the_others(
    disable_tensor_cache: bool, leave: Limit
) -> None:
    module = Wide().to("hpu")
    graphed = GraphedForward(module, disable_tensor_cache=disable_tensor_cache)
    small, large = torch.randn(4, 8).to("hpu"), torch.randn(64, 8).to("hpu")
    with torch.no_grad():
        expected = module(large), module(small + 1)
        graphed(small)
        leave(100 * KIB)
        with pytest.raises(RuntimeError, match="MODULE:PT_DEVMEM Allocation failed") as raised:
            graphed(large)
        notes = notes_of(raised.value)
        assert "The HPU is out of memory: " in notes
        assert f"{kept().number} HPU graphs hold " in notes
        assert "disable_tensor_cache=True" in notes
        assert "a smaller max_graphs; fewer or smaller buckets" in notes
        assert (graphed.num_graphs, graphed.stats.captures) == (1, 1)
        assert torch.equal(graphed(small + 1), expected[1])
        del raised
        memory.set_limit(None)
        assert torch.equal(graphed(large), expected[0])
    assert (graphed.num_graphs, graphed.stats.captures, graphed.stats.replays) == (2, 2, 1)


def test_graphs_that_are_gone_are_not_told() -> None:
    gc.collect()
    before = kept()
    graphed = GraphedForward(Wide().to("hpu"))
    with torch.no_grad():
        graphed(torch.randn(4, 8).to("hpu"))
    assert kept().number == before.number + 1
    assert kept().num_bytes - before.num_bytes == graphed.stats.graph_bytes > 0
    del graphed
    gc.collect()
    assert kept() == before


# --- the note -----------------------------------------------------------------------------------


def test_the_note_is_added_once_and_changes_nothing_else() -> None:
    text = "FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::8 (0)MB"
    error = RuntimeError(text)
    explain_out_of_memory(error)
    explain_out_of_memory(error)
    assert type(error) is RuntimeError
    assert notes_of(error).count("The HPU is out of memory") == 1
    assert "of 96.00 GiB" not in notes_of(error)
    assert "96.00 GiB in all." in notes_of(error)
    other = RuntimeError("another")
    explain_out_of_memory(other)
    assert notes_of(other) == "another"


def test_without_add_note_it_is_in_the_message() -> None:
    class Old(RuntimeError):
        add_note = property()  # as in Python 3.10, which has none

    error = Old("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::8 (0)MB")
    explain_out_of_memory(error)
    assert str(error).startswith("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::8")
    assert "The HPU is out of memory" in str(error)
    assert is_out_of_memory(error)
    assert lightning_memory.is_oom_error(error)


class Greedy(Classifier):
    """Asks for more and more in every step."""

    def more(self, batch_idx: int) -> None:
        self.held = torch.ones(2**batch_idx * 16 * KIB, device="hpu")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.more(batch_idx)
        return self.loss(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.more(batch_idx)
        return self.network(batch[0])


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_run_without_memory_says_what_helps(stage: str, leave: Limit) -> None:
    leave(500 * KIB)
    run = trainer(callbacks=[HPUGraphCallback()] if stage == "predict" else [])
    with pytest.raises(RuntimeError, match=r"^\[Rank:0\] FATAL ERROR :: MODULE") as raised:
        getattr(run, stage)(Greedy(mlp()), features())
    assert type(raised.value) is RuntimeError
    notes = notes_of(raised.value)
    assert "Tuner.scale_batch_size" in notes
    assert notes.count("The HPU is out of memory") == 1
    assert ("HPU graphs hold" in notes) == (stage == "predict")


# --- the batch size finder ----------------------------------------------------------------------


class Rows(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(512, 4, generator=generator)
        labels = torch.randint(3, (512,), generator=generator)
        return DataLoader(TensorDataset(inputs, labels), batch_size=self.batch_size)

    val_dataloader = train_dataloader
    predict_dataloader = train_dataloader


class Stepping(Classifier):
    """Fits in memory up to a batch size: 16 KiB a row."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        extra = torch.ones(len(batch[0]), 4 * KIB, device=batch[0].device)
        return super().loss(batch) + 0 * extra.sum()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)


@pytest.mark.parametrize(
    ("method", "mode", "expected"),
    [("fit", "power", 32), ("fit", "binsearch", 60), ("predict", "power", 32)],
    ids=["fit-power", "fit-binsearch", "predict-power"],
)
def test_the_tuner_finds_a_batch_size(
    method: str, mode: str, expected: int, leave: Limit, tmp_path: Path
) -> None:
    run = trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[HPUGraphCallback()])
    module, data = Stepping(mlp()), Rows()
    leave(1000 * KIB)  # for 62 rows, less what the step itself needs
    found = Tuner(run).scale_batch_size(
        module, datamodule=data, method=method, mode=mode, steps_per_trial=1, init_val=2
    )
    if mode == "power":
        assert found == expected == data.batch_size
    else:
        assert expected - 4 <= found <= 62
    # With it the run goes through, with twice as much it does not.
    getattr(run, method)(module, datamodule=data)
    data.batch_size = 64
    with pytest.raises(RuntimeError, match="MODULE:PT_DEVMEM"):
        getattr(trainer(default_root_dir=tmp_path, max_epochs=1), method)(module, datamodule=data)


def test_the_callback_finds_one_too(leave: Limit, tmp_path: Path) -> None:
    finder = BatchSizeFinder(mode="power", steps_per_trial=1, init_val=2)
    data = Rows()
    run = trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[finder])
    leave(1000 * KIB)
    run.fit(Stepping(mlp()), datamodule=data)
    assert data.batch_size == 32
    assert run.global_step == 512 / 32
