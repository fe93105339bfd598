"""``torch.autocast("hpu")``, by the bridge's op lists.

Autocast looks at a tensor's C++ device, which is the CPU's here. So while autocast is on for
``"hpu"`` it is on for ``"cpu"`` too, and PyTorch's autocast kernels for the CPU are wrapped: a call
with a tensor on the HPU follows the HPU's lists and setting, any other one the CPU's own. The
wrappers go in when autocast is first used.

Casts are not cached: the bridge disables that for good, whatever ``cache_enabled`` says, because a
cached cast would outlive its graph (1.19.0, ``hpu_autocast``).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload

from lightning_gaudi.emulator.autocast_lists import CastPolicy, load_policies

SUPPORTED_DTYPES = [torch.bfloat16, torch.float16]

_set_enabled = torch.set_autocast_enabled
_set_dtype = torch.set_autocast_dtype
_is_enabled = torch.is_autocast_enabled

_KEYS = ("AutocastCPU", "AutocastPrivateUse1")
_NUMBERS = (bool, int, float, complex)
_LOWERED = frozenset({torch.float16, torch.bfloat16, torch.float32})
_no_autocast = DispatchKeySet(DispatchKey.AutocastCPU) | DispatchKeySet(
    DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]
)
# Everything of lower priority than autocast: the key set to go on with.
_below = torch._C._dispatch_keyset_full_after(DispatchKey.AutocastCPU)
_libraries: list[Any] = []  # kernels live as long as their library object


class _State(threading.local):
    """The CPU's own setting while ours covers it; autocast is a setting of each thread."""

    cpu_was_enabled: bool | None = None

    def is_cpu_enabled(self) -> bool:
        """Whether the user has turned autocast on for the CPU itself."""
        return _is_enabled("cpu") if self.cpu_was_enabled is None else self.cpu_was_enabled


_state = _State()


def _set_autocast_enabled(*args: Any) -> None:
    device_type, enabled = args if len(args) == 2 else ("cuda", args[0])
    if enabled and device_type in ("cpu", "hpu") and not _libraries:
        _register()
    if device_type == "cpu" and _state.cpu_was_enabled is not None:
        _state.cpu_was_enabled = enabled
        return
    _set_enabled(*args)
    if device_type != "hpu":
        return
    if enabled and _state.cpu_was_enabled is None:
        _state.cpu_was_enabled = _is_enabled("cpu")
        _set_enabled("cpu", True)
    elif not enabled and _state.cpu_was_enabled is not None:
        cpu_was_enabled, _state.cpu_was_enabled = _state.cpu_was_enabled, None
        _set_enabled("cpu", cpu_was_enabled)


def _is_autocast_enabled(*args: Any) -> bool:
    return _state.is_cpu_enabled() if args == ("cpu",) else _is_enabled(*args)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, Tensor))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """An argument in a dtype, where it is a floating-point tensor on the HPU, or a list of them."""
    if isinstance(value, Tensor):
        is_eligible = value.dtype in _LOWERED and value.device.type == "hpu"
        return value.to(dtype) if is_eligible and value.dtype != dtype else value
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _widest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype:
    lower = torch.get_autocast_dtype("hpu")
    dtypes = {t.dtype for t in _tensors(args, kwargs) if t.device.type == "hpu"} & _LOWERED
    if other := dtypes - {lower, torch.float32}:
        raise RuntimeError(
            f"autocast to {lower} cannot combine tensors of {lower} or float32 with "
            f"{other.pop()}. Cast them to one dtype first."
        )
    return torch.float32 if torch.float32 in dtypes else lower


def _cast_all(
    policy: CastPolicy, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if policy is CastPolicy.LOWER_FIRST:
        return (_cast(args[0], torch.get_autocast_dtype("hpu")), *args[1:]), kwargs
    if policy is CastPolicy.FP32:
        dtype = torch.float32
    elif policy is CastPolicy.LOWER:
        dtype = torch.get_autocast_dtype("hpu")
    else:
        dtype = _widest(args, kwargs)
    return (
        tuple(_cast(value, dtype) for value in args),
        {name: _cast(value, dtype) for name, value in kwargs.items()},
    )


def _kernel(
    func: OpOverload, policy: CastPolicy | None, stock: Callable[..., Any] | None
) -> Callable[..., Any]:
    """What autocast does for an op.

    Args:
        func: The op.
        policy: The HPU's policy; None where it is on none of its lists.
        stock: PyTorch's own autocast kernel for the CPU, where it has one.
    """
    operands = [
        place
        for place, argument in enumerate(func._schema.arguments)
        if isinstance(argument.type, torch.TensorType) and not argument.kwarg_only
    ]

    def kernel(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if any(tensor.device.type == "hpu" for tensor in _tensors(args, kwargs)):
            if policy is not None and _is_enabled("hpu"):
                with torch._C._ExcludeDispatchKeyGuard(_no_autocast):
                    args, kwargs = _cast_all(policy, args, kwargs)
                    return func(*args, **kwargs)
        elif stock is not None and _state.is_cpu_enabled():
            return stock(keyset, *args, **kwargs)
        # ``x * 2`` brings a number where the schema has a tensor; `redispatch` does not take it.
        if any(type(args[place]) in _NUMBERS for place in operands if place < len(args)):
            with torch._C._ExcludeDispatchKeyGuard(_no_autocast):
                return func(*args, **kwargs)
        return func.redispatch(keyset & _below, *args, **kwargs)

    return kernel


def _register() -> None:
    """Wrap the ops of the HPU's lists and those that PyTorch casts on the CPU."""
    policies = load_policies()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # That a kernel is there already is the point of wrapping it.
        warnings.filterwarnings("ignore", ".*only once for all operators.*")
        for name in torch._C._dispatch_get_all_op_names():
            namespace, _, rest = name.partition("::")
            base, _, overload = rest.partition(".")
            policy = policies.get(base)
            is_cast_on_cpu = namespace == "aten" and has_kernel(name, "AutocastCPU")
            if namespace != "aten" or (policy is None and not is_cast_on_cpu):
                continue
            func = getattr(getattr(torch.ops.aten, base), overload or "default")
            if func._schema.is_mutable:
                continue  # ``out=`` and in place are never cast
            stock = torch.library.get_kernel(name, "AutocastCPU") if is_cast_on_cpu else None
            call = None if stock is None else stock.call_boxed
            for key in _KEYS:
                library.impl(
                    rest, _kernel(func, policy, call), key, with_keyset=True, allow_override=True
                )
    _libraries.append(library)


def attach() -> None:
    """Mirror the setting for ``"hpu"`` to ``"cpu"``."""
    torch.set_autocast_enabled = _set_autocast_enabled  # type: ignore[assignment]
    torch.is_autocast_enabled = _is_autocast_enabled  # type: ignore[assignment]
    _set_dtype("hpu", torch.bfloat16)
