"""Names, arguments and registry names of lightning-habana."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

import lightning_gaudi
from lightning_gaudi import (
    GaudiStrategy,
    HPUAccelerator,
    HPUCheckpointIO,
    HPUPrecision,
    moving_over,
)
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.moving_over import hints as hints_module

pytestmark = IGNORED_WARNINGS

DDP_NAMES = ["HPUParallelStrategy", "HPUDDPStrategy"]


@pytest.fixture(autouse=True)
def _nothing_hinted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "_hinted", set())


def hints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "habana" in record.getMessage()]


def alias(name: str) -> Any:
    return getattr(lightning_gaudi, name)


def losses(accelerator: str, **settings: Any) -> list[float]:
    torch.manual_seed(0)
    module = Classifier(mlp())
    trainer(accelerator, max_epochs=1, **settings).fit(module, features())
    return module.losses


# --- names --------------------------------------------------------------------------------------


def test_the_names_are_there_and_only_they() -> None:
    from lightning_gaudi import HPUDDPStrategy

    assert HPUDDPStrategy is moving_over.HPUDDPStrategy
    for name in moving_over.NAMES:
        assert getattr(lightning_gaudi, name) is getattr(moving_over, name)
    assert not moving_over.NAMES.keys() & set(lightning_gaudi.__all__)
    with pytest.raises(AttributeError, match="module 'lightning_gaudi' has no attribute 'HPUNone'"):
        alias("HPUNone")
    with pytest.raises(ImportError, match="cannot import name 'hint' from 'lightning_gaudi'"):
        from lightning_gaudi import hint  # type: ignore[attr-defined] # noqa: F401


def test_each_class_has_its_name_and_each_strategy_its_registry_name() -> None:
    for name, found in moving_over.NAMES.items():
        assert found.__name__ == name
        assert found.__module__.startswith("lightning_gaudi.moving_over.")
    for name, strategy in moving_over.STRATEGIES.items():
        assert strategy.strategy_name == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "SingleHPUStrategy",
            'SingleHPUStrategy ("hpu_single") is lightning-habana\'s name and goes on working. '
            'Here it is GaudiStrategy ("gaudi").',
        ),
        (
            "HPUParallelStrategy",
            'HPUParallelStrategy ("hpu_parallel") is lightning-habana\'s name and goes on working. '
            'Here it is GaudiStrategy ("gaudi").',
        ),
        (
            "HPUDDPStrategy",
            'HPUDDPStrategy ("hpu_ddp") is lightning-habana\'s name and goes on working. '
            'Here it is GaudiStrategy ("gaudi").',
        ),
        (
            "HPUPrecisionPlugin",
            "HPUPrecisionPlugin is lightning-habana's name and goes on working. "
            "Here it is HPUPrecision.",
        ),
        (
            "HPUFSDPPrecision",
            "HPUFSDPPrecision is lightning-habana's name and goes on working. "
            "Here it is HPUPrecision.",
        ),
    ],
)
def test_the_first_use_hints_once(caplog: pytest.LogCaptureFixture, name: str, text: str) -> None:
    caplog.set_level(logging.INFO)
    alias(name)
    assert hints(caplog) == []
    alias(name)()
    alias(name)()
    assert hints(caplog) == [text]


def test_only_the_first_rank_hints(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    alias("SingleHPUStrategy")()
    assert hints(caplog) == []


def test_our_own_names_hint_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer(strategy="gaudi")
    GaudiStrategy()
    HPUPrecision("bf16-mixed")
    assert hints(caplog) == []


# --- strategies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("hpu_single", "SingleHPUStrategy"),
        ("hpu_parallel", "HPUParallelStrategy"),
        ("hpu_ddp", "HPUDDPStrategy"),
        ("HPU_DDP", "HPUDDPStrategy"),
    ],
)
@pytest.mark.parametrize("accelerator", ["hpu", "auto"])
def test_registry_names_train_as_on_the_cpu(
    caplog: pytest.LogCaptureFixture, name: str, cls: str, accelerator: str
) -> None:
    caplog.set_level(logging.INFO)
    run = trainer(accelerator, strategy=name)
    assert type(run.strategy) is alias(cls)
    assert type(run.accelerator) is HPUAccelerator
    assert isinstance(run.strategy, GaudiStrategy)
    assert run.strategy.mode == "lazy"
    assert run.strategy.strategy_name == name.lower()
    assert not run._accelerator_connector.is_distributed
    assert [text.split()[0] for text in hints(caplog)] == [cls]
    assert losses(accelerator, strategy=name) == pytest.approx(losses("cpu"), abs=1e-5)


@pytest.mark.parametrize("name", ["hpu_single", "hpu_parallel", "hpu_ddp"])
def test_a_name_chooses_the_hpu_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(HPUAccelerator, "is_available", staticmethod(lambda: False))
    with pytest.raises(MisconfigurationException, match="`HPUAccelerator` can not run on your"):
        trainer("auto", strategy=name)


def test_registry() -> None:
    assert {
        name: entry["strategy"]
        for name, entry in StrategyRegistry.items()
        if entry["description"] == "Name from lightning-habana"
    } == moving_over.STRATEGIES


def test_arguments_of_the_single_strategy(tmp_path: Any) -> None:
    io, precision = HPUCheckpointIO(), HPUPrecision("bf16-mixed")
    strategy = alias("SingleHPUStrategy")("hpu", HPUAccelerator(), io, precision)
    assert strategy.checkpoint_io is io
    run = trainer("auto", strategy=strategy, max_epochs=1)
    assert run.precision_plugin is precision
    run.fit(Classifier(mlp()), features())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").exists()
    assert alias("SingleHPUStrategy")(device=torch.device("hpu")).mode == "lazy"
    marks = alias("SingleHPUStrategy")(mark_step_after_backward=False)
    assert not marks.step_boundary._after_backward


@pytest.mark.parametrize("device", ["cpu", "hpu:1", torch.device("cpu")], ids=str)
def test_the_single_strategy_has_one_device(device: Any) -> None:
    message = (
        f"SingleHPUStrategy runs on device 'hpu', but device is '{device}'. Choose the card with "
        "HABANA_VISIBLE_MODULES; to train on the CPU, say accelerator='cpu'."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        alias("SingleHPUStrategy")(device=device)


def test_the_single_strategy_leaves_no_card_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    message = (
        'SingleHPUStrategy ("hpu_single") runs on one card, but devices=2 and num_nodes=1. Use '
        'devices=1, or strategy="gaudi" to train on all of them.'
    )
    for strategy in ("hpu_single", alias("SingleHPUStrategy")()):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            trainer(strategy=strategy, devices=2)
    with pytest.raises(ConfigurationError, match="devices=2 and num_nodes=1"):
        trainer(strategy="hpu_single", devices="auto")
    several = trainer(strategy="hpu_ddp", devices=2)
    assert several.world_size == 2
    assert several._accelerator_connector.is_distributed


@pytest.mark.parametrize("name", DDP_NAMES)
def test_arguments_of_the_parallel_strategies(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    io, precision = HPUCheckpointIO(), HPUPrecision("bf16-mixed")
    devices = [torch.device("hpu")] * 2
    strategy = alias(name)(
        HPUAccelerator(), devices, None, io, precision, bucket_cap_mb=25, start_method="spawn"
    )
    assert strategy.mode == "lazy"
    assert strategy.checkpoint_io is io
    assert strategy._get_process_group_backend() == "hccl"
    assert strategy._ddp_kwargs["bucket_cap_mb"] == 25
    assert strategy._ddp_kwargs["gradient_as_bucket_view"] is True
    run = trainer("auto", strategy=strategy, devices=2)
    assert run.world_size == 2
    assert run.strategy.parallel_devices == devices
    assert run.precision_plugin is precision

    hook = alias(name)(ddp_comm_state="state", ddp_comm_hook=max, ddp_comm_wrapper=min)
    assert (hook._ddp_comm_state, hook._ddp_comm_hook, hook._ddp_comm_wrapper) == (
        "state",
        max,
        min,
    )
    assert alias(name)(model_averaging_period=4)._model_averaging_period == 4
    assert alias(name)(process_group_backend="gloo")._get_process_group_backend() == "gloo"


def test_strategies_can_be_subclassed() -> None:
    class Mine(moving_over.HPUDDPStrategy):
        pass

    assert type(trainer(strategy=Mine()).strategy) is Mine


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("32", "32-true"),
        ("32-true", "32-true"),
        ("bf16", "bf16-mixed"),
        ("bf16-mixed", "bf16-mixed"),
        ("16-mixed", "16-mixed"),
    ],
)
@pytest.mark.parametrize("name", ["HPUPrecisionPlugin", "HPUFSDPPrecision"])
def test_precisions(name: str, given: str, expected: str) -> None:
    plugin = alias(name)(given, "hpu")
    assert plugin.precision == expected
    assert trainer(plugins=[plugin]).precision_plugin is plugin
    assert losses("hpu", plugins=[alias(name)(precision=given)]) == losses(
        "hpu",
        plugins=[HPUPrecision(expected)],  # type: ignore[arg-type]
    )


def test_bad_arguments_of_the_precision() -> None:
    plugin = alias("HPUPrecisionPlugin")
    with pytest.raises(
        ConfigurationError,
        match=r"^HPUPrecisionPlugin is for device 'hpu', but device is 'cuda'\. Leave it out\.$",
    ):
        plugin("bf16-mixed", "cuda")
    with pytest.raises(ConfigurationError, match="on the HPU, but it is '64'"):
        plugin("64")
    with pytest.raises(ConfigurationError, match="recipe is for precision 'fp8'"):
        plugin("bf16-mixed", recipe={})
    message = (
        "convert_modules is for precision='fp8', but the precision is 'bf16-mixed'. Leave the call "
        "out: the strategy converts the module."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        plugin("bf16-mixed").convert_modules(mlp())


# --- what there is no equal of ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "remedy"),
    [
        ("HPUDeepSpeedStrategy", {"stage": 3}, 'use strategy="gaudi_fsdp"; where they fit'),
        ("HPUDeepSpeedPrecisionPlugin", {"precision": "bf16-mixed"}, "Use HPUPrecision with the"),
        ("HPUDataModule", {"train_dir": "imagenet"}, "DataLoader over torchvision's ImageFolder"),
    ],
)
def test_what_there_is_no_equal_of(name: str, arguments: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(remedy)) as raised:
        alias(name)(**arguments)
    assert "lightning-habana" in str(raised.value)


def test_deepspeed_by_its_registry_name() -> None:
    for accelerator in ("hpu", "auto"):
        with pytest.raises(ConfigurationError, match=r'\("hpu_deepspeed"\) of lightning-habana'):
            L.Trainer(accelerator=accelerator, strategy="hpu_deepspeed", logger=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_yaml_takes_the_names(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    config = tmp_path / "config.yaml"
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def strategy_of(text: str, plugins: str = "[]") -> Any:
        config.write_text(
            f"trainer: {{accelerator: hpu, devices: 1, logger: false, strategy: {text}, "
            f"plugins: {plugins}}}"
        )
        cli = LightningCLI(
            Tiny,
            run=False,
            args=["--config", str(config)],
            save_config_callback=None,
            seed_everything_default=False,
        )
        return cli.trainer

    assert type(strategy_of("hpu_single").strategy) is moving_over.SingleHPUStrategy
    run = strategy_of(
        "{class_path: lightning_gaudi.HPUDDPStrategy, init_args: {process_group_backend: hccl}}",
        "[{class_path: lightning_gaudi.HPUPrecisionPlugin, init_args: {precision: bf16-mixed}}]",
    )
    assert type(run.strategy) is moving_over.HPUDDPStrategy
    assert type(run.precision_plugin) is moving_over.HPUPrecisionPlugin
    assert run.precision_plugin.precision == "bf16-mixed"


class Tiny(L.LightningModule):
    """For LightningCLI."""
