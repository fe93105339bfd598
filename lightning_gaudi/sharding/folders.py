"""Checkpoints in parts: a folder of ``torch.distributed.checkpoint``, to which each process writes.

A folder is read with any number of processes. It is laid out as Lightning's own
``ModelParallelStrategy`` does it, so that ``python -m
lightning.pytorch.utilities.consolidate_checkpoint FOLDER`` makes one file of it: ``state_dict`` and
``optimizer_0``, ``optimizer_1`` ..., by parameter names, and what is no tensor in ``meta.pt``.

It is written aside, and gets its name when all of it is there.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.sharding.states import name_optimizer_state, number_optimizer_state

META_FILE = "meta.pt"
_INDEX_FILE = ".metadata"


def is_folder(path: Path) -> bool:
    """Whether a path is a checkpoint in parts."""
    return path.is_dir() and (path / META_FILE).is_file() and (path / _INDEX_FILE).is_file()


def check_folder(path: Path) -> None:
    """Check that a path is a checkpoint in parts.

    Raises:
        ConfigurationError: It is another kind of folder.
    """
    if not is_folder(path):
        missing = [name for name in (META_FILE, _INDEX_FILE) if not (path / name).is_file()]
        raise ConfigurationError(
            f"{path} is a folder, but no checkpoint in parts: it has no "
            f"{' and no '.join(missing)}. "
            'Give the folder that state_dict_type="sharded" has written, or a checkpoint file.'
        )


def save(
    path: Path,
    module_state: Mapping[str, Any],
    optimizer_states: list[dict[str, Any]],
    save_rest: Callable[[Path], None],
    *,
    is_main: bool,
    broadcast: Callable[[Any], Any],
    barrier: Callable[[], None],
) -> None:
    """Write a checkpoint in parts; all processes together.

    Args:
        path: The folder. What has its name is replaced.
        module_state: A module's state, in parts.
        optimizer_states: Those of optimizers, in parts, by parameter names.
        save_rest: Writes everything else to a file; called in the main process only.
        is_main: Whether this process is the main one.
        broadcast: Gives all processes the main one's value.
        barrier: Waits for all processes.

    Raises:
        OSError: It cannot be written.
        CheckpointException: Another process could not write its part. What was there stays.
    """
    aside = Path(broadcast(str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))))
    state = {"state_dict": dict(module_state)}
    state |= {f"optimizer_{number}": value for number, value in enumerate(optimizer_states)}
    error: BaseException | None = None
    try:
        with _without_group():
            dcp_save(state, checkpoint_id=aside)
        if is_main:
            save_rest(aside / META_FILE)
    except BaseException as caught:
        error = caught
    failed = bool(broadcast(error is not None))
    if is_main:
        if failed:
            shutil.rmtree(aside, ignore_errors=True)
        else:
            _replace(path, aside)
    if error is not None:
        raise error
    if failed:
        raise OSError(f"{path} was not written: the main process could not write its part.")
    barrier()


@contextmanager
def replaced_by_file(path: Path, *, is_main: bool) -> Iterator[None]:
    """Make room for a file where a checkpoint in parts is, and put it back if that fails."""
    if not is_main or not path.is_dir():
        yield
        return
    before = path.with_name(f".{path.name}.{secrets.token_hex(4)}.before")
    os.rename(path, before)
    try:
        yield
    except BaseException:
        os.rename(before, path)
        raise
    shutil.rmtree(before)


def load(
    path: Path, module: nn.Module, optimizers: list[Optimizer], rest: dict[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint in parts, into parts of how the module is sharded now.

    Args:
        path: The folder.
        module: The module, sharded or not.
        optimizers: Its optimizers; empty where only weights are wanted.
        rest: What ``meta.pt`` holds.

    Returns:
        `rest` with ``state_dict`` and ``optimizer_states``, for ``load_state_dict``.
    """
    index = FileSystemReader(path).read_metadata()
    places = {key: index.planner_data[key] for key in index.state_dict_metadata}
    weights, parameters = module.state_dict(), dict(module.named_parameters())
    wanted = ["state_dict", *(f"optimizer_{number}" for number, _ in enumerate(optimizers))]
    state: dict[str, Any] = {}
    for key, (owner, *names) in places.items():
        if owner == "state_dict":
            state[key] = _room(index, key, weights.get(names[0]))
        elif owner in wanted:
            state[key] = _room(index, key, parameters.get(names[1]) if len(names) > 2 else None)
    with _without_group():
        dcp_load(state, checkpoint_id=path)
    nested: dict[str, Any] = {}
    for key, value in state.items():
        _put(nested, places[key], value)
    loaded = {**rest, "state_dict": nested.get("state_dict", {})}
    if optimizers:
        loaded["optimizer_states"] = [
            number_optimizer_state({"state": {}, **nested[owner]}, optimizer, module)
            for owner, optimizer in zip(wanted[1:], optimizers, strict=True)
            if owner in nested
        ]
    return loaded


def named(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """An optimizer's state in parts, as `save` takes it."""
    return name_optimizer_state(optimizer.state_dict(), optimizer, module)


def _room(index: Metadata, key: str, like: Any) -> Any:
    """A tensor for an entry to be read into; None for what is no tensor, which is read anyway."""
    entry = index.state_dict_metadata[key]
    if not isinstance(entry, TensorStorageMetadata):
        return None
    dtype = entry.properties.dtype
    if isinstance(like, DTensor) and like.shape == entry.size:
        return torch.zeros_like(like.detach(), dtype=dtype)
    return torch.empty(entry.size, dtype=dtype)


def _put(nested: dict[str, Any], place: Sequence[Any], value: Any) -> None:
    """Put a value where the keys of nested dicts and lists lead; entries come in their order."""
    target: Any = nested
    for key, following in itertools.pairwise(place):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(target, list):
            if key == len(target):
                target.append(empty)
        else:
            target.setdefault(key, empty)
        target = target[key]
    if isinstance(target, list):
        target.append(value)
    else:
        target[place[-1]] = value


def _replace(path: Path, aside: Path) -> None:
    """Give a whole folder its name, in place of what has it."""
    _sync(aside)
    before = path.with_name(f"{aside.name}.before")
    if path.exists():
        os.rename(path, before)
    os.rename(aside, path)
    _sync(path.parent)
    if before.is_dir():
        shutil.rmtree(before)
    else:
        before.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    with suppress(OSError):  # not on every file system
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _without_group() -> Iterator[None]:
    """Do not warn where there is one process, and so no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled, unavailable.*")
        yield
