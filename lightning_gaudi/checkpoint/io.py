"""`HPUCheckpointIO`: how the Trainer's checkpoints get onto the disk and back."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from lightning.fabric.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from typing_extensions import override

from lightning_gaudi.checkpoint import reading
from lightning_gaudi.checkpoint.background import Background, while_writing
from lightning_gaudi.checkpoint.host_copy import HostCopy, copy_to_host
from lightning_gaudi.whole_files import whole_file

_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HPUCheckpointIO(CheckpointIO):
    """Writes checkpoints whole or not at all, from a copy on the host.

    Tensors are copied to the CPU first, with one break of the lazy graph, so that no file names the
    device and stock Lightning reads it anywhere. Tied weights stay tied, and a view takes no more
    than its own size. A file gets its name when it is complete and on the disk; until then the
    one that it replaces stays. A path that names a remote file system (``s3://...``) is written and
    read as stock Lightning does.

    It is what our strategies use where the Trainer is given no other.

    Args:
        asynchronous: Whether a thread writes the file while training goes on. The copy on the host
            is made at once, so that later steps do not change it. A second save waits for the
            first. An error of the thread is raised by the next save, load or end of a stage;
            files that were to be removed after a failed save are kept. A logger that uploads
            checkpoints may be told of a file before it is there.
        weights_only: What to do where neither the Trainer nor its caller says: True (the default)
            reads tensors and plain Python values only, False whatever classes the file names.

    Example::

        Trainer(accelerator="hpu", plugins=[HPUCheckpointIO(asynchronous=True)])
    """

    def __init__(self, *, asynchronous: bool = False, weights_only: bool = True) -> None:
        self.asynchronous = asynchronous
        self.weights_only = weights_only
        self._background = Background()

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What ``torch.save`` accepts.
            path: Where to; its folder is made where there is none.
            storage_options: Not supported.

        Raises:
            TypeError: ``storage_options`` is given.
            OSError: The file cannot be written. What was there before is still there.
        """
        if storage_options is not None:
            raise TypeError(
                "Trainer.save_checkpoint(..., storage_options=...) is not supported by "
                "HPUCheckpointIO. Leave it out, or write a CheckpointIO of your own."
            )
        self._background.finish()
        if not self.asynchronous:
            with while_writing():
                _write(copy_to_host(checkpoint, keep_host_tensors=True), path)
            return
        copy = copy_to_host(checkpoint)
        self._background.start(lambda: _write(copy, path))

    @override
    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Any | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; waits for one that is being written.

        Args:
            path: Where from.
            map_location: As in ``torch.load``; on the CPU unless told otherwise.
            weights_only: Whether to refuse everything but tensors and plain Python values; as the
                constructor was told where this is None.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is not whole, is a folder, or holds classes that are refused.
            OSError: The save before has failed.
        """
        self._background.finish()
        if weights_only is None:
            weights_only = self.weights_only
        local = _local(path)
        content: dict[str, Any]
        if local is not None:
            content = reading.read(local, map_location, weights_only)
        elif str(path).startswith("http"):
            content = torch.hub.load_state_dict_from_url(
                str(path), map_location=map_location, weights_only=weights_only
            )
        else:
            file_system, name = url_to_fs(str(path))
            if not file_system.exists(name):
                raise FileNotFoundError(f"Checkpoint file not found: {path}")
            with file_system.open(name, "rb") as file:
                content = torch.load(file, map_location=map_location, weights_only=weights_only)
        return content

    @override
    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, after the saves before this call, and not where one has failed."""
        self._background.then(lambda: TorchCheckpointIO().remove_checkpoint(path))

    @override
    def teardown(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: It could not be written.
        """
        self._background.finish()

    def settle(self) -> BaseException | None:
        """Wait for what is being written; its error, which is then not raised any more."""
        return self._background.settle()


def _local(path: _PATH) -> Path | None:
    """The path in this machine's file system; None where it is in another."""
    file_system, name = url_to_fs(str(path))
    return Path(name) if isinstance(file_system, LocalFileSystem) else None


def _write(copy: HostCopy, path: _PATH) -> None:
    local = _local(path)
    if local is None:
        TorchCheckpointIO().save_checkpoint(copy.content, path)
        return
    if local.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "a checkpoint is a file, but this is a folder", str(local)
        )
    try:
        with whole_file(local) as file:
            _save(copy.content, file)
    except OSError as error:
        if error.errno not in _IS_FULL:
            raise
        # Measured when what was written of it is gone again.
        free = shutil.disk_usage(local.parent).free
        raise OSError(
            error.errno,
            f"the checkpoint could not be written ({os.strerror(error.errno or 0)}): it needs "
            f"{copy.num_bytes} bytes, and {free} are free. What was there before is still there. "
            "Make room, or save less often or with save_weights_only=True",
            str(local),
        ) from error


def _save(content: Any, file: BinaryIO) -> None:
    """``torch.save`` that raises the file's own error, not one about what has become of it."""
    watched: Any = _WatchedFile(file)
    try:
        torch.save(content, watched)
    except Exception:
        if watched.error is not None:
            raise watched.error from None
        raise


class _WatchedFile:
    """A file that remembers the error of a write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self.flush: Callable[[], None] = file.flush

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise
