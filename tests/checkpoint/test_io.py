"""Checkpoint files: whole or not there, read anywhere, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from training import Classifier, features, mlp, trainer

from lightning_gaudi import GaudiStrategy, HPUCheckpointIO
from lightning_gaudi.errors import CheckpointError


class Settings:
    """A class of a user's, as in hyperparameters."""


def state(value: float = 1.0, numbers: int = 4) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((numbers,), value, device="hpu")}}


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more than so much into a file (Python ignores SIGXFSZ)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_is_read_by_plain_pytorch_and_stock_lightning(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.ckpt"
    HPUCheckpointIO().save_checkpoint(state(), path)
    for content in (
        torch.load(path, weights_only=True),
        TorchCheckpointIO().load_checkpoint(path),
        HPUCheckpointIO().load_checkpoint(str(path)),
        HPUCheckpointIO().load_checkpoint(f"file://{path}"),
    ):
        assert content["state_dict"]["weight"].device.type == "cpu"
        assert content["state_dict"]["weight"].tolist() == [1.0] * 4
    assert b"hpu" not in path.read_bytes()
    (tmp_path / "usual").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    moved = HPUCheckpointIO().load_checkpoint(path, map_location="hpu")
    assert moved["state_dict"]["weight"].device.type == "hpu"


def test_a_remote_path(tmp_path: Path) -> None:
    path = "memory://folder/a.ckpt"
    HPUCheckpointIO().save_checkpoint(state(3.0), path)
    assert HPUCheckpointIO().load_checkpoint(path)["state_dict"]["weight"].tolist() == [3.0] * 4
    HPUCheckpointIO().remove_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"Checkpoint file not found: memory://folder/a"):
        HPUCheckpointIO().load_checkpoint(path)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    io = HPUCheckpointIO()
    path = tmp_path / "a.ckpt"
    io.save_checkpoint(state(1.0), path)
    with (
        file_size_limit(100_000),
        pytest.raises(OSError, match="it needs 400000 bytes, and") as raised,
    ):
        io.save_checkpoint(state(2.0, numbers=100_000), path)
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(path)
    assert "What was there before is still there" in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert io.load_checkpoint(path)["state_dict"]["weight"].tolist() == [1.0] * 4


def test_no_space_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device\): it needs 16 bytes, and \d+ are"):
        HPUCheckpointIO().save_checkpoint(state(), tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_model_checkpoint_keeps_the_older_one_on_a_full_disk(
    tmp_path: Path, asynchronous: bool
) -> None:
    class Growing(Classifier):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if self.current_epoch == 2:
                checkpoint["more"] = torch.zeros(100_000)

    callback = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=1)
    run = trainer(
        max_epochs=4,
        callbacks=[callback],
        enable_checkpointing=True,
        plugins=[HPUCheckpointIO(asynchronous=asynchronous)],
    )
    with file_size_limit(100_000), pytest.raises(OSError, match="it needs 4") as raised:
        run.fit(Growing(mlp()), features())
    assert raised.value.filename == str(tmp_path / "epoch=2.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=1.ckpt"]
    assert torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["epoch"] == 1


def test_classes_are_refused_by_name_with_the_remedies(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    HPUCheckpointIO().save_checkpoint({"hyper_parameters": {"settings": Settings()}}, path)
    expected = rf"holds objects of {Settings.__module__}\.Settings, and weights_only=True reads"
    with pytest.raises(CheckpointError, match=expected) as raised:
        HPUCheckpointIO().load_checkpoint(path)
    for remedy in ("weights_only=False", "add_safe_globals", "save_hyperparameters(ignore"):
        assert remedy in str(raised.value)
    for io, given in ((HPUCheckpointIO(), False), (HPUCheckpointIO(weights_only=False), None)):
        content = io.load_checkpoint(path, weights_only=given)
        assert type(content["hyper_parameters"]["settings"]).__name__ == "Settings"
    with pytest.raises(CheckpointError):
        HPUCheckpointIO(weights_only=False).load_checkpoint(path, weights_only=True)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "structure"])
def test_a_file_that_is_not_whole(tmp_path: Path, damage: str, weights_only: bool) -> None:
    io = HPUCheckpointIO()
    for number, name in enumerate(("old.ckpt", "new.ckpt", "broken.ckpt")):
        io.save_checkpoint(state(), tmp_path / name)
        os.utime(tmp_path / name, (number, number))
    path = tmp_path / "broken.ckpt"
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "garbage": b"not a checkpoint",
        "structure": content.replace(b"state_dict", b"\xff" * 10),
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"broken\.ckpt cannot be read: it is") as raised:
        io.load_checkpoint(path, weights_only=weights_only)
    assert f"({len(damaged)} bytes)" in str(raised.value)
    assert f"beside it is {tmp_path / 'new.ckpt'}: use that one" in str(raised.value)
    (tmp_path / "new.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"beside it is .*old\.ckpt"):
        io.load_checkpoint(path, weights_only=weights_only)
    (tmp_path / "old.ckpt").unlink()
    with pytest.raises(CheckpointError, match="There is no other checkpoint beside it"):
        io.load_checkpoint(path, weights_only=weights_only)


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    io = HPUCheckpointIO()
    with pytest.raises(FileNotFoundError, match=r"Checkpoint file not found: .*none\.ckpt"):
        io.load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder, but a checkpoint is a file"):
        io.load_checkpoint(tmp_path)
    with pytest.raises(IsADirectoryError, match="a checkpoint is a file, but this is a folder"):
        io.save_checkpoint(state(), tmp_path)
    io.save_checkpoint(state(), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"The newest checkpoint in it is .*a\.ckpt"):
        io.load_checkpoint(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a sharded checkpoint"):
        io.load_checkpoint(tmp_path)


def test_storage_options_are_refused_as_in_stock_lightning(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        HPUCheckpointIO().save_checkpoint(state(), tmp_path / "a.ckpt", storage_options={})


def test_it_is_the_strategys_unless_the_user_has_another() -> None:
    assert type(trainer().strategy.checkpoint_io) is HPUCheckpointIO
    own = TorchCheckpointIO()
    assert trainer(plugins=[own]).strategy.checkpoint_io is own
    assert trainer(strategy=GaudiStrategy(checkpoint_io=own)).strategy.checkpoint_io is own
    for wrapped in (
        trainer(plugins=[AsyncCheckpointIO()]).strategy.checkpoint_io,
        trainer(strategy=GaudiStrategy(checkpoint_io=AsyncCheckpointIO())).strategy.checkpoint_io,
    ):
        assert type(wrapped) is AsyncCheckpointIO
        assert type(wrapped.checkpoint_io) is HPUCheckpointIO
    wrapped = trainer(plugins=[AsyncCheckpointIO(own)]).strategy.checkpoint_io
    assert wrapped.checkpoint_io is own
