"""Everything that can be said of this machine without using the device: for ``doctor``.

Gathered here, judged elsewhere. Nothing is loaded in this process: importing the Gaudi software may
hang, so another Python does that, with a time limit.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.driver import Driver, read_driver
from lightning_gaudi.runtime.installed import Installed, read_installed
from lightning_gaudi.runtime.process import kill_python

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
PLACE_ON_CPU = "PT_HPU_PLACE_ON_CPU"
OP_LISTS = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")
EMULATED_CARDS = "LIGHTNING_GAUDI_EMULATOR_DEVICES"
LOAD_LIMIT_S = 60.0

_PREFIXES = ("PT_", "HABANA_", "HLS_", "LIGHTNING_GAUDI_", "GAUDI_")
_OTHERS = (
    AUTOLOAD,
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
)

# Runs in another Python. The device is not acquired: another job may have it.
_LOAD = """
import json
import torch
import habana_frameworks.torch.core
from habana_frameworks.torch.utils.internal import is_lazy
import habana_frameworks.torch.hpu as hpu
print("\\nlightning-gaudi:" + json.dumps({
    "is_lazy": bool(is_lazy()), "num_cards": hpu.device_count(), "torch": torch.__version__}))
"""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A path that a variable names.

    Attributes:
        path: As named.
        exists: Whether it is there.
        is_writable: Whether this user may write there; of one that is not there, whether it can
            be made.
        is_file: Whether it is a file.
    """

    path: str
    exists: bool
    is_writable: bool
    is_file: bool


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What came of loading the Gaudi software in another Python.

    Attributes:
        seconds: How long it took.
        error: Why it failed; empty where it did not.
        is_lazy: The mode it came up in; None where it failed.
        num_cards: Cards that it sees; None where it failed.
    """

    seconds: float
    error: str = ""
    is_lazy: bool | None = None
    num_cards: int | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a machine.

    Attributes:
        system: The operating system.
        installed: Versions.
        driver: Driver and cards.
        variables: The environment variables that matter, as they stand.
        paths: What the variables that name paths point to, by variable.
        loading: What came of loading the software; None where nobody tried.
    """

    system: str
    installed: Installed
    driver: Driver
    variables: Mapping[str, str]
    paths: Mapping[str, Folder]
    loading: Loading | None

    @property
    def is_emulator_requested(self) -> bool:
        """Whether ``LIGHTNING_GAUDI_EMULATOR`` is 1."""
        return self.variables.get(environment.EMULATOR) == "1"

    def as_dict(self) -> dict[str, Any]:
        """In types that JSON has."""
        return asdict(self)


def gather_facts(*, load: bool = True, load_limit_s: float = LOAD_LIMIT_S) -> Facts:
    """Look at this machine.

    Args:
        load: Whether another Python loads the Gaudi software, or the emulator where the
            environment asks for it, if there is either.
        load_limit_s: How long it may take, in seconds.
    """
    installed = read_installed()
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in _OTHERS
    }
    has_software = installed.bridge_file is not None or variables.get(environment.EMULATOR) == "1"
    return Facts(
        system=platform.platform(),
        installed=installed,
        driver=read_driver(),
        variables=variables,
        paths=_paths(variables),
        loading=try_loading(load_limit_s) if load and has_software else None,
    )


def try_loading(limit_s: float, *, without_mode: bool = False) -> Loading:
    """Load the Gaudi software in another Python.

    Args:
        limit_s: After how many seconds that is given up, and the process killed.
        without_mode: Whether it is done as if ``PT_HPU_LAZY_MODE`` were not set.
    """
    variables = dict(os.environ)
    if without_mode:
        variables.pop(environment.LAZY_MODE, None)
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _LOAD],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Loading(seconds=limit_s, error=f"not loaded within {limit_s:g} s")
    finally:
        kill_python(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    seconds = round(time.perf_counter() - begin, 2)
    for line in output.splitlines():
        if line.startswith("lightning-gaudi:"):
            answer = json.loads(line.removeprefix("lightning-gaudi:"))
            return Loading(
                seconds=seconds, is_lazy=answer["is_lazy"], num_cards=answer["num_cards"]
            )
    lines = errors.strip().splitlines()
    code = process.returncode
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return Loading(seconds=seconds, error=lines[-1] if lines else f"the process ended with {how}")


def _paths(variables: Mapping[str, str]) -> dict[str, Folder]:
    named = {name: variables[name] for name in OP_LISTS if variables.get(name)}
    cache = variables.get(environment.RECIPE_CACHE, "").split(",")[0]
    if cache:
        named[environment.RECIPE_CACHE] = cache
    return {name: _folder(path) for name, path in named.items()}


def _folder(path: str) -> Folder:
    place = Path(path)
    nearest = place
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return Folder(
        path=path,
        exists=place.exists(),
        is_writable=os.access(nearest, os.W_OK),
        is_file=place.is_file(),
    )
