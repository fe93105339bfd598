"""`HPUAccelerator`: devices, availability, statistics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import RunPython
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

from lightning_gaudi import GaudiStrategy, HPUAccelerator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import device as hpu

pytestmark = IGNORED_WARNINGS


@pytest.mark.parametrize("devices", [1, "1", " 1 ", -1, "-1", "auto"])
def test_devices(devices: Any) -> None:
    assert L.Trainer(accelerator="hpu", devices=devices, logger=False).num_devices == 1


@pytest.mark.parametrize(("devices", "number"), [(2, 2), ("3", 3), (-1, 4), ("-1", 4), ("auto", 4)])
def test_devices_of_four(monkeypatch: pytest.MonkeyPatch, devices: Any, number: int) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "4")
    assert HPUAccelerator.auto_device_count() == 4
    assert HPUAccelerator.parse_devices(devices) == number
    assert HPUAccelerator.get_parallel_devices(number) == [torch.device("hpu", 0)] * number


@pytest.mark.parametrize("devices", [-3, -2, "two", "-3", "1.0", "", [0], [], True, 1.5, None])
def test_devices_that_cannot_be(devices: Any) -> None:
    message = (
        "devices must be a number of cards (an int or a string of digits), -1 or 'auto', but it "
        f"is {devices!r}. Which cards a process may use is chosen by HABANA_VISIBLE_MODULES, not "
        "by a list of indices."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUAccelerator.parse_devices(devices)
    if devices != []:
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            L.Trainer(accelerator="hpu", devices=devices, logger=False)


@pytest.mark.parametrize("devices", [0, "0", []])
def test_no_devices(devices: Any) -> None:
    with pytest.raises(MisconfigurationException, match="value is not a valid input using hpu"):
        L.Trainer(accelerator="hpu", devices=devices, logger=False)


@pytest.mark.parametrize("devices", [2, "8"])
def test_more_devices_than_there_are(devices: Any) -> None:
    message = (
        f"devices={devices!r} asks for {devices} cards, but this machine has 1. The emulated HPU "
        "has as many as LIGHTNING_GAUDI_EMULATOR_DEVICES says."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        L.Trainer(accelerator="hpu", devices=devices, logger=False)


def test_it_is_only_for_the_hpu() -> None:
    message = (
        "accelerator='hpu' runs on hpu:0, but the strategy's device is cpu. Use strategy='gaudi', "
        "or leave the strategy out."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUAccelerator().setup_device(torch.device("cpu"))


def test_device_stats_monitor_logs_memory(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    run = trainer(
        logger=logger, callbacks=[DeviceStatsMonitor()], max_epochs=1, log_every_n_steps=1
    )
    run.fit(Classifier(mlp()), features())
    header = Path(logger.log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("InUse", "MaxInUse", "Limit", "NumAllocs"):
        assert f"DeviceStatsMonitor.on_train_batch_end/{name}" in header
    kept = torch.ones(1000, device="hpu")
    stats = HPUAccelerator().get_device_stats(torch.device("hpu"))
    assert kept.nbytes <= stats["InUse"] <= stats["MaxInUse"] <= stats["Limit"]


# --- counting cards without loading anything ----------------------------------------------------


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of our making: no emulator, and a folder in place of /sys/class/accel."""
    monkeypatch.setattr(hpu.loading, "is_emulated", lambda: False)
    monkeypatch.setattr(hpu, "_ACCEL_CLASS", tmp_path)
    return tmp_path


def add_card(sysfs: Path, number: int, vendor: str = "0x1da3\n") -> None:
    folder = sysfs / f"accel{number}" / "device"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor)


def test_cards_are_counted_in_sysfs(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hpu.count() == 0
    for number in range(3):
        add_card(sysfs, number)
    add_card(sysfs, 3, vendor="0x8086\n")  # another maker's accelerator
    (sysfs / "accel4" / "device").mkdir(parents=True)  # a card in reset
    (sysfs / "accel4" / "device" / "vendor").mkdir()
    assert hpu.count() == 3

    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,2")
    assert hpu.count() == 2
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,1,2,3,4,5,6,7")
    assert hpu.count() == 3
    for everything in ("all", ""):
        monkeypatch.setenv("HABANA_VISIBLE_MODULES", everything)
        assert hpu.count() == 3


def test_no_folder_at_all_is_no_card(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpu, "_ACCEL_CLASS", sysfs / "missing")
    assert hpu.count() == 0
    assert not hpu.is_available()


def test_more_devices_than_cards_of_a_real_machine(sysfs: Path) -> None:
    add_card(sysfs, 0)
    with pytest.raises(
        ConfigurationError,
        match=r"^devices=2 asks for 2 cards, but this machine has 1\.$",
    ):
        HPUAccelerator.parse_devices(2)


def test_software_without_a_card(sysfs: Path) -> None:
    message = (
        "no HPU: the Gaudi software is installed, but the driver shows no card under "
        f"{sysfs}. {hpu.loading.REMEDIES}"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        HPUAccelerator()


@pytest.mark.slow
def test_without_gaudi_and_emulator(run_python: RunPython) -> None:
    run_python(
        """
        import sys
        import lightning as L
        import lightning_gaudi
        from lightning_gaudi import GaudiStrategy, HPUAccelerator
        from lightning_gaudi.errors import GaudiNotAvailableError

        message = (
            "no HPU: the Gaudi software (habana_frameworks) is not installed in "
            f"{sys.executable}, and the emulated HPU was not asked for. On a Gaudi machine install "
            'the Gaudi software (docs.habana.ai, "Installation Guide"; check with hl-smi). On any '
            "other machine use the emulated HPU: export LIGHTNING_GAUDI_EMULATOR=1 before starting "
            "Python."
        )
        assert HPUAccelerator.is_available() is False
        assert HPUAccelerator.auto_device_count() == 0
        for settings in (
            dict(accelerator="hpu"),
            dict(accelerator="hpu", devices=2),
            dict(accelerator="hpu", strategy="gaudi"),
            dict(strategy="gaudi"),
            dict(strategy=GaudiStrategy()),
        ):
            try:
                L.Trainer(**settings)
            except GaudiNotAvailableError as error:
                assert str(error) == message, error
            else:
                raise AssertionError(settings)
        # Everything else is as without this package.
        trainer = L.Trainer(logger=False)
        assert type(trainer.strategy).__name__ == "SingleDeviceStrategy"
        assert trainer.accelerator.name() == "cpu"
        """,
        LIGHTNING_GAUDI_EMULATOR=None,
        PT_HPU_LAZY_MODE=None,
    )


def test_name() -> None:
    assert HPUAccelerator.name() == "hpu"
    assert L.Trainer(strategy=GaudiStrategy(), logger=False).accelerator.name() == "hpu"
