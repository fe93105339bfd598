"""``habana_frameworks.torch.core`` (htcore)."""

from habana_frameworks.torch import hpu

from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.mode import is_lazy


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """Close the pending graph in lazy mode; in eager mode there is none.

    Args:
        device_str: Ignored, as a process has one device.
        sync: Whether to wait for the host's part; it is always done here.
    """
    if is_lazy():
        events.emit("mark_step", "mark_step")
        accounting.flush("mark_step")


__all__ = ["hpu", "is_lazy", "mark_step"]
__getattr__ = name_missing("habana_frameworks.torch.core")
