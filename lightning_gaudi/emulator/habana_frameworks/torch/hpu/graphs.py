"""``habana_frameworks.torch.hpu.graphs``, in lazy mode."""

from lightning_gaudi.emulator.hpu_graph import HPUGraph, graph, is_current_stream_capturing
from lightning_gaudi.emulator.missing import name_missing

__all__ = ["HPUGraph", "graph", "is_current_stream_capturing"]
__getattr__ = name_missing("habana_frameworks.torch.hpu.graphs")
