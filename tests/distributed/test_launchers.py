"""Each way to start several processes gives each its rank, its card and the others' gradients."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import (
    by_lightning,
    finish,
    free_port,
    run_ranks,
    start_command,
    start_script,
    values,
)
from training import Classifier, features, mlp, trainer

from lightning_gaudi import GaudiStrategy
from lightning_gaudi.cluster import MPIVariablesEnvironment
from lightning_gaudi.errors import ConfigurationError

pytestmark = training.IGNORED_WARNINGS

OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
LOCAL_OPEN_MPI = ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
HYDRA = ("PMI_SIZE", "PMI_RANK")
LOCAL_HYDRA = ("MPI_LOCALNRANKS", "MPI_LOCALRANKID")


def about(devices: int = 2, num_nodes: int = 1) -> dict[str, Any]:
    """Train a step; who this process is, and what the network has become."""
    torch.manual_seed(0)
    net = Classifier(mlp(), lambda parameters: torch.optim.SGD(parameters, 0.1))
    strategy = GaudiStrategy()
    run = trainer(strategy=strategy, devices=devices, num_nodes=num_nodes, max_epochs=1)
    run.fit(net, features(rows=8))
    return {
        "environment": type(strategy.cluster_environment).__name__,
        "ranks": (run.global_rank, run.local_rank, run.node_rank, run.world_size),
        "card": os.environ.get("HLS_MODULE_ID"),
        "backend": torch.distributed.get_backend(),
        "loss": net.losses[-1],
        "weight": net.network[0].weight.tolist(),
    }


def assert_one_step(found: list[dict[str, Any]], nodes: bool = False) -> None:
    """Both had a half of the data and made the same step: that of the whole of it."""
    network = Classifier(torch.manual_seed(0) and mlp())
    losses = [network.loss(batch) for batch in features(rows=8)]
    torch.stack(losses).mean().backward()
    layer = network.network[0]
    expected = (layer.weight - 0.1 * layer.weight.grad).detach()
    for rank, of_rank in enumerate(found):
        local, node = (0, rank) if nodes else (rank, 0)
        assert of_rank["ranks"] == (rank, local, node, 2)
        assert of_rank["backend"] == "hccl"
        torch.testing.assert_close(torch.tensor(of_rank["weight"]), expected)
    assert found[0]["loss"] != found[1]["loss"]


def by_mpi(names: Any, local: Any, rank: int, local_size: int, **others: str) -> dict[str, str]:
    numbers = (2, rank, local_size, rank % local_size)
    return dict(zip((*names, *local), map(str, numbers), strict=True)) | others


@pytest.mark.parametrize(
    "names", [(OPEN_MPI, LOCAL_OPEN_MPI), (HYDRA, LOCAL_HYDRA)], ids=["open_mpi", "hydra"]
)
def test_mpirun_without_mpi4py(tmp_path: Path, names: Any) -> None:
    port = str(free_port())
    given = [by_mpi(*names, rank, 2, MASTER_PORT=port, HLS_MODULE_ID="0") for rank in range(2)]
    found = values(run_ranks(tmp_path, about, variables=given))
    assert_one_step(found)
    assert [of_rank["environment"] for of_rank in found] == ["MPIVariablesEnvironment"] * 2
    assert [of_rank["card"] for of_rank in found] == ["0", "1"]


def test_mpirun_on_two_machines(tmp_path: Path) -> None:
    main = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    given = [
        by_mpi(OPEN_MPI, LOCAL_OPEN_MPI, rank, 1, HABANA_VISIBLE_MODULES=str(rank), **main)
        for rank in range(2)
    ]
    assert_one_step(values(run_ranks(tmp_path, about, 1, 2, variables=given)), nodes=True)


def test_mpirun_on_two_machines_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in by_mpi(OPEN_MPI, LOCAL_OPEN_MPI, 1, 1).items():
        monkeypatch.setenv(name, value)
    environment = MPIVariablesEnvironment()
    assert environment.main_port > 0
    with pytest.raises(ConfigurationError, match=r"several machines.*mpirun -x MASTER_ADDR=HOST"):
        _ = environment.main_address
    with pytest.raises(ConfigurationError, match=r"does not match the world size \(2\) of mpirun"):
        trainer(devices=1)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "one")
    with pytest.raises(ConfigurationError, match="OMPI_COMM_WORLD_RANK must be a whole number"):
        trainer(devices=1)
    monkeypatch.delenv("OMPI_COMM_WORLD_RANK")
    with pytest.raises(ConfigurationError, match="mpirun has started, but neither"):
        MPIVariablesEnvironment()
    assert not MPIVariablesEnvironment.detect()


def test_an_environment_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    for name, value in by_mpi(OPEN_MPI, LOCAL_OPEN_MPI, 0, 2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    own = LightningEnvironment()
    assert trainer(devices=2, plugins=[own]).strategy.cluster_environment is own
    assert trainer("cpu", devices=2, strategy="ddp").strategy.cluster_environment is not own
    chosen = trainer("cpu", devices=2, strategy="ddp").strategy.cluster_environment
    assert type(chosen) is LightningEnvironment, "not ours to decide"


def test_slurm(tmp_path: Path) -> None:
    given = [
        {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "train",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": "1",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
            "MASTER_PORT": port,
        }
        for port in [str(free_port())]
        for rank in range(2)
    ]
    found = values(run_ranks(tmp_path, about, variables=given))
    assert_one_step(found)
    assert [of_rank["environment"] for of_rank in found] == ["SLURMEnvironment"] * 2
    assert [of_rank["card"] for of_rank in found] == ["0", "1"]


def test_a_process_for_each_of_two_machines(tmp_path: Path) -> None:
    port = free_port()
    given = [
        by_lightning(0, 2, port, NODE_RANK=str(node), HABANA_VISIBLE_MODULES=str(3 + node))
        for node in range(2)
    ]
    found = values(run_ranks(tmp_path, about, 1, 2, variables=given))
    assert_one_step(found, nodes=True)
    assert [of_rank["card"] for of_rank in found] == ["3", "4"]


def test_visible_cards_are_taken_in_their_order(tmp_path: Path) -> None:
    port = free_port()
    given = [by_lightning(rank, 2, port, HABANA_VISIBLE_MODULES="6,2") for rank in range(2)]
    found = values(run_ranks(tmp_path, about, variables=given))
    assert [of_rank["card"] for of_rank in found] == ["6", "2"]


# --- real launchers -------------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    from distributed.test_launchers import about

    if __name__ == "__main__":
        found = about(*map(int, sys.argv[2:]))
        torch.save(found, f"{sys.argv[1]}/rank{found['ranks'][0]}.pt")
    """
)


def saved(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, _, err = finish(
        start_script(tmp_path, SCRIPT, str(tmp_path), launcher=torchrun, HLS_MODULE_ID="1")
    )
    assert code == 0, err
    found = saved(tmp_path)
    assert_one_step(found)
    assert [of_rank["environment"] for of_rank in found] == ["TorchElasticEnvironment"] * 2
    assert [of_rank["card"] for of_rank in found] == ["0", "1"]


@pytest.mark.slow
def test_torchrun_on_two_machines(tmp_path: Path) -> None:
    port = free_port()
    agents = []
    for node in range(2):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        script = (tmp_path, SCRIPT, str(tmp_path), "1", "2")
        agents.append(
            start_script(*script, launcher=torchrun, HABANA_VISIBLE_MODULES=str(node))  # type: ignore[arg-type]
        )
    for code, _, err in map(finish, agents):
        assert code == 0, err
    assert_one_step(saved(tmp_path), nodes=True)


@pytest.mark.slow
def test_torchrun_ends_all_where_one_cannot_start(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, _, err = finish(start_script(tmp_path, SCRIPT, str(tmp_path), "1", launcher=torchrun))
    assert code == 1
    assert "does not match the world size (2) of torchrun, with 2 on this machine" in err
    assert "Use devices=2 and num_nodes=1" in err


START_METHODS = textwrap.dedent(
    """
    import sys
    import torch
    from lightning_gaudi import GaudiStrategy
    from training import Classifier, features, mlp, trainer

    class Net(Classifier):
        def on_train_end(self):
            print("rank", self.global_rank, "of", self.trainer.world_size, flush=True)

    def fit(method, devices=2):
        net = Net(torch.manual_seed(0) and mlp(), None)
        run = trainer(strategy=GaudiStrategy(start_method=method), devices=devices, max_epochs=1)
        run.fit(net, features(rows=8))
        return net.network[0].weight.detach()

    if __name__ == "__main__":
        weights = {method: fit(method) for method in sys.argv[2:]}
        torch.save(weights, f"{sys.argv[1]}/weights.pt")
        fit("popen", 1)  # the device is open in this process now
        fit("fork")
    """
)


@pytest.mark.slow
def test_forked_and_spawned_processes(tmp_path: Path) -> None:
    methods = ["fork", "spawn"]
    code, out, err = finish(start_script(tmp_path, START_METHODS, str(tmp_path), *methods))
    assert sorted(out.split("rank ")) == ["", "0 of 1\n"] + ["0 of 2\n"] * 2 + ["1 of 2\n"] * 2
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(weights["fork"], weights["spawn"])
    before = (torch.manual_seed(0) and mlp())[0].weight
    assert (weights["fork"] - before).abs().max() > 1e-3, "the trained weights came back"
    assert code == 1
    assert "start_method='fork' cannot be used here: process " in err
    assert "has the HPU open from an earlier run" in err


def test_a_notebook_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    run = trainer(devices=2)
    assert run.strategy.launcher.is_interactive_compatible
    assert run.strategy._start_method == "fork"
    monkeypatch.delattr(sys, "ps1")
    assert trainer(devices=2).strategy._start_method == "popen"


NET = textwrap.dedent(
    """
    import os
    from pathlib import Path
    import torch
    import training

    class Net(training.Classifier):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__(training.mlp())

        def train_dataloader(self):
            return training.features(rows=8)

        def on_train_end(self):
            strategy = self.trainer.strategy
            text = f"{type(strategy).__name__} {strategy.mode} {self.trainer.world_size} "
            Path(f"rank{self.global_rank}").write_text(text + os.environ["HLS_MODULE_ID"])
    """
)
CONFIG = """
model: net.Net
trainer:
  devices: 2
  strategy: gaudi
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["console_script", "torchrun"])
def test_the_command_line_on_two_cards(tmp_path: Path, launcher: str) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [str(Path(sys.executable).with_name("lightning-gaudi"))]
    if launcher == "torchrun":
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, "-m", *torchrun, "-m", "lightning_gaudi.cli"]
    process = start_command(
        tmp_path, [*command, "fit", "--config", "config.yaml"], PT_HPU_LAZY_MODE=None
    )
    code, out, err = finish(process)
    assert code == 0, out + err
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == f"GaudiStrategy lazy 2 {rank}"


INTERRUPTED = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from training import Classifier, features, mlp, trainer

    class Slow(Classifier):
        def on_train_batch_end(self, *args):
            Path(sys.argv[1], f"step{self.global_rank}").touch()
            time.sleep(0.2)

    trainer(devices=2, max_epochs=1000).fit(Slow(mlp()), features())
    """
)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    process = start_script(tmp_path, INTERRUPTED, str(tmp_path))
    end = time.monotonic() + 100
    while not all((tmp_path / f"step{rank}").exists() for rank in range(2)):
        assert time.monotonic() < end, process.poll()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)  # to the first rank alone
    code, _, err = finish(process, 60)
    assert code == 1
    assert "Detected KeyboardInterrupt" in err


STARTS_ALONE = textwrap.dedent(
    """
    import os, sys
    from datetime import timedelta
    from lightning_gaudi import GaudiStrategy
    from training import Classifier, features, mlp, trainer

    if "LOCAL_RANK" not in os.environ:
        os.environ["MASTER_PORT"] = sys.argv[1]
    strategy = GaudiStrategy(timeout=timedelta(seconds=100))
    trainer(strategy=strategy, devices=2).fit(Classifier(mlp()), features())
    """
)


@pytest.mark.slow
def test_a_main_process_that_cannot_start_ends_the_others(tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        process = start_script(tmp_path, STARTS_ALONE, str(other.getsockname()[1]))
        started = time.monotonic()
        code, _, err = finish(process, 90)
    assert time.monotonic() - started < 80
    assert code == 1
    assert "another program has the port" in err
