"""``habana_frameworks.torch.core.quantization``: each thing under its new name and its old one."""

from lightning_gaudi.emulator.inference_environment import (
    inference_initialize as hpu_inference_initialize,
)
from lightning_gaudi.emulator.inference_environment import (
    inference_initialize as hpu_initialize,
)
from lightning_gaudi.emulator.inference_environment import (
    set_inference_env as hpu_set_env,
)
from lightning_gaudi.emulator.inference_environment import (
    set_inference_env as hpu_set_inference_env,
)
from lightning_gaudi.emulator.inference_environment import (
    teardown_inference_env as hpu_reset_env,
)
from lightning_gaudi.emulator.inference_environment import (
    teardown_inference_env as hpu_teardown_inference_env,
)
from lightning_gaudi.emulator.missing import name_missing

__all__ = [
    "hpu_inference_initialize",
    "hpu_initialize",
    "hpu_reset_env",
    "hpu_set_env",
    "hpu_set_inference_env",
    "hpu_teardown_inference_env",
]
__getattr__ = name_missing("habana_frameworks.torch.core.quantization")
