"""Lists of ops for autocast, as a user gives them: checked before the bridge reads them.

The bridge skips a name that it does not know without a word (1.19.0, ``autocast_helpers.h``), so a
misspelt op would run in another dtype than was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import torch

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import autocast_lists

OpList = Iterable[str] | str | os.PathLike[str]
"""Names of ops, or the path of a file with one on each line."""

_ON_LISTS = frozenset(
    (
        *autocast_lists.DEFAULT_LOWER_PRECISION_OPS,
        *autocast_lists.DEFAULT_FP32_OPS,
        *autocast_lists.PROMOTED_OPS,
    )
)


def set_op_lists(lower: OpList | None, fp32: OpList | None) -> None:
    """Set autocast's op lists, which take the place of the bridge's own.

    An op on both of the bridge's lists is lowered. So where only ``fp32`` is given, its ops leave
    the default lower precision list.

    Args:
        lower: Ops that run in autocast's dtype; None for the bridge's own list.
        fp32: Ops that run in float32; None for the bridge's own list.

    Raises:
        ConfigurationError: A list is empty, a name is no op, an op is on both lists, a file cannot
            be read, or another list is exported.
        ExecutionModeError: It is too late: the Gaudi software is loaded, with other lists.
    """
    lower_ops = None if lower is None else _read("lower_precision_ops", lower)
    fp32_ops = None if fp32 is None else _read("fp32_ops", fp32)
    if lower_ops is not None and fp32_ops is not None:
        if both := sorted(set(lower_ops) & set(fp32_ops)):
            raise ConfigurationError(
                f"an op runs in one dtype, but lower_precision_ops and fp32_ops both name "
                f"{', '.join(map(repr, both))}. Take it out of one of them."
            )
    elif fp32_ops is not None:
        default = autocast_lists.DEFAULT_LOWER_PRECISION_OPS
        if set(fp32_ops) & set(default):
            lower_ops = [name for name in default if name not in fp32_ops]
    autocast_lists.set_lists(lower_ops, fp32_ops)


def _read(argument: str, ops: OpList) -> list[str]:
    """The names of a list, each once."""
    source = ""
    if isinstance(ops, (str, os.PathLike)):
        source = f" ({os.fspath(ops)})"
        try:
            names = Path(ops).read_text("utf-8").split()
        except OSError as error:
            raise ConfigurationError(
                f"{argument} must be a list of names of ops, or the path of a file with one on "
                f"each line, but {os.fspath(ops)!r} cannot be read: {error}"
            ) from error
    else:
        names = list(ops)
        if any(not isinstance(name, str) for name in names):
            raise ConfigurationError(f"{argument} must be names of ops, but it is {names!r}.")
    names = list(dict.fromkeys(name.strip() for name in names))
    if not names:
        raise ConfigurationError(
            f"{argument}{source} must name at least one op, but it is empty. Leave it out for the "
            "default list."
        )
    if unknown := [name for name in names if not _is_op(name)]:
        raise ConfigurationError(
            f"{argument}{source} must name ATen ops without their overload, such as 'linear' or "
            f"'softmax', but there is no {'; no '.join(map(_with_near_names, unknown))}."
        )
    return names


def _is_op(name: str) -> bool:
    return name in _ON_LISTS or (name.isidentifier() and hasattr(torch.ops.aten, name))


def _with_near_names(name: str) -> str:
    known = {*_ON_LISTS, *dir(torch), *dir(torch.nn.functional)}
    near = [
        match
        for match in get_close_matches(name, sorted(known), n=6)
        if _is_op(match) and not match.startswith("_")
    ]
    return f"{name!r}" + (f" (did you mean {' or '.join(map(repr, near[:3]))}?)" if near else "")
