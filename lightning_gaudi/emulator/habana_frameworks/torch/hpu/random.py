"""``habana_frameworks.torch.hpu.random``."""

from lightning_gaudi.emulator.device_module import (
    get_rng_state,
    manual_seed,
    manual_seed_all,
    set_rng_state,
)
from lightning_gaudi.emulator.missing import name_missing

__all__ = ["get_rng_state", "manual_seed", "manual_seed_all", "set_rng_state"]
__getattr__ = name_missing("habana_frameworks.torch.hpu.random")
