"""Precision on the HPU: dtypes, autocast's op lists, loss scaling and fp8."""

from lightning_gaudi.precision.plugin import PRECISIONS, HPUPrecision, HPUPrecisionName
from lightning_gaudi.precision.scaler import HPUGradScaler
from lightning_gaudi.precision.translation import for_hpu
from lightning_gaudi.runtime.autocast_lists import DEFAULT_FP32_OPS, DEFAULT_LOWER_PRECISION_OPS

__all__ = [
    "DEFAULT_FP32_OPS",
    "DEFAULT_LOWER_PRECISION_OPS",
    "PRECISIONS",
    "HPUGradScaler",
    "HPUPrecision",
    "HPUPrecisionName",
    "for_hpu",
]
