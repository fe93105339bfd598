"""Checks of environment variables."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Literal

from lightning_gaudi.doctor import releases
from lightning_gaudi.doctor.findings import Finding, release_of
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.facts import AUTOLOAD, OP_LISTS, PLACE_ON_CPU, Facts

Mode = Literal["lazy", "eager"]
_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
KNOWN_VARIABLES = (
    environment.LAZY_MODE,
    environment.RECIPE_CACHE,
    environment.LAZY_COLLECTIVES,
    environment.VISIBLE_MODULES,
    environment.MODULE_ID,
    environment.EMULATOR,
    PLACE_ON_CPU,
    *OP_LISTS,
    "HABANA_PROFILE",
    "HABANA_LOGS",
    "LIGHTNING_GAUDI_EMULATOR_COMPILE",
    "LIGHTNING_GAUDI_EMULATOR_DEVICES",
    "LIGHTNING_GAUDI_EMULATOR_STRICT",
    "PT_ENABLE_INT64_SUPPORT",
    "PT_HPU_AUTOLOAD",
    "PT_HPU_ENABLE_CACHE_METRICS",
    "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES",
    "PT_HPU_MAX_COMPOUND_OP_SIZE",
)
"""Variables that misspelt ones are compared with; the Gaudi software has more."""


def check_mode(facts: Facts, mode: Mode = "lazy") -> Iterator[Finding]:
    """A plain ``python script.py`` gets the mode that is wanted.

    Args:
        facts: The machine.
        mode: The mode that is wanted.
    """
    value = facts.variables.get(environment.LAZY_MODE)
    wanted = "1" if mode == "lazy" else "0"
    fix = f"export {environment.LAZY_MODE}={wanted}  # or start scripts with: lightning-gaudi run"
    if mode == "eager":
        fix = f"export {environment.LAZY_MODE}=0  # or: lightning-gaudi run --mode eager"
    if value not in (None, "0", "1"):
        yield Finding(
            check="mode",
            level="fault",
            title="execution mode",
            found=f"{environment.LAZY_MODE}={value!r}",
            expected="1 for lazy mode, 0 for eager mode",
            fix=fix,
        )
    elif value is not None and value != wanted:
        other = "eager" if value == "0" else "lazy"
        yield Finding(
            check="mode",
            level="fault",
            title="execution mode",
            found=f"{environment.LAZY_MODE}={value}, which is {other} mode",
            expected=f"{environment.LAZY_MODE}={wanted} for {mode} mode"
            + (", the only one with HPU graphs" if mode == "lazy" else ""),
            fix=fix,
        )
    elif value is None and facts.installed.bridge_file is None:
        yield Finding(
            check="mode",
            level="ok",
            title="execution mode",
            found=f"{environment.LAZY_MODE} is not set: GaudiStrategy sets it",
        )
    elif value is None and (default := _default_mode(facts)) != mode:
        yield Finding(
            check="mode",
            level="warning",
            title="execution mode",
            found=f"{environment.LAZY_MODE} is not set, and Gaudi software "
            f"{facts.installed.bridge} loads in {default} mode inside `import torch`",
            expected=f"{environment.LAZY_MODE}={wanted} before Python starts",
            fix=fix,
        )
    else:
        how = "not set, so the default" if value is None else "set"
        yield Finding(check="mode", level="ok", title="execution mode", found=f"{mode} ({how})")


def check_autoload(facts: Facts) -> Iterator[Finding]:
    """``import torch`` calls the backends."""
    value = facts.variables.get(AUTOLOAD, "1")
    if value == "1":
        return
    emulates = facts.is_emulator_requested
    yield Finding(
        check="autoload",
        level="warning",
        title="autoload",
        found=f"{AUTOLOAD}={value}",
        expected="unset: else `import torch` loads neither the Gaudi software nor the emulated "
        "HPU, and scripts must import "
        + ("lightning_gaudi" if emulates else "habana_frameworks.torch")
        + " themselves",
        fix=f"unset {AUTOLOAD}",
    )


def check_module_id(facts: Facts) -> Iterator[Finding]:
    """``HLS_MODULE_ID`` is set by launchers in each rank, and by nobody else."""
    value = facts.variables.get(environment.MODULE_ID)
    if value is None or any(name in facts.variables for name in _RANKS):
        return
    yield Finding(
        check="module_id",
        level="warning",
        title="HLS_MODULE_ID",
        found=f"{environment.MODULE_ID}={value!r} is exported outside of a rank",
        expected="unset: every process that inherits it takes that one card (GaudiStrategy sets "
        "it in each rank; other launchers keep what is there)",
        fix=f"unset {environment.MODULE_ID}",
    )


def check_recipe_cache(facts: Facts) -> Iterator[Finding]:
    """``PT_HPU_RECIPE_CACHE_CONFIG`` is "path,delete,sizeMB", and the folder can be written."""
    value = facts.variables.get(environment.RECIPE_CACHE)
    if not value:
        return
    parts = value.split(",")
    folder = facts.paths.get(environment.RECIPE_CACHE)
    problem = ""
    if (
        len(parts) != 3
        or parts[1].lower() not in ("true", "false", "0", "1")
        or not parts[2].isdecimal()
    ):
        problem = "it must be PATH,DELETE_AT_START,SIZE_IN_MB"
    elif folder is None:
        problem = "it names no folder"
    elif folder.is_file:
        problem = f"{folder.path} is a file"
    elif not folder.is_writable:
        problem = f"{folder.path} cannot be written"
    if problem:
        yield Finding(
            check="recipe_cache",
            level="fault",
            title="recipe cache",
            found=f"{environment.RECIPE_CACHE}={value!r}: {problem}",
            expected="such as /tmp/recipes,false,8192",
            fix=f"export {environment.RECIPE_CACHE}=/tmp/recipes,false,8192",
        )
    else:
        yield Finding(check="recipe_cache", level="ok", title="recipe cache", found=value)


def check_place_on_cpu(facts: Facts) -> Iterator[Finding]:
    """No ops are sent to the CPU by name."""
    value = facts.variables.get(PLACE_ON_CPU)
    if not value:
        return
    if value == "none":
        yield Finding(
            check="place_on_cpu",
            level="note",
            title="CPU fallbacks",
            found=f"{PLACE_ON_CPU}=none: an op without a kernel raises",
        )
        return
    yield Finding(
        check="place_on_cpu",
        level="warning",
        title="CPU fallbacks",
        found=f"{PLACE_ON_CPU}={value!r} sends ops to the CPU, each with a flush and two copies",
        expected="unset, or none to forbid fallbacks",
        fix=f"unset {PLACE_ON_CPU}",
    )


def check_op_lists(facts: Facts) -> Iterator[Finding]:
    """The files with autocast's ops are there."""
    for variable in OP_LISTS:
        folder = facts.paths.get(variable)
        if folder is not None and not folder.is_file:
            yield Finding(
                check="autocast_lists",
                level="fault",
                title="autocast's ops",
                found=f"{variable}={folder.path!r}, and there is no such file",
                expected="a file with the name of an op on each line; unset for the default list",
                fix=f"unset {variable}",
            )


def check_emulator(facts: Facts) -> Iterator[Finding]:
    """The emulator is asked for by 1, and not beside the real software."""
    value = facts.variables.get(environment.EMULATOR)
    if value in (None, "", "0"):
        return
    if value != "1":
        yield Finding(
            check="emulator",
            level="fault",
            title="emulated HPU",
            found=f"{environment.EMULATOR}={value!r}",
            expected="1 (emulate the HPU) or 0",
            fix=f"export {environment.EMULATOR}=1",
        )
    elif facts.installed.bridge_file is not None:
        is_meant = facts.variables.get(AUTOLOAD) == "0"
        yield Finding(
            check="emulator",
            level="note" if is_meant else "fault",
            title="emulated HPU",
            found=f"{environment.EMULATOR}=1 beside the real Gaudi software",
            expected=f"unset to use the card; {AUTOLOAD}=0 beside it to emulate on this machine",
            fix=f"unset {environment.EMULATOR}",
        )
    else:
        yield Finding(check="emulator", level="ok", title="emulated HPU", found="asked for")


def check_spelling(facts: Facts) -> Iterator[Finding]:
    """No variable is nearly, but not quite, one that matters."""
    for name in facts.variables:
        if name in KNOWN_VARIABLES:
            continue
        near = difflib.get_close_matches(name, KNOWN_VARIABLES, n=1, cutoff=0.9)
        if near:
            yield Finding(
                check="spelling",
                level="warning",
                title="spelling",
                found=f"{name} is set, which nothing reads",
                expected=f"{near[0]}, perhaps",
                fix=f"unset {name}; export {near[0]}={facts.variables[name]}",
            )


def _default_mode(facts: Facts) -> Mode:
    """The mode of the real software where the variable is not set."""
    if facts.loading is not None and facts.loading.is_lazy is not None:
        return "lazy" if facts.loading.is_lazy else "eager"
    release = release_of(facts.installed.bridge or "")[:2]
    return "eager" if not release or release >= releases.FIRST_EAGER_RELEASE else "lazy"
