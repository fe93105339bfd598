"""Classes of ``lightning-habana`` that there is no equal of: they say what to use."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision import HPUPrecision
from lightning_gaudi.strategy import GaudiStrategy


class HPUDeepSpeedStrategy(GaudiStrategy):
    """Raises: DeepSpeed is not supported.

    Raises:
        ConfigurationError: Always.
    """

    strategy_name = "hpu_deepspeed"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigurationError(
            'lightning_gaudi has no DeepSpeed: HPUDeepSpeedStrategy ("hpu_deepspeed") of '
            "lightning-habana has no equal here. For a model, its gradients and its optimizer in "
            'parts on all cards (ZeRO stages 1 to 3) use strategy="gaudi_fsdp"; where they fit on '
            'one card, strategy="gaudi".'
        )


class HPUDeepSpeedPrecisionPlugin(HPUPrecision):
    """Raises: DeepSpeed is not supported.

    Raises:
        ConfigurationError: Always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigurationError(
            "lightning_gaudi has no DeepSpeed, so HPUDeepSpeedPrecisionPlugin of lightning-habana "
            "has no equal here. Use HPUPrecision with the same precision."
        )


class HPUDataModule(LightningDataModule):
    """Raises: images are not decoded on the card.

    Raises:
        ConfigurationError: Always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigurationError(
            "HPUDataModule of lightning-habana, which had ImageNet folders decoded by Habana's "
            "media pipe, has no equal here. Write a LightningDataModule with a DataLoader over "
            "torchvision's ImageFolder: drop_last=True keeps training batches of one shape, and "
            "num_workers decode ahead."
        )
