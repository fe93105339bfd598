"""``torch.autocast("hpu")``.

Autocast looks at a tensor's C++ device, which is the CPU's here. So while autocast is on for
``"hpu"`` it is on for ``"cpu"`` too, with the same dtype, and the CPU's own setting comes back
afterwards. Known difference: plain CPU ops inside such a block are autocast as well.
"""

from __future__ import annotations

from typing import Any

import torch

SUPPORTED_DTYPES = [torch.bfloat16, torch.float16]

_set_enabled = torch.set_autocast_enabled
_set_dtype = torch.set_autocast_dtype
_cpu_setting: tuple[bool, torch.dtype] | None = None
"""The CPU's own setting while ours covers it."""


def _set_autocast_enabled(*args: Any) -> None:
    global _cpu_setting
    _set_enabled(*args)
    if len(args) != 2 or args[0] != "hpu":
        return
    if args[1]:
        if _cpu_setting is None:
            _cpu_setting = (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        _set_enabled("cpu", True)
        _set_dtype("cpu", torch.get_autocast_dtype("hpu"))
    elif _cpu_setting is not None:
        enabled, dtype = _cpu_setting
        _cpu_setting = None
        _set_enabled("cpu", enabled)
        _set_dtype("cpu", dtype)


def _set_autocast_dtype(device_type: str, dtype: torch.dtype) -> None:
    _set_dtype(device_type, dtype)
    if device_type == "hpu" and _cpu_setting is not None:
        _set_dtype("cpu", dtype)


def attach() -> None:
    """Mirror the settings for ``"hpu"`` to ``"cpu"``."""
    torch.set_autocast_enabled = _set_autocast_enabled  # type: ignore[assignment]
    torch.set_autocast_dtype = _set_autocast_dtype
    _set_dtype("hpu", torch.bfloat16)
