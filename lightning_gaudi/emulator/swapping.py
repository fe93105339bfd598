"""Moving a parameter between host and device while everybody keeps the same Python object.

On a card ``param.data = moved`` does that. Here a tensor's device is its Python type, so the two
objects exchange everything: type, attributes, and what they point to in C++. PyTorch has
``torch.utils.swap_tensors`` for this, and `Module.to` uses it where asked; but it refuses while
a weak reference or a live autograd graph holds the parameter, which is the case whenever an
exception's traceback is being handled. An old graph does no harm: it keeps the old tensor, and
a backward through it into the parameter raises, as it does on two devices.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.emulator.tensor import OWN_ATTRIBUTES, HPUTensor

_plain_swap = torch.utils.swap_tensors
_STOCK_TYPES = (Tensor, nn.Parameter)


def swap_tensors(t1: Tensor, t2: Tensor) -> None:
    """Make `t1` what `t2` is; `t2` becomes what is left of `t1`. Serves plain tensors too."""
    kinds = (type(t1) is HPUTensor, type(t2) is HPUTensor)
    if kinds[0] != kinds[1]:
        exchange(t1, t2)
    elif kinds[0] or (
        type(t1) in _STOCK_TYPES
        and type(t2) in _STOCK_TYPES
        and torch._has_compatible_shallow_copy_type(t1, t2)
    ):
        # What PyTorch does when nobody asks for swapping; our asking must change nothing here.
        t1.data = t2.detach() if t2.requires_grad else t2
    else:
        _plain_swap(t1, t2)  # type: ignore[no-untyped-call]


def exchange(t1: Tensor, t2: Tensor) -> None:
    """Swap two tensors on different devices. User's attributes and hooks stay with `t1`."""
    _poison(t1)
    kept = {name: value for name, value in vars(t1).items() if name not in OWN_ATTRIBUTES}
    _swap_in_cpp(t1, t2)
    t1.__class__, t2.__class__ = t2.__class__, t1.__class__
    t1.__dict__, t2.__dict__ = t2.__dict__, t1.__dict__
    for name, value in kept.items():
        vars(t1).setdefault(name, value)
    # C++ keeps hooks with the tensor that has just left; registering them again brings them over.
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks = getattr(t1, name)
        if hooks:
            setattr(t1, name, None)
            setattr(t1, name, hooks)


def _swap_in_cpp(t1: Tensor, t2: Tensor) -> None:
    """Swap what C++ has of two tensors, before Python's part: it may refuse.

    Raises:
        RuntimeError: Something holds a weak reference in C++, as a profile with
            ``record_shapes=True`` does to every tensor that it has seen.
    """
    try:
        torch._C._swap_tensor_impl(t1, t2)
    except RuntimeError as error:
        gc.collect()  # a profile that has ended is garbage in a cycle
        try:
            torch._C._swap_tensor_impl(t1, t2)
        except RuntimeError:
            raise RuntimeError(
                f"the emulated HPU cannot move this tensor: {error}. Drop what holds it, such as a "
                "torch.profiler.profile(record_shapes=True), before the move."
            ) from None


def _poison(tensor: Tensor) -> None:
    """Make a backward through a graph of before the move raise: its gradient would be lost."""
    if tensor.is_leaf and tensor.requires_grad and tensor._use_count() > 1:  # type: ignore[attr-defined]
        torch.autograd.graph.get_gradient_edge(tensor).node.register_prehook(_refuse_backward)


def _refuse_backward(grad_outputs: Any) -> None:
    raise RuntimeError(
        "backward reached a parameter that was moved between cpu and hpu after the forward. Move "
        "the module before the forward, or after the backward."
    )


def attach() -> None:
    """Let `Module.to` and `load_state_dict` swap parameters, in our way."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.utils.swap_tensors = swap_tensors
