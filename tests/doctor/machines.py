"""Made-up machines for the tests of doctor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_gaudi.doctor.checks import check_all
from lightning_gaudi.doctor.findings import Finding
from lightning_gaudi.runtime.driver import Card, Driver
from lightning_gaudi.runtime.facts import Facts, Folder, Loading
from lightning_gaudi.runtime.installed import BRIDGE, Installed

VERSIONS = {
    BRIDGE: "1.21.0.555",
    "diffusers": "0.36.0",
    "lightning": "2.6.0",
    "torch": "2.6.0+hpu_1.21.0-555.git1234567",
    "transformers": "4.57.0",
}


def card(number: int, **changes: Any) -> Card:
    values = {
        "name": f"accel{number}",
        "pci_device": "0x1020",
        "status": "operational",
        "is_accessible": True,
    }
    return Card(**{**values, **changes})


def gaudi(
    *, versions: dict[str, str | None] | None = None, driver: Any = None, **changes: Any
) -> Facts:
    """A Gaudi machine on which all is well, with changes; a version of None is not installed."""
    found = {k: v for k, v in {**VERSIONS, **(versions or {})}.items() if v is not None}
    installed = Installed(
        python=changes.pop("python", "3.11.7"),
        executable="/usr/bin/python3",
        versions=found,
        torch_file="/site/torch",
        bridge_file="/site/habana_frameworks" if BRIDGE in found else None,
        backends=(),
    )
    whole = Driver(
        is_loaded=True,
        version="1.21.0-abcdef0",
        cards=tuple([card(number) for number in range(8)]),
        hl_smi="/usr/bin/hl-smi",
        hl_smi_error="",
    )
    facts = Facts(
        system="Linux",
        installed=installed,
        driver=replace(whole, **(driver or {})),
        variables={"PT_HPU_LAZY_MODE": "1"},
        paths={},
        loading=Loading(seconds=3.0, is_lazy=True, num_cards=8),
    )
    return replace(facts, **changes)


def laptop(**changes: Any) -> Facts:
    """A machine without a card that emulates one."""
    settings: dict[str, Any] = {
        "versions": {BRIDGE: None, "torch": "2.13.0"},
        "driver": {"is_loaded": False, "version": None, "cards": (), "hl_smi": None},
        "variables": {"LIGHTNING_GAUDI_EMULATOR": "1"},
        "loading": None,
    }
    return gaudi(**{**settings, **changes})


def lazy(**variables: str) -> dict[str, str]:
    """Variables beside lazy mode."""
    return {"PT_HPU_LAZY_MODE": "1", **variables}


def folder(path: str = "/x", **changes: bool) -> Folder:
    values = {"exists": True, "is_writable": True, "is_file": False}
    return Folder(path=path, **{**values, **changes})


def trouble(facts: Facts, mode: Any = "lazy") -> list[Finding]:
    """Warnings and faults."""
    return [f for f in check_all(facts, mode) if f.level in ("warning", "fault")]
