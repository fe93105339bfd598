"""The states of all random numbers of a process, in values that ``weights_only`` reads."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from lightning_gaudi.runtime import random as device_random

States = dict[str, Any]


def collect_host() -> States:
    """The states of Python's, NumPy's and PyTorch's generators on the host.

    Returns:
        Plain numbers and tensors, none of which aliases a generator.
    """
    version, internal, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    name, keys, place, has_gauss, cached = legacy
    return {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }


def collect() -> States:
    """The states of `collect_host`, and of the device's generator where the device is in use."""
    states = collect_host()
    device = device_random.get_state()
    return states if device is None else states | {"hpu": device.clone()}


def restore(states: States) -> None:
    """Put back what `collect` or `collect_host` gave; what is missing in it stays as it is."""
    if "python" in states:
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal.tolist()), gauss))
    if "numpy" in states:
        name, keys, place, has_gauss, cached = states["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    if "torch" in states:
        torch.set_rng_state(states["torch"].cpu())
    if "hpu" in states:
        device_random.set_state(states["hpu"].cpu())
