"""Lightning callbacks for Gaudi."""

from lightning_gaudi.callbacks.compile_monitor import CompileMonitor
from lightning_gaudi.callbacks.finite_loss import FiniteLoss
from lightning_gaudi.callbacks.graph import HPUGraphCallback
from lightning_gaudi.callbacks.image_writer import ImageWriter
from lightning_gaudi.callbacks.prediction_order import PredictionOrder
from lightning_gaudi.callbacks.prediction_writer import PredictionWriter
from lightning_gaudi.callbacks.throughput import HPUThroughputMonitor

__all__ = [
    "CompileMonitor",
    "FiniteLoss",
    "HPUGraphCallback",
    "HPUThroughputMonitor",
    "ImageWriter",
    "PredictionOrder",
    "PredictionWriter",
]
