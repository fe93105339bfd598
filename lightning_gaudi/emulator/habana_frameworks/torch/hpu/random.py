"""``habana_frameworks.torch.hpu.random``."""

from lightning_gaudi.emulator.missing import name_missing
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

__all__ = [
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]
__getattr__ = name_missing("habana_frameworks.torch.hpu.random")
