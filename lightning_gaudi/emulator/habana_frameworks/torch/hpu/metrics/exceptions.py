"""``habana_frameworks.torch.hpu.metrics.exceptions``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.report_files import (
    InvalidMetricDumpFileFormat,
    InvalidMetricDumpTrigger,
)
from lightning_gaudi.emulator.reports import MetricNotFound

__all__ = ["InvalidMetricDumpFileFormat", "InvalidMetricDumpTrigger", "MetricNotFound"]
__getattr__ = name_missing("habana_frameworks.torch.hpu.metrics.exceptions")
