"""The options of ``torch.compile(backend="hpu_backend", options={...})``.

Names, environment variables and defaults are the SDK's (bridge 1.19.0,
dynamo/compile_backend/config.py). ``decomposition_mode`` and ``keep_input_mutations`` change the
graph here too; the others tune how a card runs the same graph, so both their values are taken.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

_SWITCHES = {
    "use_compiled_recipes": ("PT_HPU_COMPILE_USE_RECIPES", True),
    "verbose": ("PT_HPU_COMPILE_VERBOSE", False),
    "keep_input_mutations": ("PT_HPU_KEEP_INPUT_MUTATIONS", True),
    "use_eager_fallback": ("PT_HPU_USE_EAGER_FALLBACK", True),
    "use_graph_freezing": ("PT_HPU_COMPILE_GRAPH_FREEZE", False),
    "discard_frozen_params": ("PT_HPU_COMPILE_DISCARD_FROZEN_PARAMS", False),
    "remove_unnecessary_clones": ("PT_HPU_COMPILE_REMOVE_UNNECESSARY_CLONES", True),
    "use_inplace_allreduce": ("PT_HPU_USE_INPLACE_COLLECTIVE", False),
    "use_inplace_index_copy": ("PT_HPU_USE_INPLACE_INDEX_COPY", True),
    "inference": ("PT_HPU_USE_INFERENCE_COMPILER", True),
    "enable_sfg": ("PT_HPU_ENABLE_SFG", False),
    "use_cpp_partitioner": ("PT_HPU_USE_CPP_PARTITIONER", True),
    "enable_allreduce_graph_split": ("PT_HPU_ENABLE_ALLREDUCE_GRAPH_SPLIT", False),
    "force_static_compile": ("PT_HPU_FORCE_STATIC_COMPILE", False),
}
_DECOMPOSITION_MODES = ("habana", "core_aten", "none")
_TRUE = frozenset({"on", "1", "yes", "true", "y", "t"})
_FALSE = frozenset({"off", "0", "no", "false", "n", "f"})
_CONFIG = "habana_frameworks.torch.dynamo.compile_backend.config"


def read_defaults() -> dict[str, Any]:
    """The value of every option where nobody gives one: what the environment says.

    Raises:
        ValueError: A variable holds what the SDK does not take.
    """
    values: dict[str, Any] = {}
    for name, (variable, default) in _SWITCHES.items():
        text = os.environ.get(variable, str(default)).lower()
        if text not in _TRUE | _FALSE:
            raise ValueError(f"{variable} must be 0 or 1, but it is {text!r}.")
        values[name] = text in _TRUE
    mode = os.environ.get("PT_HPU_COMPILE_DECOMPOSITION_MODE", "habana").lower()
    values["decomposition_mode"] = _check_mode("PT_HPU_COMPILE_DECOMPOSITION_MODE", mode)
    return values


def resolve(given: dict[str, Any] | None) -> dict[str, Any]:
    """The options of one compilation: the defaults with what the user gave.

    Raises:
        ValueError: An option has a name or a value that the SDK does not take.
    """
    values = read_defaults()
    config = sys.modules.get(_CONFIG)
    if config is not None:
        values = {name: getattr(config, name) for name in values}
    unknown = sorted(set(given or ()) - values.keys())
    if unknown:
        raise ValueError(
            f"hpu_backend has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(values))}."
        )
    values.update(given or {})
    for name in _SWITCHES:
        if not isinstance(values[name], (bool, int)):
            raise ValueError(f"option {name} must be True or False, not {values[name]!r}.")
    _check_mode("option decomposition_mode", values["decomposition_mode"])
    if values["use_graph_freezing"]:
        warnings.warn(
            "use_graph_freezing: a card makes the weights constants of the recipe and does not see "
            "later changes to them; the emulated HPU reads them at each call.",
            stacklevel=2,
        )
    return values


def _check_mode(what: str, mode: Any) -> Any:
    if mode not in _DECOMPOSITION_MODES:
        raise ValueError(f"{what} must be one of {', '.join(_DECOMPOSITION_MODES)}, not {mode!r}.")
    return mode
