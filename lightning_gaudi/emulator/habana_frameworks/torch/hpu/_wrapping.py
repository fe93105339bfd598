"""``wrap_in_hpu_graph`` and ``wrap_in_hpu_graph_func``, to the SDK's own algorithm, flaws included.

From bridge 1.19.0, ``hpu/graphs.py``. One dictionary holds the graphs, keyed by a hash alone: of
shape, view and autocast for a tensor, of the value for anything else. So these are one call to it:
two dtypes of one shape, training and evaluation, with and without gradients, -1 and -2. The first
call's own tensors are the graph's inputs, and every later call copies into them, one tensor at a
time; the result is the same tensors every time. With `max_graphs` graphs every further kind of call
runs op by op, for ever. A forward that raises leaves the capture open until the last reference to
its graph, which the traceback holds, is gone.

A call walks its arguments twice in Python, to hash and to copy, and nothing here shortens that: it
is what other ways to replay are measured against.
"""

from __future__ import annotations

import os
from collections import UserDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_gaudi.emulator import accounting, events, streams
from lightning_gaudi.emulator.device_module import is_autocast_hpu_enabled
from lightning_gaudi.emulator.hpu_graph import HPUGraph
from lightning_gaudi.emulator.tensor import HPUTensor

_Module = TypeVar("_Module", bound=nn.Module)


class CachedParams:
    """A captured graph with what a replay of it needs.

    Args:
        graph_inputs: The tensors that the graph reads, nested as the call's arguments are; with
            ``disable_tensor_cache`` a tuple of those that a replay does not bind.
        graph_outputs: What the captured forward returned.
        graph: The graph.
        out_tinfo_list: Shape, dtype and device of each tensor of the result.
        asynchronous: Passed on to each replay.
    """

    def __init__(
        self,
        graph_inputs: Any,
        graph_outputs: Any,
        graph: HPUGraph,
        out_tinfo_list: list[dict[str, Any]] | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.graph_inputs = graph_inputs
        self.graph_outputs = graph_outputs
        self.graph = graph
        self.out_tinfo_list = out_tinfo_list
        self.asynchronous = asynchronous


def input_hash(obj: Any) -> int:
    """The key of a call: equal for calls that are alike, and for some that are not.

    Raises:
        TypeError: Something among the arguments cannot be hashed.
    """
    if isinstance(obj, dict):
        return input_hash(tuple(obj.items()))
    if isinstance(obj, list) or (isinstance(obj, tuple) and not isinstance(obj, torch.Size)):
        return hash((tuple(input_hash(item) for item in obj), is_autocast_hpu_enabled()))
    if torch.is_tensor(obj):
        return hash((obj.shape, _view_hash(obj), is_autocast_hpu_enabled()))
    if isinstance(obj, UserDict):
        return hash(tuple((key, tuple(value)) for key, value in obj.items()))
    return hash((obj, is_autocast_hpu_enabled()))


def _view_hash(tensor: Tensor) -> int:
    """What the bridge works out from the views between a tensor and its memory; 0 without."""
    if type(tensor) is not HPUTensor:
        return 0
    offset = tensor.storage_offset()
    block = tensor._block
    if not offset and tensor.is_contiguous() and (block is None or block.nbytes == tensor.nbytes):
        return 0
    return hash((offset, tensor.stride()))


def copy_to(dst: Any, src: Any) -> None:
    """Copy every tensor of a nested structure into its counterpart, one at a time.

    Raises:
        AssertionError: Types or keys differ.
    """
    assert type(dst) is type(src)
    if isinstance(dst, dict):
        for (dst_key, dst_value), (src_key, src_value) in zip(
            dst.items(), src.items(), strict=False
        ):
            assert dst_key == src_key
            copy_to(dst_value, src_value)
    elif isinstance(dst, list) or (isinstance(dst, tuple) and not isinstance(dst, torch.Size)):
        for dst_item, src_item in zip(dst, src, strict=False):
            copy_to(dst_item, src_item)
    elif torch.is_tensor(dst):
        dst.copy_(src, non_blocking=True)


def get_user_input_tensor_list(inputs: Any, tlist: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors of nested arguments, in order, after those of `tlist`."""
    if isinstance(inputs, dict):
        for item in inputs.items():
            tlist = get_user_input_tensor_list(item, tlist)
    elif isinstance(inputs, (list, tuple)):
        for item in inputs:
            tlist = get_user_input_tensor_list(item, tlist)
    elif torch.is_tensor(inputs):
        tlist = (*tlist, inputs)
    return tlist


def extract_tensors(data: Any) -> list[Tensor]:
    """The tensors of a result: of sequences, dictionaries and objects with attributes."""
    if isinstance(data, Tensor):
        return [data]
    if isinstance(data, (list, tuple)):
        values: Any = data
    elif isinstance(data, dict):
        values = data.values()
    else:
        values = getattr(data, "__dict__", {}).values()
    return [tensor for value in values for tensor in extract_tensors(value)]


def get_tensor_info(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and device of a tensor."""
    return {"shape": tensor.shape, "dtype": tensor.dtype, "device": tensor.device}


def is_tensor_cache_disabled(disable_tensor_cache: bool) -> bool:
    """What ``PT_HPUGRAPH_DISABLE_TENSOR_CACHE`` says; without it, what the caller said."""
    value = os.environ.get("PT_HPUGRAPH_DISABLE_TENSOR_CACHE")
    return disable_tensor_cache if value is None else value == "1"


def wrapped_hpugraph_forward(
    cache: dict[int, CachedParams],
    stream: streams.Stream,
    orig_fwd: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    disable_tensor_cache: bool,
    asynchronous: bool,
    dry_run: bool,
    max_graphs: int | None,
) -> Any:
    """One call: capture, replay, or run op by op.

    Three keywords are taken out of `kwargs`: ``bypass_hpu_graphs`` runs op by op, ``warmup_mode``
    leaves out the replay, ``cache_tensors_list`` names tensors to keep beside the result.
    """
    warmup_mode = kwargs.pop("warmup_mode", False)
    if kwargs.pop("bypass_hpu_graphs", False):
        return orig_fwd(*args, **kwargs)
    inputs = (args, kwargs)
    key = input_hash(inputs)
    cached = cache.get(key)
    kept = extract_tensors(kwargs.pop("cache_tensors_list", []))
    disable_tensor_cache = is_tensor_cache_disabled(disable_tensor_cache)
    if cached is None:
        if max_graphs is not None and len(cache) == max_graphs:
            return orig_fwd(*args, **kwargs)
        with streams.stream(stream):
            graph = HPUGraph()
            graph.capture_begin(dry_run=dry_run or disable_tensor_cache)
            tensors = get_user_input_tensor_list(inputs, ())
            if disable_tensor_cache:
                graph.mark_user_inputs(tensors)
            outputs = orig_fwd(*args, **kwargs)
            graph.capture_end()
            graph_inputs: Any = inputs
            infos = None
            if disable_tensor_cache:
                results = extract_tensors(outputs)
                infos = [get_tensor_info(tensor) for tensor in results]
                graph.mark_user_outputs(kept + results)
                graph_inputs = _unbound(graph, tensors)
                graph.replayV3(get_user_input_tensor_list(inputs, ()), asynchronous)
            elif dry_run:
                graph.replay(asynchronous)
            cache[key] = CachedParams(graph_inputs, outputs, graph, infos, asynchronous)
        return outputs
    if warmup_mode:
        accounting.flush("mark_step")
        events.emit("mark_step", "mark_step")
        return cached.graph_outputs
    if not disable_tensor_cache:
        copy_to(cached.graph_inputs, inputs)
        cached.graph.replay(cached.asynchronous)
    else:
        tensors = get_user_input_tensor_list(inputs, ())
        copy_to(cached.graph_inputs, _unbound(cached.graph, tensors))
        cached.graph.replayV3(tensors, cached.asynchronous)
    return cached.graph_outputs


def _unbound(graph: HPUGraph, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Those of the marked inputs that a replay of the graph does not bind."""
    matched = graph.get_user_input_match_indices()
    return tuple(tensor for place, tensor in enumerate(tensors) if place not in matched)


def wrap_in_hpu_graph_func(
    func: Callable[..., Any],
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
) -> Callable[..., Any]:
    """A function that captures `func` for each new kind of call and replays it for the others.

    Args:
        func: What to capture.
        asynchronous: Passed on to each replay.
        disable_tensor_cache: Whether inputs are bound at each replay and intermediates freed.
        dry_run: Whether the capture is a dry run, after which the graph is replayed once.
        max_graphs: How many graphs are kept; calls of further kinds run op by op. None: any number.
    """
    stream = streams.default_stream()
    cache: dict[int, CachedParams] = {}

    def forward(*args: Any, **kwargs: Any) -> Any:
        return wrapped_hpugraph_forward(
            cache,
            stream,
            func,
            args,
            kwargs,
            disable_tensor_cache,
            asynchronous,
            dry_run,
            max_graphs,
        )

    return forward


def wrap_in_hpu_graph(
    module: _Module,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
) -> _Module:
    """Replace a module's `forward` by one that captures and replays; see `wrap_in_hpu_graph_func`.

    The module also gets `clear_cache()`, which drops the graphs, and `clear_inputs()`, which calls
    `HPUGraph.clear_inputs` for each. There is no way back.

    Returns:
        The module itself.
    """
    stream = streams.default_stream()
    cache: dict[int, CachedParams] = {}
    orig_fwd = module.forward

    @wraps(orig_fwd)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return wrapped_hpugraph_forward(
            cache,
            stream,
            orig_fwd,
            args,
            kwargs,
            disable_tensor_cache,
            asynchronous,
            dry_run,
            max_graphs,
        )

    def clear_cache() -> None:
        cache.clear()

    def clear_inputs() -> None:
        for cached in cache.values():
            cached.graph.clear_inputs()

    module.forward = forward
    module.clear_cache = clear_cache  # type: ignore[assignment]
    module.clear_inputs = clear_inputs  # type: ignore[assignment]
    return module
