"""How ``"hpu"`` reaches the Trainer: every call ends on the HPU, in the right mode, or raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from conftest import RunPython
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY as FABRIC_ACCELERATORS
from lightning.fabric.strategies import STRATEGY_REGISTRY as FABRIC_STRATEGIES
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import RandomSampler, SequentialSampler
from training import IGNORED_WARNINGS, Classifier, features, mlp

from lightning_gaudi import GaudiStrategy, HPUAccelerator, HPUPrecision
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fabric import GaudiFabricStrategy
from lightning_gaudi.registration import register

pytestmark = IGNORED_WARNINGS

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
NEEDS_OURS = (
    "accelerator='hpu' needs GaudiStrategy, which sets the execution mode and breaks the lazy "
    "graph, but the strategy is {}. Use strategy='gaudi', or leave the strategy out; to train on "
    "the CPU, say accelerator='cpu'."
)
NEEDS_HPU = (
    "GaudiStrategy needs accelerator='hpu', but the accelerator is CPUAccelerator. Use "
    "Trainer(accelerator='hpu', strategy=GaudiStrategy())."
)


class WhereAmI(Classifier):
    """Notes the device of its weights and its batch in a training step."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen = (str(next(self.parameters()).device), str(batch[0].device))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(lambda: {"accelerator": "hpu"}, id="hpu alone"),
        pytest.param(lambda: {"accelerator": "hpu", "devices": 1}, id="hpu, one device"),
        pytest.param(
            lambda: {"accelerator": "hpu", "strategy": GaudiStrategy()}, id="hpu and strategy"
        ),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "gaudi"}, id="hpu and gaudi"),
        pytest.param(lambda: {"accelerator": "hpu", "strategy": "GAUDI"}, id="hpu and GAUDI"),
        pytest.param(lambda: {"accelerator": HPUAccelerator()}, id="instance"),
        pytest.param(
            lambda: {"accelerator": HPUAccelerator(), "strategy": "gaudi"}, id="instance and gaudi"
        ),
        pytest.param(dict, id="nothing"),
        pytest.param(lambda: {"accelerator": "auto"}, id="auto"),
        pytest.param(lambda: {"strategy": GaudiStrategy()}, id="auto and strategy"),
        pytest.param(lambda: {"strategy": "gaudi"}, id="auto and gaudi"),
        pytest.param(
            lambda: {"strategy": GaudiStrategy(accelerator=HPUAccelerator())},
            id="strategy with its accelerator",
        ),
    ],
)
def test_ends_on_the_hpu(settings: Callable[[], dict[str, Any]]) -> None:
    trainer = L.Trainer(**settings(), fast_dev_run=1, **QUIET)
    assert type(trainer.strategy) is GaudiStrategy
    assert trainer.strategy.mode == "lazy"
    assert type(trainer.accelerator) is HPUAccelerator
    assert type(trainer.precision_plugin) is HPUPrecision
    assert trainer.precision_plugin.precision == "32-true"
    assert trainer.num_devices == 1
    assert trainer.world_size == 1
    assert not trainer._accelerator_connector.is_distributed
    assert trainer.strategy.launcher is None
    module = WhereAmI(mlp())
    trainer.fit(module, features())
    assert module.seen == ("hpu:0", "hpu:0")


def test_auto_with_another_strategy_does_not_end_on_the_cpu_unnoticed() -> None:
    for strategy in ("ddp", DDPStrategy()):
        with pytest.raises(ConfigurationError, match=re.escape(NEEDS_OURS.format("DDPStrategy"))):
            L.Trainer(strategy=strategy, **QUIET)
    named = L.Trainer(strategy=SingleDeviceStrategy("cpu"), devices=1, **QUIET)
    assert type(named.accelerator) is CPUAccelerator


def test_a_strategy_with_its_own_accelerator_takes_no_second_one() -> None:
    with pytest.raises(MisconfigurationException, match="accelerator set through both"):
        L.Trainer(accelerator="hpu", strategy=GaudiStrategy(accelerator=HPUAccelerator()))


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("ddp", "DDPStrategy"),
        (DDPStrategy(), "DDPStrategy"),
        (SingleDeviceStrategy("cpu"), "SingleDeviceStrategy"),
        (SingleDeviceStrategy("hpu"), "SingleDeviceStrategy"),
    ],
    ids=["ddp", "DDPStrategy", "single device cpu", "single device hpu"],
)
def test_another_strategy_on_the_hpu_raises(strategy: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(NEEDS_OURS.format(name))}$"):
        L.Trainer(accelerator="hpu", strategy=strategy)
    with pytest.raises(ConfigurationError, match=f"^{re.escape(NEEDS_OURS.format(name))}$"):
        L.Trainer(accelerator=HPUAccelerator(), strategy=strategy)


@pytest.mark.parametrize("accelerator", ["cpu", CPUAccelerator()], ids=["name", "instance"])
@pytest.mark.parametrize("strategy", ["gaudi", None], ids=["name", "instance"])
def test_our_strategy_on_another_accelerator_raises(accelerator: Any, strategy: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(NEEDS_HPU)}$"):
        L.Trainer(accelerator=accelerator, strategy=strategy or GaudiStrategy(), devices=1)


def test_more_devices_than_cards_raise() -> None:
    message = (
        "devices=2 asks for 2 cards, but this machine has 1. The emulated HPU has as many as "
        "LIGHTNING_GAUDI_EMULATOR_DEVICES says."
    )
    for strategy in ("auto", "gaudi", GaudiStrategy()):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            L.Trainer(accelerator="hpu", devices=2, strategy=strategy)


def test_a_subclass_keeps_the_name_hpu() -> None:
    class Mine(GaudiStrategy):
        pass

    trainer = L.Trainer(accelerator="auto", strategy=Mine())
    assert type(trainer.strategy) is Mine
    assert type(trainer.accelerator) is HPUAccelerator


# --- stock Lightning stays as it was ------------------------------------------------------------


def test_the_cpu_stays_stock() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=1, fast_dev_run=1, **QUIET)
    assert type(trainer.strategy) is SingleDeviceStrategy
    assert type(trainer.accelerator) is CPUAccelerator
    assert type(trainer.precision_plugin) is Precision
    module = WhereAmI(mlp())
    trainer.fit(module, features())
    assert module.seen == ("cpu", "cpu")

    several = L.Trainer(accelerator="cpu", devices=2, **QUIET)
    assert type(several.strategy) is DDPStrategy
    assert several._accelerator_connector.is_distributed
    mixed = L.Trainer(accelerator="cpu", precision="bf16-mixed", **QUIET)
    assert type(mixed.precision_plugin).__name__ == "MixedPrecision"
    assert mixed.precision_plugin.device == "cpu"


def test_auto_without_a_card_is_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HPUAccelerator, "is_available", staticmethod(lambda: False))
    trainer = L.Trainer(devices=1, **QUIET)
    assert type(trainer.strategy) is SingleDeviceStrategy
    assert type(trainer.accelerator) is CPUAccelerator


@pytest.mark.parametrize("shuffle", [False, True])
def test_one_device_leaves_the_sampler_alone(shuffle: bool) -> None:
    data = torch.utils.data.DataLoader(features().dataset, batch_size=4, shuffle=shuffle)
    trainer = L.Trainer(accelerator="hpu", max_steps=1, **QUIET)
    trainer.fit(Classifier(mlp()), data)
    assert trainer.train_dataloader is data
    assert type(trainer.train_dataloader.sampler) is (
        RandomSampler if shuffle else SequentialSampler
    )


def test_registering_again_changes_nothing() -> None:
    names = (
        "_choose_strategy",
        "_choose_auto_accelerator",
        "_check_and_init_precision",
        "is_distributed",
    )
    before = [getattr(_AcceleratorConnector, name) for name in names]
    strategies = StrategyRegistry.available_strategies()
    accelerators = AcceleratorRegistry.available_accelerators()
    register()
    assert [getattr(_AcceleratorConnector, name) for name in names] == before
    assert StrategyRegistry.available_strategies() == strategies
    assert AcceleratorRegistry.available_accelerators() == accelerators


def test_registries() -> None:
    ours = {"gaudi", "gaudi_eager", "gaudi_compile"}
    assert ours <= set(StrategyRegistry.available_strategies())
    assert {
        name for name, entry in StrategyRegistry.items() if entry["strategy"] is GaudiStrategy
    } == ours
    assert StrategyRegistry["ddp"]["strategy"] is DDPStrategy
    assert AcceleratorRegistry["hpu"]["accelerator"] is HPUAccelerator
    assert AcceleratorRegistry["cpu"]["accelerator"] is CPUAccelerator
    # Fabric has registries of its own, with strategies of another class tree.
    assert FABRIC_ACCELERATORS["hpu"]["accelerator"] is HPUAccelerator
    assert {FABRIC_STRATEGIES[name]["strategy"] for name in ours} == {GaudiFabricStrategy}


@pytest.mark.slow
def test_only_our_entries_are_added_and_a_changed_connector_is_reported(
    run_python: RunPython,
) -> None:
    run_python("""
        import lightning as L
        from lightning.pytorch.accelerators import AcceleratorRegistry
        from lightning.pytorch.strategies import StrategyRegistry
        from lightning.pytorch.trainer.connectors.accelerator_connector import (
            _AcceleratorConnector as Connector,
        )

        strategies, accelerators = dict(StrategyRegistry), dict(AcceleratorRegistry)
        whole = Connector._choose_auto_accelerator
        del Connector._choose_auto_accelerator
        try:
            import lightning_gaudi
        except RuntimeError as error:
            assert str(error) == (
                f"lightning {L.__version__} has no _AcceleratorConnector._choose_auto_accelerator, "
                "which lightning_gaudi must wrap to make accelerator='hpu' work. Use a lightning "
                "release that lightning_gaudi supports (see its README), and please report this "
                "one."
            ), error
        else:
            raise AssertionError("no error")

        Connector._choose_auto_accelerator = staticmethod(whole)
        import lightning_gaudi
        from lightning_gaudi.moving_over import STRATEGIES

        ours = {"gaudi", "gaudi_eager", "gaudi_compile", "gaudi_fsdp", *STRATEGIES}
        assert StrategyRegistry.keys() - strategies.keys() == ours
        assert AcceleratorRegistry.keys() - accelerators.keys() == {"hpu"}
        assert {name: StrategyRegistry[name] for name in strategies} == strategies
        assert {name: AcceleratorRegistry[name] for name in accelerators} == accelerators
    """)


@pytest.mark.slow
def test_eager_mode_by_name(run_python: RunPython) -> None:
    run_python(
        """
        import lightning as L
        import lightning_gaudi
        from lightning_gaudi.runtime import loading

        trainer = L.Trainer(accelerator="hpu", strategy="gaudi_eager", logger=False)
        assert type(trainer.strategy) is lightning_gaudi.GaudiStrategy
        assert trainer.strategy.mode == "eager"
        assert not loading.is_loaded()
        loading.load("eager")
        assert not loading.is_lazy()
        assert L.Trainer(strategy="gaudi_compile", logger=False).strategy.mode == "compile"
        try:
            L.Trainer(accelerator="hpu", logger=False)
        except lightning_gaudi.errors.ExecutionModeError as error:
            assert "the Gaudi software is loaded already, in eager mode" in str(error), error
        else:
            raise AssertionError("no error")
        """,
        PT_HPU_LAZY_MODE=None,
    )
