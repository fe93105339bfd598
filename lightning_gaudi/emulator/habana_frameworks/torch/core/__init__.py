"""``habana_frameworks.torch.core`` (htcore)."""

from habana_frameworks.torch import hpu
from habana_frameworks.torch.core import quantization, step_closure
from habana_frameworks.torch.core.quantization import (
    hpu_inference_initialize,
    hpu_initialize,
    hpu_reset_env,
    hpu_set_env,
    hpu_set_inference_env,
    hpu_teardown_inference_env,
)
from habana_frameworks.torch.core.step_closure import add_step_closure, iter_mark_step, mark_step

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.mode import is_lazy

__all__ = [
    "add_step_closure",
    "hpu",
    "hpu_inference_initialize",
    "hpu_initialize",
    "hpu_reset_env",
    "hpu_set_env",
    "hpu_set_inference_env",
    "hpu_teardown_inference_env",
    "is_lazy",
    "iter_mark_step",
    "mark_step",
    "quantization",
    "step_closure",
]
__getattr__ = name_missing("habana_frameworks.torch.core")
