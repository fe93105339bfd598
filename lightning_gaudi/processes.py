"""A process of a run: its card, its software, its peers, and what they reduce together.

The Trainer and Fabric have strategies of two separate class trees; what both do on the HPU is here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed import ReduceOp

from lightning_gaudi.cluster import check_processes
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime import distributed, loading
from lightning_gaudi.runtime.loading import ExecutionMode

# What Gaudi's other clients use (HABANA.md, "Many cards").
DDP_DEFAULTS = {
    "gradient_as_bucket_view": True,
    "bucket_cap_mb": 230,
    "find_unused_parameters": False,
}


def start(
    mode: ExecutionMode, environment: ClusterEnvironment, *, num_processes: int, num_nodes: int
) -> None:
    """Choose this process's card, and load the Gaudi software in a mode.

    Args:
        mode: The execution mode.
        environment: Who started the processes.
        num_processes: Processes on this node, one a card.
        num_nodes: How many nodes take part.

    Raises:
        GaudiNotAvailableError: There is no Gaudi software.
        ExecutionModeError: It is loaded in another mode.
        ConfigurationError: There is no card for this process, `environment` has started another
            number of processes, or the device is open in the process that this one is forked from.
    """
    # No launcher checks this for one device, and each of several processes would train for itself.
    check_processes(environment, num_devices=num_processes, num_nodes=num_nodes)
    if num_processes * num_nodes > 1:
        loading.check_not_inherited()
        distributed.choose_card(environment.local_rank())
    loading.load(mode)
    rank_zero_info(f"HPU: {num_processes} x {hpu.name()}, {mode} mode")


def connect(
    environment: ClusterEnvironment, backend: str, timeout: timedelta | None, *, mode: ExecutionMode
) -> None:
    """Find the other processes and join the group of all; nothing to do where there is one.

    Args:
        environment: Knows the main process's address, and this one's rank.
        backend: The process group's backend.
        timeout: How long to wait for the others, here and in each collective; PyTorch's default
            where it is None.
        mode: The execution mode, which must be the same in all processes.

    Raises:
        ConfigurationError: The backend is unknown.
        ProcessGroupError: The others cannot be found in time, the port is taken, or they run in
            another mode.
    """
    if torch.distributed.is_initialized():
        return
    distributed.load_backend()
    # Unlike DDPStrategy, no device_id: HCCL does not connect at once, as PyTorch then expects.
    distributed.connect(
        backend,
        address=environment.main_address,
        port=environment.main_port,
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        timeout=timeout,
        settings={"mode": mode},
    )
    rank_zero_info(f"{backend}: {environment.world_size()} processes have found each other")


def gather_objects(mine: Any) -> list[Any]:
    """What each process passes here, by rank; to be called in all of them."""
    if not torch.distributed.is_initialized():
        return [mine]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


class _OfTheDevice:
    """A tensor of the device on its way to another process.

    Args:
        tensor: The tensor, on the host.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def broadcast(obj: Any, src: int, rank: int, broadcast_object: Callable[..., Any]) -> Any:
    """Give all processes one's object; its tensors come to be where they were, host or device.

    Args:
        obj: Anything that can be pickled. Tensors in lists, tuples, dicts and dataclasses are
            found; in other objects they come as pickle has them.
        src: The rank of the process whose object it is.
        rank: This process's rank.
        broadcast_object: Lightning's own way, called with ``(obj, src)``.

    Returns:
        `obj` itself in the process of rank `src`, a copy of it in all others.
    """
    if not torch.distributed.is_initialized():
        return obj
    if rank == src:
        broadcast_object(apply_to_collection(obj, Tensor, _to_host), src)
        return obj
    received = broadcast_object(None, src)
    return apply_to_collection(
        received, _OfTheDevice, lambda packed: packed.tensor.to(hpu.this_device())
    )


def _to_host(tensor: Tensor) -> Tensor | _OfTheDevice:
    return _OfTheDevice(tensor.detach().cpu()) if tensor.device.type == "hpu" else tensor


def all_reduce(
    tensor: Any, group: Any | None, reduce_op: Any | None, reduce: Callable[..., Any]
) -> Any:
    """Reduce a tensor over all processes, in place, without asking for a mean.

    HCCL has no mean (HABANA.md, "Many cards"), so that is a sum and a division.

    Args:
        tensor: The tensor. Anything else comes back as it is.
        group: The process group; None for all processes.
        reduce_op: A ``ReduceOp`` or its name; ``"mean"`` and ``"avg"`` are means.
        reduce: Lightning's own way, called with ``(tensor, group, reduce_op=...)``.

    Returns:
        `tensor` itself.
    """
    if not isinstance(tensor, Tensor) or not torch.distributed.is_initialized():
        return tensor
    if isinstance(reduce_op, str):
        is_mean = reduce_op.lower() in ("mean", "avg")
    else:
        is_mean = reduce_op == ReduceOp.AVG
    if not is_mean:
        return reduce(tensor, group, reduce_op=reduce_op)
    total = reduce(tensor, group, reduce_op="sum")
    return total.copy_(total / torch.distributed.get_world_size(group))
