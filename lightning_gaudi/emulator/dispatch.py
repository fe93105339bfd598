"""Every op on an `HPUTensor`: run it, give the result our type, keep the books."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightning_gaudi.emulator import accounting, capture, events, foreach, mixed_devices
from lightning_gaudi.emulator.memory import Block
from lightning_gaudi.emulator.mode import is_lazy
from lightning_gaudi.emulator.ops import OpInfo, OpKind
from lightning_gaudi.emulator.tensor import HPUTensor, block_of, new_block, unwrap, wrap

_aten = torch.ops.aten
_no_dispatch = torch._C._DisableTorchDispatch
_is_alias_of = torch._C._is_alias_of  # type: ignore[attr-defined]
_make_subclass: Any = Tensor._make_subclass

Handler = Callable[[OpInfo, tuple[Any, ...], dict[str, Any]], Any]


def dispatch(
    func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    """Run one op. The work happens on the same objects below PyTorch's Python key."""
    entry = _entries.get(id(func))
    if entry is None:
        entry = _enter(func)
    info, handler = entry
    return handler(info, args, {} if kwargs is None else kwargs)


# By id, since an overload's own hash is Python code; `OpInfo` keeps the overload alive.
_entries: dict[int, tuple[OpInfo, Handler]] = {}


def _enter(func: OpOverload) -> tuple[OpInfo, Handler]:
    """Describe an op on its first use, and choose what handles it."""
    info = OpInfo(func)
    handler = _handlers.get(func)
    if handler is None:
        if info.kind is not OpKind.COMPUTE:
            handler = _run_special
        elif not info.has_card_kernel:
            handler = _run_on_host
        else:
            handler = _run_simple if info.is_simple else _run
    if accounting.max_ops() is not None:
        handler = _limited(handler)
    entry = _entries[id(func)] = (info, handler)
    return entry


def _limited(handler: Handler) -> Handler:
    """Flush where a graph has as many ops as it may (``PT_HPU_MAX_COMPOUND_OP_SIZE``)."""
    limit = accounting.max_ops()
    assert limit is not None

    def handle(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = handler(info, args, kwargs)
        if len(accounting.pending.ops) >= limit:
            accounting.flush("max_compound_op_size")
        return out

    return handle


def _run_simple(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`_run` for most ops: one result, nothing written to."""
    graph = accounting.pending
    part = accounting.describe(graph, info, args, kwargs)
    with _no_dispatch():
        out = info.call(*args, **kwargs) if kwargs else info.call(*args)
    if type(out) is not Tensor:
        return _finish(info, args, kwargs, out, graph, part)
    block = _block_of_alias(out, args) if info.may_alias else None
    if block is None:
        block = new_block(out, graph)
        graph.num_compute += 1
    result = _make_subclass(HPUTensor, out, False)
    result._block = block
    ops = graph.ops
    result._node = (graph, len(ops))
    ops.append(part)
    if capture.current is not None:
        capture.current.add(info, args, kwargs, result)
    elif not is_lazy():
        accounting.close_eager(info.name)
    return result


def _run(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op that joins the pending graph."""
    graph = accounting.pending
    part = accounting.describe(graph, info, args, kwargs)
    if capture.current is not None and info.writes:
        capture.current.before_write(info, args, kwargs)
    with _no_dispatch():
        out = info.call(*args, **kwargs)
    return _finish(info, args, kwargs, out, graph, part)


def _finish(
    info: OpInfo,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
    graph: accounting.LazyGraph,
    part: tuple[Any, ...],
) -> Any:
    """Type the results, add the op to its graph and, while capturing, to the capture."""
    place = len(graph.ops)
    is_compute = not info.may_alias

    def typed(plain: Tensor, node: tuple[Any, int]) -> HPUTensor:
        nonlocal is_compute
        block = _block_of_alias(plain, args) if info.may_alias else None
        if block is None:
            is_compute = True
            block = new_block(plain, graph)
        result = wrap(plain, block)
        result._node = node
        return result

    if type(out) is Tensor:
        out = typed(out, (graph, place))
    elif type(out) is tuple or type(out) is list:
        # Each result needs a place of its own; no recipe is long enough to reach these.
        out = type(out)(
            typed(item, (graph, place + (number << 32))) if type(item) is Tensor else item
            for number, item in enumerate(out)
        )
    for position in info.writes:
        target = kwargs.get(position) if isinstance(position, str) else args[position]
        for tensor in target if isinstance(target, (list, tuple)) else (target,):
            if type(tensor) is HPUTensor:
                block = block_of(tensor)
                block.writer = graph
                if type(position) is str:  # ``out=``, which the op may have resized
                    block.resize(tensor.untyped_storage().nbytes())
                tensor._node = (graph, place)
                is_compute = True
    graph.ops.append(part)
    graph.num_compute += is_compute
    if capture.current is not None:
        capture.current.add(info, args, kwargs, out)
    elif not is_lazy():
        accounting.close_eager(info.name)
    return out


def _block_of_alias(out: Tensor, args: tuple[Any, ...]) -> Block | None:
    """The block of the input whose storage a result shares; None for a result of its own.

    Storage decides, not the schema: ``reshape``, ``contiguous`` and ``to`` declare an alias and may
    copy.
    """
    for value in args:
        if type(value) is HPUTensor and _is_alias_of(out, value):
            return block_of(value)
    return None


def _run_special(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op that joins no graph."""
    if info.kind is OpKind.DATA_DEPENDENT:
        return _run_data_dependent(info, args, kwargs)
    if info.kind is OpKind.HOST_READ:
        accounting.before_host_read(info.name)
    elif info.kind is OpKind.COLLECTIVE:
        return _run_collective(info, args, kwargs)
    elif info.kind is OpKind.METADATA:
        with _no_dispatch():  # the host knows the answer, on whichever devices the tensors are
            return _wrap_all(info.call(*args, **kwargs))
    return _run_apart(info, args, kwargs)


def _run_collective(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    program = capture.current
    if program is not None:
        program.check_collective(info)
        program.before_write(info, args, kwargs)
    accounting.flush("collective")
    out = _run_apart(info, args, kwargs)
    if program is not None:
        program.add_collective(info, args, kwargs, out)
    return out


def _run_data_dependent(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    accounting.before_host_read(info.name)
    if capture.current is not None:
        capture.current.before_write(info, args, kwargs)
    return _run_apart(info, args, kwargs)


def _run_apart(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mixed_devices.check(info, args, kwargs)
    with _no_dispatch():
        out = info.call(*args, **kwargs)
    for name in info.writes:
        target = kwargs.get(name) if isinstance(name, str) else None
        if type(target) is HPUTensor:
            block_of(target).resize(target.untyped_storage().nbytes())
    return _wrap_all(out)


def _run_on_host(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A CPU fallback: what is pending is flushed, the op is no part of any recipe."""
    if capture.current is not None:
        capture.current.refuse_fallback(info)
    accounting.fall_back(info.name)
    return _run_apart(info, args, kwargs)


def _wrap_all(out: Any) -> Any:
    if type(out) is Tensor:
        return wrap(out)
    if type(out) in (tuple, list):
        return type(out)(wrap(item) if type(item) is Tensor else item for item in out)
    return out


# --- ops that are more than themselves ------------------------------------------------------------


def _copy_(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``copy_``: between two HPU tensors an op, otherwise a transfer."""
    target, source = args[0], args[1]
    if type(target) is HPUTensor and type(source) is HPUTensor:
        return _run(info, args, kwargs)
    if type(target) is HPUTensor:
        if accounting.is_pending(target):
            accounting.flush("h2d")
        if capture.current is not None:
            capture.current.add_constant(target, source)
        events.emit("h2d", info.name)
    else:
        if accounting.is_pending(source):
            accounting.flush("d2h")
        events.emit("d2h", info.name)
    with _no_dispatch():
        return info.call(*args, **kwargs)


def _foreach_copy_(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``_foreach_copy_``, which refills a graph's inputs: with fewer steps where that is right."""
    if kwargs or len(args) > 2 or capture.current is not None or not is_lazy():
        return _run(info, args, kwargs)
    return None if foreach.copy_all(info.name, *args) else _run(info, args, kwargs)


def _to_copy(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``_to_copy``: a transfer where `to_host` asked for one, otherwise an op on the device.

    A composite that hands on ``device=cpu`` means "the same device": C++ knows no better.
    """
    requests = _thread.host_requests
    if not requests or not requests[-1]:
        return _to(info, args, kwargs)
    requests[-1] = False
    if accounting.is_pending(args[0]):
        accounting.flush("d2h")
    events.emit("d2h", info.name)
    with _no_dispatch():
        return info.call(*args, **kwargs)


def _to(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``to`` in C++: on the device, except to "meta", which asks for the shape alone."""
    device = kwargs.get("device")
    if device is None or device.type != "meta":
        return _run_simple(info, args, kwargs)
    with _no_dispatch():
        return info.call(*args, **kwargs)


class _Thread(threading.local):
    """What each thread has of its own.

    Attributes:
        host_requests: Whether the copy that `to_host` asked for is still to come; a stack, as a
            mode may copy meanwhile.
    """

    def __init__(self) -> None:
        self.host_requests: list[bool] = []


_thread = _Thread()


def to_host(tensor: HPUTensor, **options: Any) -> Tensor:
    """Copy to the CPU, visibly to dispatch modes as the ``_to_copy`` that a card would run.

    Args:
        tensor: The source; autograd does not see the copy.
        options: ``dtype``, ``memory_format``, ``non_blocking`` as for ``Tensor.to``.

    Returns:
        A plain CPU tensor that shares nothing with the source.
    """
    requests = _thread.host_requests
    requests.append(True)
    try:
        with torch.no_grad():
            return _aten._to_copy.default(tensor, device=torch.device("cpu"), **options)  # type: ignore[no-any-return]
    finally:
        requests.pop()


def _detach(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``detach`` and ``alias``: the same tensor to a recipe, under another Python object."""
    source = args[0]
    with _no_dispatch():
        out = wrap(info.call(*args, **kwargs), block_of(source))
    out._node = source._node
    return out


def _index(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Indexing: with a mask its shapes depend on data, so the host must wait for them."""
    has_mask = any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    # One value for all that a mask marks is a masked fill, whatever it marks.
    is_fill = len(args) > 2 and args[2].numel() == 1
    if has_mask and not is_fill:
        return _run_data_dependent(info, args, kwargs)
    return _run(info, args, kwargs)


def _pack_padded_sequence(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Its second result, the batch sizes, lies on the host for any device."""
    data, batch_sizes = _run_on_host(info, args, kwargs)
    return data, unwrap(batch_sizes)


def _batch_norm(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``native_batch_norm`` writes to the running statistics, which its schema does not say."""
    if capture.current is not None:
        capture.current.before_write(info, args, kwargs)
    return _run(info, args, kwargs)


def _lift_fresh(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _change_storage(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``set_`` and ``resize_``: the tensor's block must follow its storage."""
    tensor = args[0]
    with _no_dispatch():
        out = info.call(*args, **kwargs)
    source = args[1] if len(args) > 1 else None
    if type(source) is HPUTensor:
        tensor._block, tensor._node = block_of(source), source._node
    elif type(tensor) is HPUTensor:
        nbytes = tensor.untyped_storage().nbytes()
        block = tensor._block
        if block is not None and info.name.startswith("resize"):
            block.resize(nbytes)
        else:
            tensor._block = new_block(tensor)
        tensor._node = (None, 0)
    return out


_handlers: dict[Any, Handler] = {
    _aten.copy_.default: _copy_,
    _aten._foreach_copy_.default: _foreach_copy_,
    _aten._to_copy.default: _to_copy,
    _aten.to.dtype_layout: _to,
    _aten.detach.default: _detach,
    _aten.alias.default: _detach,
    _aten.lift_fresh.default: _lift_fresh,
    _aten.native_batch_norm.default: _batch_norm,
    _aten._pack_padded_sequence.default: _pack_padded_sequence,
    _aten.index.Tensor: _index,
    _aten.index_put.default: _index,
    _aten.index_put_.default: _index,
    _aten._index_put_impl_.default: _index,
    **{
        getattr(_aten.set_, name): _change_storage
        for name in _aten.set_.overloads()  # type: ignore[no-untyped-call]
    },
    _aten.resize_.default: _change_storage,
    _aten.resize_as_.default: _change_storage,
}


def attach() -> None:
    """Make `dispatch` what PyTorch calls for every op on an `HPUTensor`."""
    HPUTensor.__torch_dispatch__ = staticmethod(dispatch)
