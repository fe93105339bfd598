"""``habana_frameworks.torch.dynamo.compile_backend.config``: defaults of the backend's options.

A value set here holds for every later compilation that does not give the option itself.
"""

import sys
from typing import Any

from lightning_gaudi.emulator.compile_options import read_defaults
from lightning_gaudi.emulator.missing import name_missing


class _Flags:
    """The same values as items, which older code uses."""

    def __getitem__(self, name: str) -> Any:
        return getattr(sys.modules[__name__], name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(sys.modules[__name__], name, value)


globals().update(read_defaults())
configuration_flags = _Flags()
__getattr__ = name_missing("habana_frameworks.torch.dynamo.compile_backend.config")
