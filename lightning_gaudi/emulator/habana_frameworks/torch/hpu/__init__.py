"""``habana_frameworks.torch.hpu``. The graph names exist in lazy mode only."""

from habana_frameworks.torch.hpu import metrics, random

from lightning_gaudi.emulator.device_module import *  # noqa: F403
from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.mode import is_lazy

if is_lazy():
    from habana_frameworks.torch.hpu import graphs
    from habana_frameworks.torch.hpu.graphs import (
        HPUGraph,
        graph,
        is_current_stream_capturing,
    )

__getattr__ = name_missing("habana_frameworks.torch.hpu")
