"""Who has started the processes of a run: MPI without mpi4py, and whether the numbers fit."""

from __future__ import annotations

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import launching

# As the Gaudi software has it (bridge 1.19.0, ``hccl/__init__.py``).
_DEFAULT_PORT = 12345


class MPIVariablesEnvironment(ClusterEnvironment):
    """Processes that ``mpirun`` has started, known by its environment variables alone.

    Lightning's ``MPIEnvironment`` needs mpi4py; this one reads what Open MPI, MPICH and Intel MPI
    set for each process. On one machine nothing else is needed. On several ``MASTER_ADDR`` must
    name the machine of rank 0 in each process, and each must have as many processes: the machine's
    number is worked out from that. The port is ``MASTER_PORT``, or 12345.

    Raises:
        ConfigurationError: ``mpirun`` has not started this process, or a variable is no number.
    """

    def __init__(self) -> None:
        super().__init__()
        process = launching.by_mpi()
        if process is None:
            raise ConfigurationError(
                "MPIVariablesEnvironment is for processes that mpirun has started, but neither "
                "Open MPI's variables (OMPI_COMM_WORLD_RANK ...) nor those of MPICH and Intel MPI "
                "(PMI_RANK, MPI_LOCALRANKID ...) are all set. Start the script with mpirun."
            )
        self._process = process

    @staticmethod
    @override
    def detect() -> bool:
        """Whether ``mpirun`` has started this process as one of several."""
        process = launching.by_mpi()
        return process is not None and process.world_size > 1

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        """``MASTER_ADDR``, or this machine where all processes are on it.

        Raises:
            ConfigurationError: There are several machines, and it is not set.
        """
        address = launching.main_address()
        if address is None:
            if self._process.num_nodes > 1:
                raise ConfigurationError(
                    f"mpirun has started {self._process.world_size} processes, "
                    f"{self._process.local_size} of them here, so there are several machines, and "
                    "MPI does not say where rank 0 is. Name its machine in every process: "
                    "mpirun -x MASTER_ADDR=HOST (Open MPI) or -genv MASTER_ADDR HOST (MPICH)."
                )
            address = "127.0.0.1"
        return address

    @property
    @override
    def main_port(self) -> int:
        return launching.main_port() or _DEFAULT_PORT

    @override
    def world_size(self) -> int:
        return self._process.world_size

    @override
    def set_world_size(self, size: int) -> None:
        """Nothing to do: MPI decides."""

    @override
    def global_rank(self) -> int:
        return self._process.rank

    @override
    def set_global_rank(self, rank: int) -> None:
        """Nothing to do: MPI decides."""

    @override
    def local_rank(self) -> int:
        return self._process.local_rank

    @override
    def node_rank(self) -> int:
        return self._process.rank // self._process.local_size


def choose_environment(chosen: ClusterEnvironment) -> ClusterEnvironment:
    """The environment for a run where the user has named none.

    Args:
        chosen: Lightning's own choice. It stays, unless it is the one for processes that nobody
            but Lightning starts and ``mpirun`` has started this one.
    """
    if type(chosen) is LightningEnvironment and MPIVariablesEnvironment.detect():
        return MPIVariablesEnvironment()
    return chosen


def check_processes(environment: ClusterEnvironment, *, num_devices: int, num_nodes: int) -> None:
    """Check that a launcher has started the processes that the Trainer is to have.

    Args:
        environment: What knows the launcher.
        num_devices: Cards of each machine, ``Trainer(devices=...)``.
        num_nodes: Machines, ``Trainer(num_nodes=...)``.

    Raises:
        ConfigurationError: It has started others; the message names both and the remedy.
        ValueError: The environment itself refuses the numbers.
    """
    launcher, process, option = "", None, ""
    if isinstance(environment, TorchElasticEnvironment):
        launcher, process = "torchrun", launching.by_torchrun()
        option = f"torchrun --nnodes={num_nodes} --nproc-per-node={num_devices}"
    elif isinstance(environment, MPIVariablesEnvironment):
        launcher, process = "mpirun", launching.by_mpi()
        option = f"mpirun -n {num_devices * num_nodes}"
    if process is not None:
        if (process.world_size, process.local_size) != (num_devices * num_nodes, num_devices):
            raise ConfigurationError(
                f"devices={num_devices} and num_nodes={num_nodes} ask for "
                f"{num_devices * num_nodes} processes, {num_devices} a machine, which does not "
                f"match the world size ({process.world_size}) of {launcher}, with "
                f"{process.local_size} on this machine. Use devices={process.local_size} and "
                f"num_nodes={process.num_nodes}, or start it with {option}."
            )
        return
    environment.validate_settings(num_devices=num_devices, num_nodes=num_nodes)
    # Lightning compares what SLURM says of a machine only, and only where SLURM says it.
    if isinstance(environment, SLURMEnvironment) and (
        environment.world_size() != num_devices * num_nodes
    ):
        raise ConfigurationError(
            f"devices={num_devices} and num_nodes={num_nodes} ask for {num_devices * num_nodes} "
            f"processes, which does not match SLURM_NTASKS={environment.world_size()}. Use "
            f"srun --nodes={num_nodes} --ntasks-per-node={num_devices}, or devices and num_nodes "
            "that multiply to the number of tasks."
        )
