"""``habana_frameworks.torch.hpu.graphs``, in lazy mode."""

from habana_frameworks.torch.hpu._graphed_callables import make_graphed_callables
from habana_frameworks.torch.hpu._module_cacher import GraphModel, ModuleCacher
from habana_frameworks.torch.hpu._tensor_packer import TensorPacker
from habana_frameworks.torch.hpu._wrapping import (
    CachedParams,
    copy_to,
    extract_tensors,
    get_tensor_info,
    get_user_input_tensor_list,
    input_hash,
    wrap_in_hpu_graph,
    wrap_in_hpu_graph_func,
    wrapped_hpugraph_forward,
)

from lightning_gaudi.emulator.hpu_graph import HPUGraph, graph, is_current_stream_capturing
from lightning_gaudi.emulator.missing import name_missing

__all__ = [
    "CachedParams",
    "GraphModel",
    "HPUGraph",
    "ModuleCacher",
    "TensorPacker",
    "copy_to",
    "extract_tensors",
    "get_tensor_info",
    "get_user_input_tensor_list",
    "graph",
    "input_hash",
    "is_current_stream_capturing",
    "make_graphed_callables",
    "wrap_in_hpu_graph",
    "wrap_in_hpu_graph_func",
    "wrapped_hpugraph_forward",
]
__getattr__ = name_missing("habana_frameworks.torch.hpu.graphs")
