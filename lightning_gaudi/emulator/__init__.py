"""The emulated HPU: runs for real on the CPU and counts what a Gaudi would compile.

`install` (or ``LIGHTNING_GAUDI_EMULATOR=1`` and ``import lightning_gaudi``) gives the process a
device ``"hpu"`` and the package ``habana_frameworks``. What it does differently from a card is
listed in ``README.md`` beside this file.
"""

from lightning_gaudi.emulator.errors import EmulatorError, GraphCaptureError
from lightning_gaudi.emulator.events import EVENT_KINDS, Event, record
from lightning_gaudi.emulator.installation import install, is_installed

__all__ = [
    "EVENT_KINDS",
    "EmulatorError",
    "Event",
    "GraphCaptureError",
    "install",
    "is_installed",
    "record",
]
