"""What cannot work is said in seconds, in every process, with the remedy."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from distributed.jobs import by_lightning, free_port, run_ranks
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from training import Classifier, features, mlp, trainer

from lightning_gaudi import GaudiStrategy
from lightning_gaudi.errors import ConfigurationError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
}


def fit(timeout_s: float = 3, mode: Any = None, **settings: Any) -> None:
    import os

    if mode is not None:
        os.environ.pop("PT_HPU_LAZY_MODE")
        settings["mode"] = mode[int(os.environ["LOCAL_RANK"])]
    strategy = GaudiStrategy(timeout=timedelta(seconds=timeout_s), **settings)
    trainer(strategy=strategy, devices=2, max_epochs=1).fit(Classifier(mlp()), features())


def fit_on_one_card(timeout_s: float) -> None:
    """Another launcher might set the card of a process by itself, and wrongly."""
    from lightning_gaudi.runtime import environment

    environment.set_module_id = lambda value: setattr_environ(environment.MODULE_ID)
    fit(timeout_s)


def setattr_environ(name: str) -> None:
    import os

    os.environ[name] = "0"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"devices": 1}, r"devices=1 and num_nodes=1 ask for 1 processes, 1 a machine"),
        ({"devices": 2}, r"devices=2 and num_nodes=1 ask for 2 processes, 2 a machine"),
        ({"devices": 1, "num_nodes": 4}, r"devices=1 and num_nodes=4 ask for 4 .* 1 a machine"),
    ],
    ids=["one", "two", "nodes"],
)
def test_torchrun_with_another_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], found: str
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    remedy = (
        r" which does not match the world size \(4\) of torchrun, with 2 on this machine. Use "
        r"devices=2 and num_nodes=2, or start it with torchrun --nnodes="
    )
    with pytest.raises(ConfigurationError, match=found + "," + remedy):
        trainer(**settings)
    run = trainer(devices=2, num_nodes=2)
    assert isinstance(run.strategy.cluster_environment, TorchElasticEnvironment)
    assert run.world_size == 4


def test_slurm_with_another_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "SLURM_NTASKS": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_JOB_ID": "12",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    # Lightning's own words, which name the option.
    with pytest.raises(ValueError, match=r"`devices=1`.*`--ntasks-per-node=2` does not match"):
        trainer(devices=1, num_nodes=4)
    with pytest.raises(
        ConfigurationError, match=r"ask for 2 processes, .* SLURM_NTASKS=4. Use srun --nodes=1"
    ):
        trainer(devices=2)
    run = trainer(devices=2, num_nodes=2)
    assert isinstance(run.strategy.cluster_environment, SLURMEnvironment)
    assert (run.global_rank, run.local_rank, run.node_rank) == (3, 1, 1)


def test_more_devices_than_cards() -> None:
    with pytest.raises(ConfigurationError, match=r"devices=2 asks for 2 cards, but .* has 1"):
        trainer(devices=2)


def test_a_rank_without_a_card(tmp_path: Path) -> None:
    outcomes = run_ranks(
        tmp_path,
        fit,
        variables=[by_lightning(rank, 2, 4000, HABANA_VISIBLE_MODULES="4") for rank in range(2)],
    )
    for outcome in outcomes:
        assert "devices=2 asks for 2 cards, but this machine has 1" in outcome.error


def test_nobody_at_the_main_address(tmp_path: Path) -> None:
    port = free_port()
    (outcome,) = run_ranks(tmp_path, fit, 1, variables=[by_lightning(1, 2, port)])
    assert "ProcessGroupError: rank 1 of 2 on " in outcome.error
    assert f"could not reach rank 0 at 127.0.0.1:{port} within " in outcome.error
    assert f"MASTER_ADDR (now 127.0.0.1) and MASTER_PORT (now {port}) must name" in outcome.error
    assert "The strategy's timeout says how long to wait." in outcome.error
    assert "Exception raised from" not in outcome.error
    assert outcome.seconds < 30


def test_an_address_that_no_machine_has(tmp_path: Path) -> None:
    # RFC 5737 and RFC 6761: neither is ever given to a machine.
    addresses = ("192.0.2.1", "nowhere.invalid")
    variables = [by_lightning(1, 2, 4000, MASTER_ADDR=address) for address in addresses]
    outcomes = run_ranks(tmp_path, fit, 1, variables=variables)
    for address, outcome in zip(addresses, outcomes, strict=True):
        assert f"could not reach rank 0 at {address}:4000 within " in outcome.error
        assert outcome.seconds < 30


def test_the_others_do_not_come(tmp_path: Path) -> None:
    port = free_port()
    (outcome,) = run_ranks(tmp_path, fit, 1, variables=[by_lightning(0, 2, port)])
    assert f" s at 127.0.0.1:{port} for the others, and not all came" in outcome.error
    assert "Start a process for each of the 2 ranks (devices x num_nodes)" in outcome.error
    assert outcome.seconds < 30


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        (outcome,) = run_ranks(tmp_path, fit, variables=[by_lightning(0, 2, port)])
    assert f"rank 0 of 2 on {socket.gethostname()} cannot listen at 127.0.0.1" in outcome.error
    assert "another program has the port" in outcome.error
    assert "Set MASTER_PORT to a free port, the same in every process" in outcome.error
    assert outcome.seconds < 30


def test_ranks_in_different_modes(tmp_path: Path) -> None:
    for outcome in run_ranks(tmp_path, fit, 20, ("lazy", "eager")):
        assert "ProcessGroupError: the processes of a run must have the same mode" in outcome.error
        assert "rank 0 (on " in outcome.error
        assert "has 'lazy' and rank 1 (on " in outcome.error
        assert "has 'eager'. Start all of them with the same script" in outcome.error
        assert outcome.seconds < 15


def test_an_unknown_backend(tmp_path: Path) -> None:
    (outcome,) = run_ranks(
        tmp_path, fit_with_backend, "hcl", variables=[by_lightning(1, 2, free_port())]
    )
    assert "ConfigurationError: process_group_backend='hcl' is unknown" in outcome.error
    assert "HPUs talk through 'hccl'" in outcome.error
    assert outcome.seconds < 15


def fit_with_backend(backend: str) -> None:
    fit(process_group_backend=backend)


def test_two_ranks_with_one_card(tmp_path: Path) -> None:
    for outcome in run_ranks(tmp_path, fit_on_one_card, 20):
        assert "ranks 0 and 1 have the same card: HLS_MODULE_ID=0 in both" in outcome.error
        assert outcome.seconds < 15
