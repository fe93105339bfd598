"""``habana_frameworks.torch.hpu.metrics``."""

from habana_frameworks.torch.hpu.metrics import exceptions, saver
from habana_frameworks.torch.hpu.metrics.exceptions import (
    InvalidMetricDumpFileFormat,
    InvalidMetricDumpTrigger,
    MetricNotFound,
)

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.report_files import metrics_dump
from lightning_gaudi.emulator.reports import Metric, metric_global, metric_localcontext

__all__ = [
    "InvalidMetricDumpFileFormat",
    "InvalidMetricDumpTrigger",
    "Metric",
    "MetricNotFound",
    "exceptions",
    "metric_global",
    "metric_localcontext",
    "metrics_dump",
    "saver",
]
__getattr__ = name_missing("habana_frameworks.torch.hpu.metrics")
