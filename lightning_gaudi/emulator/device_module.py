"""What ``torch.hpu`` and ``habana_frameworks.torch.hpu`` answer.

Names and results follow the SDK's (HABANA.md, "Names that an integration and its clients import").
The device computes at once, so `synchronize` only closes the pending graph, as it does on a card.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_gaudi.emulator import accounting, memory
from lightning_gaudi.emulator.autocast import SUPPORTED_DTYPES
from lightning_gaudi.emulator.installation import device_count
from lightning_gaudi.emulator.memory import memory_stats
from lightning_gaudi.emulator.transfer import check_index


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
    return "GAUDI2"


def synchronize(device: Any = None) -> None:
    """Wait for the device."""
    accounting.flush("synchronize")


def empty_cache() -> None:
    """Nothing is cached beyond what tensors hold."""


def memory_allocated(device: Any = None) -> int:
    """Live bytes."""
    return memory_stats()["InUse"]


def max_memory_allocated(device: Any = None) -> int:
    """Peak bytes since the last `reset_peak_memory_stats`."""
    return memory_stats()["MaxInUse"]


def memory_reserved(device: Any = None) -> int:
    """Bytes of the card."""
    return memory_stats()["Limit"]


def max_memory_reserved(device: Any = None) -> int:
    """Bytes of the card."""
    return memory_stats()["Limit"]


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes."""
    stats = memory_stats()
    return stats["Limit"] - stats["InUse"], stats["Limit"]


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start measuring the peak anew."""
    memory.reset_peak()


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Start counting allocations anew."""
    memory.reset_accumulated()


def manual_seed(seed: int) -> None:
    """Seed the device's generator, which is the CPU's default one here."""
    torch.default_generator.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every device: one, as a process has one."""
    manual_seed(seed)


def get_rng_state(device: Any = "hpu") -> torch.Tensor:
    """The generator's state: a CPU tensor of bytes."""
    return torch.default_generator.get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "hpu") -> None:
    """Put a state back that `get_rng_state` gave."""
    torch.default_generator.set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """The state of every device's generator: one, as a process has one device."""
    return [get_rng_state()]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    """Put states back that `get_rng_state_all` gave."""
    for new_state in new_states:
        set_rng_state(new_state)


def seed() -> int:
    """Seed the generator from the system's entropy; returns the seed."""
    return torch.default_generator.seed()


def seed_all() -> int:
    """Seed every device's generator from the system's entropy; returns the seed."""
    return seed()


def initial_seed() -> int:
    """The seed that the generator was last given."""
    return torch.default_generator.initial_seed()


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Dtypes that ``torch.autocast("hpu")`` takes."""
    return list(SUPPORTED_DTYPES)


def is_autocast_hpu_enabled() -> bool:
    """Whether autocast is on for this device."""
    return torch.is_autocast_enabled("hpu")


def get_autocast_hpu_dtype() -> torch.dtype:
    """The dtype that autocast lowers to."""
    return torch.get_autocast_dtype("hpu")


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


__all__ = [
    "current_device",
    "device",
    "device_count",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_autocast_hpu_dtype",
    "get_device_name",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "is_autocast_hpu_enabled",
    "is_available",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "synchronize",
]
