"""`HPUAccelerator`: tells Lightning about the HPUs of this machine."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.types import _DEVICE
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import Strategy
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.step_boundary import StepBoundary


class HPUAccelerator(Accelerator):
    """Intel Gaudi, by the registry name ``"hpu"``.

    Use it by name, ``Trainer(accelerator="hpu")``, or as an instance; either way the strategy is
    `GaudiStrategy`, and in Fabric ``GaudiFabricStrategy``. Nothing here loads the Gaudi software,
    which would fix the execution mode: that is the strategy's to do.

    Raises:
        GaudiNotAvailableError: There is no Gaudi software or no card, and the emulated HPU was not
            asked for.
    """

    def __init__(self) -> None:
        hpu.require()
        super().__init__()

    @override
    def setup(self, trainer: Trainer) -> None:
        """Refuse a strategy that would not run on the HPU, or not in the right mode.

        Raises:
            ConfigurationError: The strategy is not one of ours.
        """
        self.check_strategy(trainer.strategy)

    def check_strategy(self, strategy: Strategy) -> None:
        """Check that a strategy runs on the HPU, in the right mode.

        Raises:
            ConfigurationError: The strategy is not one of ours.
        """
        if not isinstance(getattr(strategy, "step_boundary", None), StepBoundary):
            raise ConfigurationError(
                "accelerator='hpu' needs GaudiStrategy, which sets the execution mode and breaks "
                f"the lazy graph, but the strategy is {type(strategy).__name__}. Use "
                "strategy='gaudi', or leave the strategy out; to train on the CPU, say "
                "accelerator='cpu'."
            )

    @override
    def setup_device(self, device: torch.device) -> None:
        """Check that a process's device is the HPU.

        Raises:
            ConfigurationError: It is another device.
        """
        if device.type != "hpu":
            raise ConfigurationError(
                f"accelerator='hpu' runs on hpu:0, but the strategy's device is {device}. Use "
                "strategy='gaudi', or leave the strategy out."
            )

    @override
    def teardown(self) -> None:
        """Nothing to undo."""

    @staticmethod
    @override
    def parse_devices(devices: Any) -> int:
        """Turn ``Trainer(devices=...)`` into a number of cards.

        Raises:
            ConfigurationError: It is no number of cards, or more than there are.
        """
        return hpu.parse_count(devices)

    @staticmethod
    @override
    def get_parallel_devices(devices: int) -> list[torch.device]:
        """One entry for each process of this node; each sees its own card as ``hpu:0``."""
        return [hpu.this_device()] * devices

    @staticmethod
    @override
    def auto_device_count() -> int:
        """All cards of this machine that the process may use."""
        return hpu.count()

    @staticmethod
    @override
    def is_available() -> bool:
        """Whether there is a card, real or emulated."""
        return hpu.is_available()

    @staticmethod
    @override
    def name() -> str:
        """The registry name."""
        return "hpu"

    @override
    def get_device_stats(self, device: _DEVICE) -> dict[str, Any]:
        """Memory statistics for ``DeviceStatsMonitor``: bytes and counts, under the SDK's names."""
        return dict(hpu.memory_stats())
