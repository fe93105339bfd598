"""Which launcher has started this process, as one of several, by the variables that it sets."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning_gaudi.errors import ConfigurationError

# Open MPI's documented variables, which the bridge reads too (1.19.0, ``hccl/__init__.py``), and
# those of MPICH's and Intel MPI's process manager, Hydra.
_MPI = (
    (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)
_TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
MASTER_ADDR = "MASTER_ADDR"
MASTER_PORT = "MASTER_PORT"


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of those that a launcher has started.

    Attributes:
        world_size: How many there are on all machines.
        rank: Which of them this is.
        local_size: How many there are on this machine.
        local_rank: Which of those this is.
    """

    world_size: int
    rank: int
    local_size: int
    local_rank: int

    @property
    def num_nodes(self) -> int:
        """How many machines there are, if each has as many processes as this one."""
        return max(1, self.world_size // self.local_size)


def by_mpi() -> Process | None:
    """What ``mpirun`` says of this process; None where it has not started it.

    Raises:
        ConfigurationError: A variable is no number.
    """
    for names in _MPI:
        process = _read(names)
        if process is not None:
            return process
    return None


def by_torchrun() -> Process | None:
    """What ``torchrun`` says of this process; None where its variables are not all set.

    Raises:
        ConfigurationError: A variable is no number.
    """
    return _read(_TORCHRUN)


def main_address() -> str | None:
    """``MASTER_ADDR`` as it stands, or None."""
    return os.environ.get(MASTER_ADDR)


def main_port() -> int | None:
    """``MASTER_PORT`` as it stands, or None.

    Raises:
        ConfigurationError: It is no number.
    """
    return _number(MASTER_PORT) if MASTER_PORT in os.environ else None


def set_main(address: str, port: int) -> None:
    """Set ``MASTER_ADDR`` and ``MASTER_PORT`` for this process and those it starts."""
    os.environ[MASTER_ADDR] = address
    os.environ[MASTER_PORT] = str(port)


def _read(names: tuple[str, str, str, str]) -> Process | None:
    if not all(name in os.environ for name in names):
        return None
    world_size, rank, local_size, local_rank = map(_number, names)
    return Process(
        world_size=world_size, rank=rank, local_size=max(1, local_size), local_rank=local_rank
    )


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.strip().isdecimal():
        raise ConfigurationError(f"{name} must be a whole number, but it is {value!r}.")
    return int(value)
