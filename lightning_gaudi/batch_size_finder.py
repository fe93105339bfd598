"""Make Lightning's batch size finder know an HPU without memory.

``Tuner.scale_batch_size`` and ``BatchSizeFinder`` try ever larger batches until memory runs out,
which they tell by the messages of CUDA and of the CPU's allocator; there is no hook for another
device. So the function that tells is wrapped where the finder looks it up (lightning 2.6.6,
``tuner/batch_size_scaling.py``) and where it is defined. It answers as before for all other errors.
A Lightning without it finds no batch size on the HPU: the error of the first batch that is too
large then reaches the user.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from lightning.pytorch.tuner import batch_size_scaling
from lightning.pytorch.utilities import memory

from lightning_gaudi.runtime.out_of_memory import is_out_of_memory

_NAME = "is_oom_error"
_MARK = "_lightning_gaudi_original"


def register() -> None:
    """Teach both modules. Calling it again does nothing more."""
    for module in (memory, batch_size_scaling):
        _teach(module)


def _teach(module: ModuleType) -> None:
    original: Callable[[BaseException], Any] | None = getattr(module, _NAME, None)
    if original is None or hasattr(original, _MARK):
        return

    @wraps(original)
    def is_oom_error(exception: BaseException) -> bool:
        return is_out_of_memory(exception) or bool(original(exception))

    setattr(is_oom_error, _MARK, original)
    setattr(module, _NAME, is_oom_error)
