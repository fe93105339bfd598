"""How values are scaled before they are rounded to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch


class Format(Enum):
    """The types of the forward and of the backward."""

    E5M2 = (torch.float8_e5m2, torch.float8_e5m2)
    HYBRID = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass
class DelayedScaling:
    """Scales of a step follow from the largest values of steps before it."""

    margin: int = 0
    interval: int = 1
    fp8_format: Format = Format.HYBRID
    amax_history_len: int = 1
    amax_compute_algo: str = "most_recent"
    reduce_amax: bool = True

    def __post_init__(self) -> None:
        assert self.amax_compute_algo in ("max", "most_recent"), "unknown amax_compute_algo"
