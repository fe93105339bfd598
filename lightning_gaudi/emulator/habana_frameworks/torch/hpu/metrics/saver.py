"""``habana_frameworks.torch.hpu.metrics.saver``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.report_files import MetricDumpFormat, MetricDumpTrigger

__all__ = ["MetricDumpFormat", "MetricDumpTrigger"]
__getattr__ = name_missing("habana_frameworks.torch.hpu.metrics.saver")
