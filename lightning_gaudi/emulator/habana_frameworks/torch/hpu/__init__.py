"""``habana_frameworks.torch.hpu``, which importing also makes ``torch.hpu``.

The graph names exist in lazy mode only.
"""

import sys

import torch
from habana_frameworks.torch.hpu import events, memory, metrics, random, streams
from habana_frameworks.torch.hpu.metrics import (
    MetricNotFound,
    metric_global,
    metric_localcontext,
    metrics_dump,
)

from lightning_gaudi.emulator.device_module import *
from lightning_gaudi.emulator.device_module import _initialized, _is_in_bad_fork, _lazy_init
from lightning_gaudi.emulator.hccl import HABANA_VISIBLE_MODULES as HABANA_VISIBLE_MODULES_VAR
from lightning_gaudi.emulator.hccl import HLS_MODULE_ID as HLS_MODULE_ID_VAR
from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.mode import is_lazy

if is_lazy():
    from habana_frameworks.torch.hpu import graphs
    from habana_frameworks.torch.hpu.graphs import (
        HPUGraph,
        ModuleCacher,
        graph,
        is_current_stream_capturing,
        make_graphed_callables,
        wrap_in_hpu_graph,
        wrap_in_hpu_graph_func,
    )

__getattr__ = name_missing("habana_frameworks.torch.hpu")
torch.hpu = sys.modules["torch.hpu"] = sys.modules[__name__]  # type: ignore[attr-defined]
