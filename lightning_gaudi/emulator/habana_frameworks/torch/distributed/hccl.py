"""``habana_frameworks.torch.distributed.hccl``: importing it registers the backend ``"hccl"``.

The collectives are gloo's, on the CPU memory that the emulated tensors are. Gloo has no AVG, as
HCCL has none.
"""

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightning_gaudi.emulator.missing import name_missing


def _make_backend(store: Any, rank: int, size: int, timeout: timedelta) -> object:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def initialize_distributed_hpu(
    world_size: int | None = None, rank: int | None = None, local_rank: int | None = None
) -> tuple[int, int, int]:
    """Which process this is: what is given, else what torchrun or MPI has set.

    Returns:
        World size, rank and local rank.
    """

    def look_up(given: int | None, names: tuple[str, ...], default: int) -> int:
        values = [os.environ[name] for name in names if name in os.environ]
        return given if given is not None else int(values[0]) if values else default

    return (
        look_up(world_size, ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"), 1),
        look_up(rank, ("RANK", "OMPI_COMM_WORLD_RANK"), 0),
        look_up(local_rank, ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), 0),
    )


if "hccl" not in dist.Backend.backend_list:
    dist.Backend.register_backend("hccl", _make_backend, devices=["hpu", "cpu"])

__all__ = ["initialize_distributed_hpu"]
__getattr__ = name_missing("habana_frameworks.torch.distributed.hccl")
