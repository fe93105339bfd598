"""``habana_frameworks.torch.hpu.metrics``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.reports import Metric, metric_global

__all__ = ["Metric", "metric_global"]
__getattr__ = name_missing("habana_frameworks.torch.hpu.metrics")
