"""How ``"hpu"`` reaches Fabric: every call ends on the HPU, in the right mode, or raises."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import RunPython
from lightning.fabric import Fabric
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY, CPUAccelerator
from lightning.fabric.connector import _Connector
from lightning.fabric.plugins import MixedPrecision, Precision
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import (
    STRATEGY_REGISTRY,
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.fabric.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)

from lightning_gaudi import GaudiStrategy, HPUAccelerator
from lightning_gaudi.cluster import MPIVariablesEnvironment
from lightning_gaudi.errors import ConfigurationError, ExecutionModeError
from lightning_gaudi.fabric import GaudiFabricStrategy, HPUFabricPrecision
from lightning_gaudi.fabric.registration import register

NEEDS_OURS = (
    "accelerator='hpu' needs GaudiFabricStrategy, which sets the execution mode and breaks the "
    "lazy graph, but the strategy is {}. Use strategy='gaudi', or leave the strategy out: one copy "
    "of the model on each card. In Fabric there is none that shards a model over HPUs. To run on "
    "the CPU, say accelerator='cpu'."
)
NEEDS_HPU = (
    "GaudiFabricStrategy needs accelerator='hpu', but the accelerator is CPUAccelerator. Use "
    "Fabric(accelerator='hpu', strategy='gaudi')."
)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(lambda: {"accelerator": "hpu"}, id="hpu alone"),
        pytest.param(lambda: {"accelerator": "hpu", "devices": 1}, id="hpu, one device"),
        pytest.param(lambda: {"accelerator": "hpu", "devices": "auto"}, id="hpu, auto devices"),
        pytest.param(
            lambda: {"accelerator": "hpu", "strategy": GaudiFabricStrategy()}, id="hpu and strategy"
        ),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "gaudi"}, id="hpu and gaudi"),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "GAUDI"}, id="hpu and GAUDI"),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "hpu_single"}, id="hpu_single"),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "hpu_parallel"}, id="hpu_parallel"),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "hpu_ddp"}, id="hpu_ddp"),
        pytest.param(lambda: {"accelerator": HPUAccelerator()}, id="instance"),
        pytest.param(
            lambda: {"accelerator": HPUAccelerator(), "strategy": "gaudi"}, id="instance and gaudi"
        ),
        pytest.param(dict, id="nothing"),
        pytest.param(lambda: {"accelerator": "auto"}, id="auto"),
        pytest.param(lambda: {"strategy": GaudiFabricStrategy()}, id="auto and strategy"),
        pytest.param(lambda: {"strategy": "gaudi"}, id="auto and gaudi"),
        pytest.param(
            lambda: {"strategy": GaudiFabricStrategy(accelerator=HPUAccelerator())},
            id="strategy with its accelerator",
        ),
    ],
)
def test_ends_on_the_hpu(settings: Callable[[], dict[str, Any]]) -> None:
    run = Fabric(**settings())
    assert type(run.strategy) is GaudiFabricStrategy
    assert run.strategy.mode == "lazy"
    assert type(run.accelerator) is HPUAccelerator
    assert type(run.strategy.precision) is HPUFabricPrecision
    assert run.strategy.precision.precision == "32-true"
    assert run.strategy.launcher is None
    assert run.world_size == 1
    assert run.device == torch.device("hpu", 0)
    seen = []
    model = run.setup(torch.nn.Linear(2, 2))  # without a launch, as with any other one device
    model.register_forward_pre_hook(lambda _, args: seen.append(str(args[0].device)))
    loader = run.setup_dataloaders(torch.utils.data.DataLoader(torch.ones(2, 2)))
    assert {str(model(batch).device) for batch in loader} == {"hpu:0"}
    assert seen == ["hpu:0", "hpu:0"]
    assert next(model.parameters()).device == run.device
    run.launch()  # may still be called
    assert not torch.distributed.is_initialized()


def test_the_cpu_stays_the_cpu() -> None:
    run = Fabric(accelerator="cpu", devices=1)
    assert type(run.strategy) is SingleDeviceStrategy
    assert type(run.accelerator) is CPUAccelerator
    assert type(run.strategy.precision) is Precision
    assert type(Fabric(accelerator="cpu", devices=2).strategy) is DDPStrategy
    mixed = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed").strategy.precision
    assert type(mixed) is MixedPrecision
    assert mixed.device == "cpu"
    named = Fabric(strategy=SingleDeviceStrategy("cpu"), devices=1)
    assert type(named.accelerator) is CPUAccelerator
    with pytest.raises(RuntimeError, match=r"you must call `\.launch\(\)`"):
        Fabric(accelerator="cpu", devices=2).setup(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("accelerator", ["hpu", "auto"])
@pytest.mark.parametrize(
    ("make_strategy", "name"),
    [
        pytest.param(lambda: "ddp", "ddp", id="ddp"),
        pytest.param(lambda: "dp", "dp", id="dp"),
        pytest.param(lambda: "fsdp", "fsdp", id="fsdp"),
        pytest.param(lambda: "fsdp_cpu_offload", "fsdp_cpu_offload", id="fsdp_cpu_offload"),
        pytest.param(DDPStrategy, "DDPStrategy", id="DDPStrategy"),
        pytest.param(FSDPStrategy, "FSDPStrategy", id="FSDPStrategy"),
        pytest.param(
            lambda: ModelParallelStrategy(lambda module, mesh: module),
            "ModelParallelStrategy",
            id="ModelParallelStrategy",
        ),
    ],
)
def test_other_strategies_are_refused(
    accelerator: str, make_strategy: Callable[[], Any], name: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(NEEDS_OURS.format(name))):
        Fabric(accelerator=accelerator, strategy=make_strategy())


def test_a_single_device_strategy_does_not_take_the_cpu_for_the_hpu() -> None:
    with pytest.raises(ConfigurationError, match="but the strategy is SingleDeviceStrategy"):
        Fabric(accelerator="hpu", strategy=SingleDeviceStrategy("cpu"))


def test_our_strategy_is_refused_off_the_hpu() -> None:
    for strategy in ("gaudi", GaudiFabricStrategy()):
        with pytest.raises(ConfigurationError, match=re.escape(NEEDS_HPU)):
            Fabric(accelerator="cpu", devices=1, strategy=strategy)


def test_the_trainers_strategy_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Fabric(accelerator="hpu", strategy=GaudiStrategy())
    assert str(caught.value) == (
        "GaudiStrategy is the Trainer's. Fabric has strategies of its own: use "
        "lightning_gaudi.fabric.GaudiFabricStrategy, which takes the same arguments as "
        "GaudiStrategy, or strategy='gaudi'."
    )


def test_modes_by_name() -> None:
    registered = {
        name: STRATEGY_REGISTRY[name]["init_params"]
        for name in ("gaudi", "gaudi_eager", "gaudi_compile")
    }
    assert registered == {
        "gaudi": {},
        "gaudi_eager": {"mode": "eager"},
        "gaudi_compile": {"mode": "compile"},
    }
    for name in ("gaudi_eager", "gaudi_compile"):
        with pytest.raises(ExecutionModeError, match="needs PT_HPU_LAZY_MODE=0, but the Gaudi"):
            Fabric(strategy=name)
    with pytest.raises(ConfigurationError, match="mode must be one of 'lazy', 'eager', 'compile'"):
        GaudiFabricStrategy("quick")  # type: ignore[arg-type]


def test_devices_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match=r"devices=2 asks for 2 cards, but .* has 1"):
        Fabric(accelerator="hpu", devices=2)
    with pytest.raises(ConfigurationError, match="not by a list of indices"):
        Fabric(accelerator="hpu", devices=[0])


def test_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    for devices in (2, "2", "auto", -1):
        run = Fabric(accelerator="hpu", devices=devices)
        strategy = run.strategy
        assert type(strategy) is GaudiFabricStrategy
        assert type(strategy.launcher) is _SubprocessScriptLauncher
        assert run.world_size == 2
        assert strategy.process_group_backend == "hccl"
        assert strategy.distributed_sampler_kwargs == {"num_replicas": 2, "rank": 0}
        assert strategy._determine_ddp_device_ids() is None
        with pytest.raises(RuntimeError, match=r"you must call `\.launch\(\)`"):
            run.setup(torch.nn.Linear(2, 2))
    spawned = GaudiFabricStrategy(start_method="spawn", bucket_cap_mb=3)
    assert type(Fabric(devices=2, strategy=spawned).strategy.launcher) is _MultiProcessingLauncher
    assert spawned._ddp_kwargs["bucket_cap_mb"] == 3


def test_several_nodes_of_one_card() -> None:
    strategy = GaudiFabricStrategy(cluster_environment=LightningEnvironment())
    run = Fabric(accelerator="hpu", strategy=strategy, num_nodes=2)
    assert run.world_size == 2
    assert not strategy.has_one_device
    assert type(strategy.launcher) is _SubprocessScriptLauncher


def test_environment_variables_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LT_ACCELERATOR": "hpu",
        "LT_STRATEGY": "gaudi",
        "LT_DEVICES": "1",
        "LT_PRECISION": "bf16-mixed",
    }.items():
        monkeypatch.setenv(name, value)
    run = Fabric()
    assert type(run.strategy) is GaudiFabricStrategy
    assert type(run.accelerator) is HPUAccelerator
    assert run.strategy.precision.precision == "bf16-mixed"


def test_mpirun_needs_no_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    variables = {"RANK": "1", "SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    run = Fabric(accelerator="hpu", devices=2)
    assert type(run.strategy.cluster_environment) is MPIVariablesEnvironment
    assert (run.global_rank, run.local_rank, run.world_size) == (1, 1, 2)
    own = Fabric(accelerator="hpu", devices=2, plugins=LightningEnvironment())
    assert type(own.strategy.cluster_environment) is LightningEnvironment
    on_cpu = Fabric(accelerator="cpu", devices=2).strategy
    assert type(on_cpu.cluster_environment) is LightningEnvironment


def test_a_failed_start_ends_the_processes_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    monkeypatch.setenv("HLS_MODULE_ID", "0")  # which it sets
    run = Fabric(devices=2, strategy=GaudiFabricStrategy(process_group_backend="none"))
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    run.strategy.launcher.procs.append(child)
    with pytest.raises(ConfigurationError, match="process_group_backend='none' is unknown"):
        run.strategy.setup_environment()
    assert child.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize("devices", [1, 2])
def test_more_processes_than_devices_do_not_train_each_for_itself(
    monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    for name, value in {
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "4",
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    expected = rf"devices={devices} .* not match the world size \(4\) of torchrun, .* Use devices=4"
    with pytest.raises(ConfigurationError, match=expected):
        Fabric(accelerator="hpu", devices=devices)


def test_registering_again_changes_nothing() -> None:
    before = [getattr(_Connector, name) for name in vars(_Connector)], dict(STRATEGY_REGISTRY)
    register()
    after = [getattr(_Connector, name) for name in vars(_Connector)], dict(STRATEGY_REGISTRY)
    assert before == after
    assert ACCELERATOR_REGISTRY["hpu"]["accelerator"] is HPUAccelerator
    assert ACCELERATOR_REGISTRY["cpu"]["accelerator"] is CPUAccelerator


def test_a_changed_fabric_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_Connector, "_lightning_gaudi_original")
    monkeypatch.delattr(_Connector, "_choose_strategy")
    with pytest.raises(RuntimeError, match=r"has no Fabric method _Connector\._choose_strategy"):
        register()


@pytest.mark.slow
def test_without_an_hpu_both_remedies_are_named(run_python: RunPython) -> None:
    code = """
        import torch
        from lightning.fabric import Fabric
        import lightning_gaudi
        from lightning_gaudi.errors import GaudiNotAvailableError

        for settings in ({"accelerator": "hpu"}, {"strategy": "gaudi"}):
            try:
                Fabric(**settings)
            except GaudiNotAvailableError as error:
                assert "install the Gaudi software" in str(error), error
                assert "export LIGHTNING_GAUDI_EMULATOR=1" in str(error), error
            else:
                raise AssertionError(f"{settings} went on")
        run = Fabric()
        assert run.device.type == "cpu", run.device
        print("done")
    """
    result = run_python(code, LIGHTNING_GAUDI_EMULATOR=None, PT_HPU_LAZY_MODE=None)
    assert result.stdout.endswith("done\n")
