"""Checkpoints written by a thread: of the moment they were asked for, in order, no error lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training import Classifier, features, mlp, trainer

from lightning_gaudi import HPUCheckpointIO
from lightning_gaudi.checkpoint import io as checkpoint_io
from lightning_gaudi.checkpoint.background import wait_for_writes


class Gate:
    """Holds back the writing of files until it is opened; counts and can fail them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.written: list[str] = []
        self.error: Exception | None = None
        plain_write = checkpoint_io._write

        def write(copy: Any, path: Any) -> None:
            assert self.opened.wait(60)
            if self.error is not None:
                raise self.error
            plain_write(copy, path)
            self.written.append(Path(path).name)

        monkeypatch.setattr(checkpoint_io, "_write", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def weights(value: float) -> dict[str, Any]:
    return {"weight": torch.full((3,), value, device="hpu"), "host": torch.full((3,), value)}


def test_a_save_returns_at_once_with_the_values_of_that_moment(tmp_path: Path, gate: Gate) -> None:
    io = HPUCheckpointIO(asynchronous=True)
    state = weights(1.0)
    io.save_checkpoint(state, tmp_path / "a.ckpt")
    assert not wait_for_writes(0)
    for value in state.values():
        value.add_(1)
    state["more"] = torch.ones(1)
    assert list(tmp_path.iterdir()) == []
    gate.opened.set()
    content = io.load_checkpoint(tmp_path / "a.ckpt")  # waits for the file
    assert list(content) == ["weight", "host"]
    assert content["weight"].tolist() == content["host"].tolist() == [1.0] * 3
    assert wait_for_writes(0)


def test_a_second_save_waits_for_the_first(tmp_path: Path, gate: Gate) -> None:
    io = HPUCheckpointIO(asynchronous=True)
    io.save_checkpoint(weights(1.0), tmp_path / "a.ckpt")
    second = threading.Thread(target=io.save_checkpoint, args=(weights(2.0), tmp_path / "b.ckpt"))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.opened.set()
    second.join(60)
    io.teardown()
    assert gate.written == ["a.ckpt", "b.ckpt"]


def test_a_removal_comes_after_the_saves_before_it(tmp_path: Path, gate: Gate) -> None:
    io = HPUCheckpointIO(asynchronous=True)
    (tmp_path / "old.ckpt").write_bytes(b"old")
    io.save_checkpoint(weights(1.0), tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
    gate.opened.set()
    io.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]
    io.remove_checkpoint(tmp_path / "new.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked_by", ["save_checkpoint", "load_checkpoint", "teardown"])
def test_an_error_is_raised_once_and_removes_nothing(
    tmp_path: Path, gate: Gate, asked_by: str
) -> None:
    io = HPUCheckpointIO(asynchronous=True)
    (tmp_path / "old.ckpt").write_bytes(b"old")
    gate.error = OSError("the disk is gone")
    gate.opened.set()
    io.save_checkpoint(weights(1.0), tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    arguments = {
        "save_checkpoint": (weights(2.0), tmp_path / "next.ckpt"),
        "load_checkpoint": (tmp_path / "old.ckpt",),
        "teardown": (),
    }[asked_by]
    with pytest.raises(OSError, match="the disk is gone"):
        getattr(io, asked_by)(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
    assert io.settle() is None
    gate.error = None
    io.save_checkpoint(weights(3.0), tmp_path / "later.ckpt")
    io.teardown()
    assert gate.written == ["later.ckpt"]


def test_what_cannot_be_saved_is_the_callers_error(tmp_path: Path) -> None:
    io = HPUCheckpointIO(asynchronous=True)
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"function": lambda: 0}, tmp_path / "a.ckpt")
    io.teardown()


def test_a_fit_against_the_files_of_a_synchronous_one(tmp_path: Path) -> None:
    for asynchronous in (False, True):
        torch.manual_seed(0)
        folder = tmp_path / str(asynchronous)
        callback = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        run = trainer(
            callbacks=[callback],
            enable_checkpointing=True,
            plugins=[HPUCheckpointIO(asynchronous=asynchronous)],
        )
        run.fit(Classifier(mlp()), features())
        assert len(list(folder.iterdir())) == 12
    for path in (tmp_path / "False").iterdir():
        expected = torch.load(path, weights_only=True)
        found = torch.load(tmp_path / "True" / path.name, weights_only=True)
        for name in ("state_dict", "optimizer_states", "loops", "global_step"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_an_error_at_the_end_of_a_fit_reaches_the_caller(tmp_path: Path, gate: Gate) -> None:
    gate.error = OSError("the disk is gone")
    gate.opened.set()
    callback = ModelCheckpoint(tmp_path, every_n_epochs=2)  # one save, the last thing there is
    run = trainer(
        callbacks=[callback],
        enable_checkpointing=True,
        plugins=[HPUCheckpointIO(asynchronous=True)],
    )
    with pytest.raises(OSError, match="the disk is gone"):
        run.fit(Classifier(mlp()), features())
