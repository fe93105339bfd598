"""Driver and cards from made-up folders, hl-smi from a made-up program."""

from __future__ import annotations

import os

import pytest

from lightning_gaudi.runtime import driver


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Folders for two cards, another maker's, and the module."""
    accel, module, nodes = (tmp_path / name for name in ("accel", "module", "dev"))
    for number, vendor in enumerate(("0x1da3", "0x8086", "0x1da3")):
        device = accel / f"accel{number}" / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "device").write_text("0x1020\n")
    (accel / "accel0" / "device" / "status").write_text("operational\n")
    module.mkdir()
    (module / "version").write_text("1.21.0-abc\n")
    nodes.mkdir()
    (nodes / "accel0").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return accel, module, nodes


def test_cards_and_version(machine):
    found = driver.read_driver(*machine)
    assert (found.is_loaded, found.version) == (True, "1.21.0-abc")
    assert found.cards == (
        driver.Card(name="accel0", pci_device="0x1020", status="operational", is_accessible=True),
        driver.Card(name="accel2", pci_device="0x1020", status="", is_accessible=False),
    )
    assert (found.hl_smi, found.hl_smi_error) == (None, "")


def test_a_machine_without_any_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    nothing = tmp_path / "nothing"
    assert driver.read_driver(nothing, nothing, nothing) == driver.Driver(
        is_loaded=False, version=None, cards=(), hl_smi=None, hl_smi_error=""
    )


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 0", ""),
        ("echo first >&2; echo no devices >&2; exit 3", "no devices"),
        ("exit 4", "exit code 4"),
        ("exec sleep 30", "no answer within 0.3 s"),
    ],
)
def test_hl_smi(machine, monkeypatch, tmp_path, script, error):
    monkeypatch.setattr(driver, "_HL_SMI_LIMIT_S", 20 if "sleep" not in script else 0.3)
    program = tmp_path / "bin" / "hl-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    os.chmod(program, 0o755)
    found = driver.read_driver(*machine)
    assert (found.hl_smi, found.hl_smi_error) == (str(program), error)
