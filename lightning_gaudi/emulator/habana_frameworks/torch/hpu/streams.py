"""``habana_frameworks.torch.hpu.streams``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.streams import (
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    get_stream_info,
    record_stream,
    set_stream,
    stream,
)

__all__ = [
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "get_stream_info",
    "record_stream",
    "set_stream",
    "stream",
]
__getattr__ = name_missing("habana_frameworks.torch.hpu.streams")
