"""Several cards: which one a process takes, and how the processes find each other."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lightning_gaudi.errors import ConfigurationError, ProcessGroupError
from lightning_gaudi.runtime import environment, launching, loading

_SAME = "same"
_HEARD_S = 10.0
_num_connections = 0


def choose_card(local_rank: int) -> None:
    """Choose the card of this process; to be called in each rank before the software loads.

    The bridge keeps a module id that is set, so an inherited one would give every rank card 0
    (bridge 1.19.0, ``hccl/__init__.py``): it is overwritten. The cards are those that
    ``HABANA_VISIBLE_MODULES`` names, in its order.

    Raises:
        ConfigurationError: There are more processes than cards.
    """
    visible = environment.visible_modules()
    if visible and local_rank >= len(visible):
        raise ConfigurationError(
            f"local rank {local_rank} has no card: {environment.VISIBLE_MODULES} names "
            f"{len(visible)} ({','.join(visible)}). Start as many processes as there are cards."
        )
    environment.set_module_id(visible[local_rank] if visible else str(local_rank))


def load_backend() -> None:
    """Register the process-group backend ``"hccl"``."""
    loading.module("torch.distributed.hccl")


def check_backend(backend: str) -> None:
    """Check that a process-group backend is known; `load_backend` must have been called.

    Raises:
        ConfigurationError: It is not.
    """
    # "hpu:hccl,cpu:gloo" names one for each device.
    for name in (part.rpartition(":")[2] for part in backend.split(",")):
        if name.lower() not in dist.Backend.backend_list:
            raise ConfigurationError(
                f"process_group_backend={backend!r} is unknown: PyTorch has "
                f"{', '.join(sorted(dist.Backend.backend_list))} here. HPUs talk through 'hccl'."
            )


def connect(
    backend: str,
    *,
    address: str,
    port: int,
    rank: int,
    world_size: int,
    timeout: timedelta | None,
    settings: Mapping[str, Any],
) -> None:
    """Find the other processes of a run and make the default process group.

    Nothing to do where there is one already.

    Args:
        backend: The group's backend.
        address: Where rank 0 is; becomes ``MASTER_ADDR``.
        port: Where it listens; becomes ``MASTER_PORT``.
        rank: Which process this is.
        world_size: How many there are.
        timeout: How long to wait for the others, here and in each collective; PyTorch's default
            where it is None.
        settings: What must be the same in all processes, by name: an execution mode, say.

    Raises:
        ConfigurationError: The backend is unknown.
        ProcessGroupError: The others cannot be found in time, the port is taken, or the processes
            do not have the same settings.
    """
    if dist.is_initialized():
        return
    check_backend(backend)
    launching.set_main(address, port)
    limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    started = time.monotonic()
    try:
        store, rank, world_size = next(rendezvous("env://", rank, world_size, **limit))
    except (RuntimeError, ValueError) as error:  # the second for a port that is none
        waited_s = time.monotonic() - started
        raise _connection_error(error, address, port, rank, world_size, waited_s) from error
    if timeout is not None:
        store.set_timeout(timeout)
    global _num_connections
    _num_connections += 1  # the store of torchrun outlives a group
    agree(
        PrefixStore(f"lightning_gaudi/{_num_connections}", store),
        rank,
        world_size,
        {"process_group_backend": backend, "torch": torch.__version__, **settings},
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, **limit)


def agree(store: Any, rank: int, world_size: int, settings: Mapping[str, Any]) -> None:
    """Check through a store that all processes have the same settings.

    All of them raise where one differs, since the others would wait for it.

    Raises:
        ProcessGroupError: They have not; the message names the ranks, their machines and values.
    """
    mine = {"host": socket.gethostname(), "settings": {k: str(v) for k, v in settings.items()}}
    store.set(f"settings/{rank}", json.dumps(mine))
    if rank == 0:
        all_of_them = [
            json.loads(_wait_for(store, f"settings/{other}", other)) for other in range(world_size)
        ]
        store.set("verdict", _difference(all_of_them) or _SAME)
    verdict = _wait_for(store, "verdict", 0)
    if verdict == _SAME:
        return
    if rank != 0:
        store.set(f"heard/{rank}", "")
    else:
        # Rank 0 may hold the store, which ends with it: the others must have read it before.
        with contextlib.suppress(RuntimeError):  # one that has ended by itself
            others = [f"heard/{other}" for other in range(1, world_size)]
            store.wait(others, timedelta(seconds=_HEARD_S))
    raise ProcessGroupError(verdict)


def _wait_for(store: Any, key: str, rank: int) -> str:
    try:
        value: bytes = store.get(key)
    except RuntimeError as error:
        raise ProcessGroupError(
            f"rank {rank} has been started but does not go on: it said nothing within the "
            "strategy's timeout. Look at its output; it may have ended, or have another number of "
            f"devices or nodes. PyTorch said: {_short(str(error))}"
        ) from error
    return value.decode()


def _difference(processes: list[Any]) -> str:
    first = processes[0]
    for rank, process in enumerate(processes):
        for name, value in first["settings"].items():
            other = process["settings"].get(name)
            if other != value:
                return (
                    f"the processes of a run must have the same {name}, but rank 0 (on "
                    f"{first['host']}) has {value!r} and rank {rank} (on {process['host']}) has "
                    f"{other!r}. Start all of them with the same script, arguments and "
                    "environment variables."
                )
    return ""


def _connection_error(
    error: Exception, address: str, port: int, rank: int, world_size: int, waited_s: float
) -> ProcessGroupError:
    where = f"{address}:{port}"
    text = str(error)
    who = f"rank {rank} of {world_size} on {socket.gethostname()}"
    check = (
        f"{launching.MASTER_ADDR} (now {address}) and {launching.MASTER_PORT} (now {port}) must "
        "name the machine of rank 0 and a free port of it, the same in every process"
    )
    if "EADDRINUSE" in text or "in use" in text:
        message = (
            f"{who} cannot listen at {where}: another program has the port. It may be a run that "
            f"has not ended, or a second run on this machine. Set {launching.MASTER_PORT} to a "
            "free port, the same in every process, or leave it out where Lightning starts the "
            "processes."
        )
    elif rank == 0:
        message = (
            f"{who} waited {waited_s:.0f} s at {where} for the others, and not all came. Start a "
            f"process for each of the {world_size} ranks (devices x num_nodes); {check}."
        )
    else:
        message = (
            f"{who} could not reach rank 0 at {where} within {waited_s:.0f} s. Check that rank 0 "
            f"has started and that no firewall is between: {check}."
        )
    return ProcessGroupError(
        f"{message} The strategy's timeout says how long to wait. PyTorch said: {_short(text)}"
    )


def _short(text: str) -> str:
    """The first line of a message, of which PyTorch's have a C++ stack behind them."""
    return text.partition("\n")[0].partition("Exception raised from")[0].strip()
