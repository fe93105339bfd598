"""The kernel driver and the cards, as sysfs shows them. Loads nothing, and imports no torch.

Files are those of Linux, ``Documentation/ABI/testing/sysfs-driver-habanalabs``, and of any kernel
module (``/sys/module/<name>/version``). ``hl-smi`` is asked only where it is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ACCEL_CLASS = Path("/sys/class/accel")
MODULE = Path("/sys/module/habanalabs")
DEVICE_NODES = Path("/dev/accel")
PCI_VENDOR = "0x1da3"

_HL_SMI_LIMIT_S = 20


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card.

    Attributes:
        name: Its entry in sysfs, such as ``"accel0"``.
        pci_device: Its PCI device id, such as ``"0x1020"``; empty where sysfs does not say.
        status: What the driver says of it, such as ``"operational"``; empty where it does not.
        is_accessible: Whether this user may open its device node.
    """

    name: str
    pci_device: str
    status: str
    is_accessible: bool


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The driver.

    Attributes:
        is_loaded: Whether the kernel module ``habanalabs`` is there.
        version: The module's version, such as ``"1.21.0-ca59b5a"``; None where it does not say.
        cards: The cards, in the order of their names.
        hl_smi: Where ``hl-smi`` is; None where it is not installed.
        hl_smi_error: Why ``hl-smi`` failed; empty where it did not, or was not there.
    """

    is_loaded: bool
    version: str | None
    cards: tuple[Card, ...]
    hl_smi: str | None
    hl_smi_error: str


def card_entries(accel_class: Path) -> list[Path]:
    """The entries of Habana's cards under ``/sys/class/accel``, those in reset left out."""
    found = []
    for vendor in sorted(accel_class.glob("accel[0-9]*/device/vendor")):
        try:
            if vendor.read_text().strip() == PCI_VENDOR:
                found.append(vendor.parent.parent)
        except OSError:  # a card in reset has no readable entry: it is not usable now
            continue
    return found


def read_driver(
    accel_class: Path = ACCEL_CLASS, module: Path = MODULE, nodes: Path = DEVICE_NODES
) -> Driver:
    """What the driver shows.

    Args:
        accel_class: The folder of accelerators.
        module: The kernel module's folder.
        nodes: The folder of device nodes.
    """
    hl_smi = shutil.which("hl-smi")
    return Driver(
        is_loaded=module.is_dir(),
        version=_text(module / "version"),
        cards=tuple([_card(entry, nodes) for entry in card_entries(accel_class)]),
        hl_smi=hl_smi,
        hl_smi_error="" if hl_smi is None else _error_of(hl_smi),
    )


def _card(entry: Path, nodes: Path) -> Card:
    node = nodes / entry.name
    return Card(
        name=entry.name,
        pci_device=_text(entry / "device" / "device") or "",
        status=_text(entry / "device" / "status") or "",
        is_accessible=os.access(node, os.R_OK | os.W_OK),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _error_of(hl_smi: str) -> str:
    try:
        result = subprocess.run(
            [hl_smi, "-L"], capture_output=True, text=True, timeout=_HL_SMI_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_HL_SMI_LIMIT_S} s"
    except OSError as error:
        return str(error)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        return lines[-1] if lines else f"exit code {result.returncode}"
    return ""
