"""What ``torch.hpu`` and ``habana_frameworks.torch.hpu`` answer.

Names and results follow the SDK's (HABANA.md, "Names that an integration and its clients import").
The device computes at once, so `synchronize` only closes the pending graph, as it does on a card.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_gaudi.emulator import accounting, memory_module, switches
from lightning_gaudi.emulator.autocast import SUPPORTED_DTYPES
from lightning_gaudi.emulator.installation import device_count
from lightning_gaudi.emulator.memory_module import *  # noqa: F403 - it has an __all__
from lightning_gaudi.emulator.memory_module import check_device
from lightning_gaudi.emulator.rng import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from lightning_gaudi.emulator.streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    get_stream_info,
    record_stream,
    set_stream,
    stream,
)
from lightning_gaudi.emulator.switches import *  # noqa: F403 - it has an __all__
from lightning_gaudi.emulator.transfer import check_index

_initialized = True
"""What PyTorch's gradient checkpointing asks before it keeps the device's random state."""


def is_available() -> bool:
    """Whether there is an HPU."""
    return True


def is_initialized() -> bool:
    """Whether the device is ready; it always is."""
    return True


def init() -> None:
    """Nothing to initialise."""


def _lazy_init() -> None:
    """What PyTorch calls before the first use of a device."""


def current_device() -> int:
    """The index of the one device of this process."""
    return 0


def set_device(device: Any) -> None:
    """Choose the device; only index 0 exists.

    Raises:
        RuntimeError: Another index.
    """
    index = device if isinstance(device, int) else torch.device(device).index
    check_index(torch.device("hpu", index or 0))


def get_device_name(device: Any = None) -> str:
    """The name of the emulated card."""
    check_device(device)
    return "GAUDI2"


def get_arch_list() -> list[str]:
    """The names of the cards that the software is for: the present one's."""
    return [get_device_name()]


def get_gencode_flags() -> str:
    """Flags the software was compiled with: none, on any card."""
    return ""


def is_bf16_supported() -> bool:
    """Whether the card computes in bfloat16."""
    return True


def can_device_access_peer(device: Any, peer_device: Any) -> bool:
    """Whether one card of this machine can reach another.

    Raises:
        AssertionError: One of the two does not exist, or they are the same.
    """
    check_device(device)
    check_device(peer_device)
    if torch.device("hpu", device) == torch.device("hpu", peer_device):
        raise AssertionError("Both the ids are same.")
    return True


def synchronize(device: Any = None) -> None:
    """Wait for the device."""
    accounting.flush("synchronize")


def empty_cache() -> None:
    """Nothing is cached beyond what tensors hold."""


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Dtypes that ``torch.autocast("hpu")`` takes."""
    return list(SUPPORTED_DTYPES)


def is_autocast_hpu_enabled() -> bool:
    """Whether autocast is on for this device."""
    return torch.is_autocast_enabled("hpu")


def get_autocast_hpu_dtype() -> torch.dtype:
    """The dtype that autocast lowers to."""
    return torch.get_autocast_dtype("hpu")


def set_autocast_hpu_enabled(enabled: bool) -> None:
    """Switch autocast on or off for this device."""
    torch.set_autocast_enabled("hpu", enabled)


def set_autocast_hpu_dtype(dtype: torch.dtype) -> None:
    """Choose the dtype that autocast lowers to."""
    torch.set_autocast_dtype("hpu", dtype)


def _is_in_bad_fork() -> bool:
    return False


class device:
    """Context manager that chooses the device; only index 0 exists."""

    def __init__(self, device: Any) -> None:
        set_device(device)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        return None


class device_of(device):
    """Context manager that chooses the device of a tensor; one on the host changes nothing."""

    def __init__(self, obj: torch.Tensor) -> None:
        super().__init__(0)


__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "can_device_access_peer",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "device_of",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_arch_list",
    "get_autocast_hpu_dtype",
    "get_device_name",
    "get_gencode_flags",
    "get_rng_state",
    "get_rng_state_all",
    "get_stream_info",
    "init",
    "initial_seed",
    "is_autocast_hpu_enabled",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "record_stream",
    "seed",
    "seed_all",
    "set_autocast_hpu_dtype",
    "set_autocast_hpu_enabled",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "stream",
    "synchronize",
    *memory_module.__all__,
    *switches.__all__,
]
