"""``make_graphed_callables``: forward and backward of a module or function, each as a graph.

From bridge 1.19.0, ``hpu/graphs.py``, with its conventions: the sample arguments' own tensors are
the static inputs, results and gradients are the same memory every time, and a gradient that
autograd keeps for a parameter lies in it, so that a second backward without ``zero_grad`` in
between overwrites the first one's before it adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from habana_frameworks.torch.hpu._wrapping import get_user_input_tensor_list
from torch import Tensor, nn

from lightning_gaudi.emulator import accounting, streams
from lightning_gaudi.emulator.hpu_graph import HPUGraph, graph
from lightning_gaudi.emulator.tensor import HPUTensor, unwrap, wrap

Callable_ = Callable[..., Any]


@dataclass(kw_only=True)
class _Graphed:
    """One callable with its graphs.

    Attributes:
        forward_graph: Its forward.
        backward_graph: Its backward.
        args: The static inputs: the sample arguments.
        params: Its parameters, for a module.
        was_tensor: Whether it returns one tensor rather than a tuple.
        outputs: What the captured forward returned.
        grad_outputs: Static gradients of the outputs; None for one that needs no gradient.
        grad_inputs: Static gradients of arguments and parameters, None alike.
    """

    forward_graph: HPUGraph
    backward_graph: HPUGraph
    args: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    was_tensor: bool = False
    outputs: tuple[Tensor, ...] = ()
    grad_outputs: tuple[Tensor | None, ...] = ()
    grad_inputs: tuple[Tensor | None, ...] = ()

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """Arguments and parameters that need gradients."""
        return tuple(tensor for tensor in (*self.args, *self.params) if tensor.requires_grad)


def make_graphed_callables(
    callables: Any,
    sample_args: tuple[Any, ...],
    warmups: int = 0,
    allow_unused_input: bool = False,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
) -> Any:
    """Capture forward and backward of callables; calling what comes back replays both.

    Args:
        callables: A module or a function, or a tuple of them in the order in which they run.
        sample_args: A tuple of tensors, or one such tuple for each callable. They become the static
            inputs: calls copy into them. Keyword arguments are not supported.
        warmups: How often forward and backward run before the captures.
        allow_unused_input: Whether an input that no output depends on is fine; its gradient is 0.
        asynchronous: Passed on to each replay.
        disable_tensor_cache: Whether inputs are bound at each replay.
        dry_run: Whether the captures are dry runs.

    Returns:
        For a module the module itself, whose `forward` replays as long as it is in the mode
        (training or evaluation) that it was captured in; for a function another one.

    Raises:
        AssertionError: A module has hooks or a buffer that needs gradients, or an argument is no
            tensor.
    """
    is_single = not isinstance(callables, tuple)
    if is_single:
        callables, sample_args = (callables,), (sample_args,)
    for function, args in zip(callables, sample_args, strict=True):
        _check(function, args)
    graphed = [
        _Graphed(
            forward_graph=HPUGraph(),
            backward_graph=HPUGraph(),
            args=tuple(args),
            params=tuple(function.parameters()) if isinstance(function, nn.Module) else (),
        )
        for function, args in zip(callables, sample_args, strict=True)
    ]
    if warmups > 0:
        _warm_up(callables, graphed, warmups, allow_unused_input)
    accounting.flush("synchronize")
    is_dry_run = dry_run or disable_tensor_cache
    for function, each in zip(callables, graphed, strict=True):
        _capture_forward(function, each, is_dry_run, disable_tensor_cache)
    for each in reversed(graphed):
        _capture_backward(each, is_dry_run, disable_tensor_cache, allow_unused_input)
    results: list[Callable_] = []
    for function, each in zip(callables, graphed, strict=True):
        run = (_bound if disable_tensor_cache else _copying)(each, asynchronous)
        if isinstance(function, nn.Module):
            function.forward = _choose_by_mode(function, run)
            results.append(function)
        else:
            results.append(run)
    return results[0] if is_single else tuple(results)


def _check(function: Callable_, args: Sequence[Any]) -> None:
    if isinstance(function, nn.Module):
        hooks = (function._backward_hooks, function._forward_hooks, function._forward_pre_hooks)
        assert not any(hooks), (
            "make_graphed_callables: the module has hooks. Register them after it is graphed."
        )
        assert not any(buffer.requires_grad for buffer in function.buffers()), (
            "make_graphed_callables: a buffer requires grad; only parameters may be trained."
        )
    assert all(isinstance(arg, Tensor) for arg in args), (
        "make_graphed_callables: sample_args must be tensors; other arguments and keywords are "
        "not supported."
    )


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _warm_up(
    callables: tuple[Callable_, ...],
    graphed: list[_Graphed],
    warmups: int,
    allow_unused_input: bool,
) -> None:
    accounting.flush("synchronize")
    with streams.stream(streams.default_stream()):
        for function, each in zip(callables, graphed, strict=True):
            for _ in range(warmups):
                outputs = _as_tuple(function(*each.args))
                torch.autograd.grad(
                    outputs,
                    each.differentiable,
                    tuple(torch.empty_like(output) for output in outputs),
                    allow_unused=allow_unused_input,
                )


def _capture_forward(
    function: Callable_, each: _Graphed, is_dry_run: bool, disable_tensor_cache: bool
) -> None:
    with graph(each.forward_graph, stream=streams.default_stream(), dry_run=is_dry_run):
        if disable_tensor_cache:
            each.forward_graph.mark_user_inputs(each.args)
        outputs = function(*each.args)
    each.was_tensor = isinstance(outputs, Tensor)
    each.outputs = _as_tuple(outputs)


def _capture_backward(
    each: _Graphed, is_dry_run: bool, disable_tensor_cache: bool, allow_unused_input: bool
) -> None:
    each.grad_outputs = tuple(
        torch.empty_like(output) if output.requires_grad else None for output in each.outputs
    )
    with graph(each.backward_graph, stream=streams.default_stream(), dry_run=is_dry_run):
        if disable_tensor_cache:
            each.backward_graph.mark_user_inputs(
                get_user_input_tensor_list(each.grad_outputs, ()) + each.args
            )
        grads = torch.autograd.grad(
            tuple(output for output in each.outputs if output.requires_grad),
            each.differentiable,
            tuple(grad for grad in each.grad_outputs if grad is not None),
            allow_unused=allow_unused_input,
            materialize_grads=allow_unused_input,
        )
    of_tensor = iter(grads)
    each.grad_inputs = tuple(
        next(of_tensor) if tensor.requires_grad else None for tensor in (*each.args, *each.params)
    )


def _on_device(grad: Tensor) -> Tensor:
    """Zeros that autograd made in C++ for an output without a gradient are plain tensors."""
    return grad if type(grad) is HPUTensor else wrap(unwrap(grad))


def _detached(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.detach() for tensor in tensors)


def _copying(each: _Graphed, asynchronous: bool) -> Callable_:
    """Replays that copy into the static inputs."""

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            for static, given in zip(each.args, inputs, strict=False):
                static.copy_(given)
            each.forward_graph.replay(asynchronous)
            return _detached(each.outputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *grads: Tensor) -> Any:
            for static, given in zip(each.grad_outputs, grads, strict=True):
                if static is not None:
                    static.copy_(_on_device(given))
            each.backward_graph.replay(asynchronous)
            return _detached(each.grad_inputs)

    return _calling(Graphed, each)


def _bound(each: _Graphed, asynchronous: bool) -> Callable_:
    """Replays that bind the inputs, and copy those only that the graphs do not bind."""

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            given = inputs[: len(each.args)]
            _copy_unbound(each.forward_graph, each.args, given)
            ctx.save_for_backward(*given)
            each.forward_graph.replayV3(given, asynchronous)
            return _detached(each.outputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *grads: Tensor) -> Any:
            pairs = [
                (static, _on_device(given))
                for static, given in zip(each.grad_outputs, grads, strict=True)
                if static is not None
            ]
            given = tuple(grad for _, grad in pairs)
            _copy_unbound(each.backward_graph, [static for static, _ in pairs], given)
            each.backward_graph.replayV3((*given, *ctx.saved_tensors), asynchronous)
            return _detached(each.grad_inputs)

    return _calling(Graphed, each)


def _copy_unbound(captured: HPUGraph, static: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    matched = captured.get_user_input_match_indices()
    for place, (target, source) in enumerate(zip(static, given, strict=True)):
        if place not in matched:
            target.copy_(source)


def _calling(function: Any, each: _Graphed) -> Callable_:
    def call(*args: Tensor) -> Any:
        outputs = function.apply(*args, *each.params)
        return outputs[0] if each.was_tensor else outputs

    return call


def _choose_by_mode(module: nn.Module, graphed: Callable_) -> Callable_:
    captured_in_training, orig_fwd = module.training, module.forward

    def forward(*args: Any) -> Any:
        if module.training == captured_in_training:
            return graphed(*args)
        return orig_fwd(*args)

    return forward
