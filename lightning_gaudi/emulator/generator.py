"""``torch.Generator(device="hpu")``: a CPU generator, as the Gaudi software's is (see `rng`)."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gaudi.emulator.rng import HPUGenerator
from lightning_gaudi.emulator.transfer import check_index

_PlainGenerator = torch.Generator


class _GeneratorType(type):
    """Makes the class below answer for every generator."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        device = torch.device(device)
        if device.type != "hpu":
            return _PlainGenerator(device)
        check_index(device)
        return HPUGenerator()

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _PlainGenerator)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _PlainGenerator)


class Generator(metaclass=_GeneratorType):
    """What ``torch.Generator`` is while the emulated HPU is installed."""


def attach() -> None:
    """Put our class in place of ``torch.Generator``."""
    torch.Generator = Generator  # type: ignore[assignment, misc]
