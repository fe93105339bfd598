"""Process groups of backend ``"hccl"``, and what the SDK works out from the environment.

The collectives are gloo's, on the CPU memory that the emulated tensors are. HCCL reduces with SUM,
PRODUCT, MIN and MAX only (HABANA.md, "Many cards"); gloo knows more, so the others are refused.
So are tensors on the host: the backend is the HPU's alone, but C++ sees none that is not the CPU's.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from lightning_gaudi.emulator import distributed_tensor
from lightning_gaudi.emulator.tensor import HPUTensor, unwrap, wrap

HLS_MODULE_ID = "HLS_MODULE_ID"
HABANA_VISIBLE_MODULES = "HABANA_VISIBLE_MODULES"

_LET_GO_S = 0.05
_FROM_MPI = {
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "RANK": "OMPI_COMM_WORLD_RANK",
}
_REFUSED = ("AVG", "BAND", "BOR", "BXOR", "PREMUL_SUM")
_REDUCING = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)
# HCCL takes one buffer of any shape for what all ranks have; gloo cuts its first dimension.
_FLAT = (
    "_all_gather_base",
    "_reduce_scatter_base",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)
# PyTorch's own object collectives call these by another name, with tensors that C++ takes for ours.
# Not isend and irecv, which `P2POp` knows by identity.
_MOVING = (
    *_REDUCING,
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_to_all",
    "all_to_all_single",
    "broadcast",
    "gather",
    "recv",
    "scatter",
    "send",
)


def initialize_distributed_hpu(
    world_size: int | None = None, rank: int | None = None, local_rank: int | None = None
) -> tuple[int, int, int]:
    """Which process this is, and which card it takes (bridge 1.19.0, ``hccl/__init__.py``).

    What is given, all three, becomes the environment's ``WORLD_SIZE``, ``RANK`` and
    ``LOCAL_RANK``; otherwise MPI's variables do where those are not all set, and ``MASTER_ADDR``
    and ``MASTER_PORT`` get a default. Of several processes each takes the card of its local rank,
    among those of ``HABANA_VISIBLE_MODULES``; a ``HLS_MODULE_ID`` that is set already stays.

    Returns:
        World size, rank and local rank; 1, -1 and -1 where nothing says more.

    Raises:
        AssertionError: There are more processes than visible cards.
    """
    if world_size is not None and rank is not None and local_rank is not None:
        given = {"WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": local_rank}
        os.environ.update({name: str(value) for name, value in given.items()})
    elif not all(name in os.environ for name in _FROM_MPI):
        if all(name in os.environ for name in _FROM_MPI.values()):
            os.environ.update({name: os.environ[source] for name, source in _FROM_MPI.items()})
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "12345")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "-1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "-1"))
    _choose_card(world_size, local_rank)
    if rank != -1:
        os.environ["ID"] = str(rank)
    return world_size, rank, local_rank


def _choose_card(world_size: int, local_rank: int) -> None:
    if HLS_MODULE_ID in os.environ or local_rank == -1 or world_size == 1:
        return
    card = str(local_rank)
    if HABANA_VISIBLE_MODULES in os.environ:
        visible = os.environ[HABANA_VISIBLE_MODULES].split(",")
        if local_rank >= len(visible):
            raise AssertionError(
                f"There is not enough devices: local rank {local_rank} asks for one more than "
                f"{HABANA_VISIBLE_MODULES}={','.join(visible)} has."
            )
        card = visible[local_rank]
    os.environ[HLS_MODULE_ID] = card


def _make_backend(store: Any, rank: int, size: int, timeout: timedelta) -> object:
    _check_cards(store, rank, size)
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def _check_cards(store: Any, rank: int, size: int) -> None:
    """Refuse a group in which two processes of a machine were given one card (CARD.md 10).

    Raises:
        RuntimeError: They were; the bridge keeps a module id that is set, inherited ones too.
    """
    mine = f"{socket.gethostname()}:{os.environ.get(HLS_MODULE_ID, f'any free one for {rank}')}"
    store.set(f"card/{rank}", mine)
    for other in range(size):
        if other != rank and store.get(f"card/{other}").decode() == mine:
            raise RuntimeError(
                f"ranks {min(rank, other)} and {max(rank, other)} have the same card: "
                f"{HLS_MODULE_ID}={os.environ[HLS_MODULE_ID]} in both. On a Gaudi machine the "
                "second cannot open it. Unset the variable before you start the processes, or set "
                "it to the local rank in each."
            )


def _refused_name(op: Any) -> str:
    """The name of a reduce op that HCCL does not have; empty for anything else."""
    if not isinstance(op, (dist.ReduceOp, dist.ReduceOp.RedOpType)):
        return ""
    return next((name for name in _REFUSED if op == getattr(dist.ReduceOp, name)), "")


def _reducing(plain_function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain_function)
    def function(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        refused = next(filter(None, map(_refused_name, given)), "")
        if refused and _is_hccl(given):
            raise RuntimeError(
                f"hccl has no ReduceOp.{refused}: it reduces with SUM, PRODUCT, MIN and MAX. "
                "For a mean, reduce with SUM and divide by the number of processes."
            )
        return plain_function(*args, **kwargs)

    return function


def _is_hccl(given: tuple[Any, ...]) -> bool:
    """Whether the group among a collective's arguments, or the default one, is HCCL's."""
    groups = [value for value in given if isinstance(value, dist.ProcessGroup)]
    return dist.get_backend(groups[0] if groups else None) == "hccl"


def _flat(plain_function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain_function)
    def function(*args: Any, **kwargs: Any) -> Any:
        if _is_hccl((*args, *kwargs.values())):
            args = tuple(map(_flatten, args))
            kwargs = {name: _flatten(value) for name, value in kwargs.items()}
        return plain_function(*args, **kwargs)

    return function


def _flatten(value: Any) -> Any:
    is_ours = type(value) is HPUTensor and value.is_contiguous()
    return value.view(-1) if is_ours else value


def _moving(plain_function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain_function)
    def function(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if any(map(_is_on_host, given)) and _is_hccl(given):
            raise RuntimeError(
                "No backend type associated with device type cpu: hccl is the HPU's. Move the "
                'tensor with .to("hpu"), or make a group for the host: '
                'dist.new_group(backend="gloo").'
            )
        return plain_function(*args, **kwargs)

    return function


def _destroying(plain_function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain_function)
    def function(*args: Any, **kwargs: Any) -> Any:
        # A process hung now and then when it freed a group right after its last collective: it
        # waits for gloo's threads, and they, it seems, for the interpreter, to let go of tensors.
        time.sleep(_LET_GO_S)
        return plain_function(*args, **kwargs)

    return function


def _on_its_device(plain_method: Callable[..., Any]) -> Callable[..., Any]:
    """What C++ hands to a communication hook, on the device that the parameters are on."""

    @functools.wraps(plain_method)
    def method(bucket: Any) -> Any:
        tensors = plain_method(bucket)
        if any(parameter.device.type == "hpu" for parameter in bucket.parameters()):
            is_list = isinstance(tensors, list)
            return [*map(_typed, tensors)] if is_list else _typed(tensors)
        return tensors

    return method


def _typed(tensor: Tensor) -> Tensor:
    return wrap(unwrap(tensor)) if type(tensor) is Tensor else tensor


def _is_on_host(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_on_host, value))
    return isinstance(value, Tensor) and value.device.type == "cpu"


def register() -> None:
    """Register the backend ``"hccl"``. Calling it again does nothing."""
    if "hccl" in dist.Backend.backend_list:
        return
    dist.Backend.register_backend("hccl", _make_backend, devices=["hpu", "cpu"])
    distributed_tensor.attach_to_dtensor()
    for name in _REDUCING:
        plain_function = getattr(distributed_c10d, name, None)
        if plain_function is not None:
            function = _reducing(plain_function)
            for owner in (dist, distributed_c10d):
                setattr(owner, name, function)
    destroy = _destroying(distributed_c10d.destroy_process_group)
    for owner in (dist, distributed_c10d):
        owner.destroy_process_group = destroy  # type: ignore[attr-defined]
    bucket: Any = dist.GradBucket  # type: ignore[attr-defined]
    for name in ("buffer", "gradients"):
        method = getattr(bucket, name)
        setattr(bucket, name, _on_its_device(method))
    for name in _FLAT:
        if hasattr(dist, name):
            setattr(dist, name, _flat(getattr(dist, name)))
    for name in _MOVING:
        if hasattr(dist, name):
            setattr(dist, name, _moving(getattr(dist, name)))
