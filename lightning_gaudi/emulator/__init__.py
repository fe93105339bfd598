"""The emulated HPU: runs for real on the CPU and counts what a Gaudi would compile.

`install` (or ``LIGHTNING_GAUDI_EMULATOR=1`` and ``import lightning_gaudi``) gives the process a
device ``"hpu"`` and the package ``habana_frameworks``. What it does differently from a card is
listed in ``README.md`` beside this file.
"""

from lightning_gaudi.emulator.compile_reasons import Reason, ShapeChange
from lightning_gaudi.emulator.errors import EmulatorError, GraphCaptureError
from lightning_gaudi.emulator.events import EVENT_KINDS, Event, event_counts, set_span
from lightning_gaudi.emulator.installation import device_count, install, is_installed
from lightning_gaudi.emulator.mode import is_fixed as is_mode_fixed
from lightning_gaudi.emulator.recording import num_cache_hits, record

__all__ = [
    "EVENT_KINDS",
    "EmulatorError",
    "Event",
    "GraphCaptureError",
    "Reason",
    "ShapeChange",
    "device_count",
    "event_counts",
    "install",
    "is_installed",
    "is_mode_fixed",
    "num_cache_hits",
    "record",
    "set_span",
]
