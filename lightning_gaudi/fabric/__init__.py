"""Lightning Fabric on the HPU: ``Fabric(accelerator="hpu", strategy="gaudi")``."""

from lightning_gaudi.fabric.precision import HPUFabricPrecision
from lightning_gaudi.fabric.strategy import GaudiFabricStrategy

__all__ = ["GaudiFabricStrategy", "HPUFabricPrecision"]
