"""Tell that an error means that the device has run out of memory."""

from __future__ import annotations

import re

import torch

# What the bridge says: device_memory.cpp for tensors and for its attempt to move memory together
# (the module's name differs by release: DEVMEM, PT_DEVMEM, SYNHELPER), device.cpp for what a recipe
# needs beside its tensors. It raises them as plain RuntimeErrors.
_SIGNS = re.compile(
    r"Allocation failed for size\s*::\s*\d+"
    r"|workspace Allocation of size\s*::\s*\d+\s*failed"
    r"|No enough memory for defragment"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that it was raised from, says that the HPU has no memory left.

    Args:
        error: Any exception.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and _SIGNS.search(str(error)):
            return True
        error = error.__cause__
    return False
