"""How Dynamo and AOTAutograd trace code that works on `HPUTensor`.

While they trace, a tensor on the HPU is a `FakeTensor` whose device is ``hpu:0``, as for any real
device: factories, moves and the check for two devices are then PyTorch's own, and a whole graph
comes out. Five things keep them from doing that by themselves:

- Dynamo traces only the types it knows as tensors;
- it would look for a ``__torch_function__`` of the subclass;
- constants (``torch.tensor(1.0, device="hpu")``) would be made on the device for real;
- PyTorch knows that an op on a card gives a contiguous result, whereas the kernels here keep the
  strides of their inputs, and a graph traced with the wrong strides fails when it runs;
- AOTAutograd wants to be told that a gradient of our type is as good as the plain one it planned.

PyTorch has no public way to say the first four of a tensor subclass, so its tables are changed here
and nowhere else; what is changed is checked to be there first.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from lightning_gaudi.emulator.errors import EmulatorError
from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor

_is_taught = False
_libraries: list[Any] = []  # kernels live as long as their library object


def teach_dynamo() -> None:
    """Make Dynamo trace `HPUTensor` as a tensor on the device ``hpu:0``. Again, it does nothing.

    Raises:
        EmulatorError: This torch has other internals than the ones this was written for.
    """
    global _is_taught
    if _is_taught:
        return
    import torch._dynamo
    import torch._refs as refs
    from torch._dynamo import device_interface, trace_rules
    from torch._dynamo.variables import builder
    from torch._subclasses import fake_impls
    from torch._subclasses.fake_tensor import FakeTensorMode

    needed: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (builder, ("infer_subclass_type",)),
        (builder.VariableBuilder, ("_type_dispatch", "wrap_tensor")),
        (FakeTensorMode, ("avoid_device_init",)),
        (fake_impls, ("is_noncontiguous_supported",)),
        (refs, ("is_noncontiguous_supported",)),
    )
    missing = [name for owner, names in needed for name in names if not hasattr(owner, name)]
    if missing:
        raise EmulatorError(
            "torch.compile on the emulated HPU relies on internals of PyTorch that torch "
            f"{torch.__version__} lacks ({', '.join(missing)}). Run without torch.compile, or "
            "install torch 2.13."
        )
    infer_subclass_type: Any = builder.infer_subclass_type

    def infer(value: Any) -> Any:
        return None if type(value) is HPUTensor else infer_subclass_type(value)

    builder.VariableBuilder._type_dispatch()[HPUTensor] = builder.VariableBuilder.wrap_tensor
    builder.infer_subclass_type = infer
    FakeTensorMode.avoid_device_init = property(_has_no_accelerator)  # type: ignore[assignment]
    modules: tuple[Any, ...] = (fake_impls, refs)
    for module in modules:
        module.is_noncontiguous_supported = _keeps_strides
    HPUTensor.__coerce_same_metadata_as_tangent__ = _accept_tangent  # type: ignore[attr-defined]
    device_interface.register_interface_for_device("hpu", _make_interface(device_interface))
    # Ops between two graphs reach our Python code, which is nothing to compile.
    trace_rules.add("lightning_gaudi.emulator")
    key: Any = torch._C.DispatchKey
    if not torch._C._dispatch_has_backend_fallback(key.AutocastPrivateUse1):
        # Ops that autocast does not list pass it by on every stock device, but not yet on ours.
        library: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
        library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        _libraries.append(library)
    _is_taught = True


def _has_no_accelerator(mode: Any) -> bool:
    """Whether constants are made on the CPU, with their move to the device a part of the graph.

    PyTorch does so where the machine lacks the device; the emulated one is no reason not to.
    """
    return not (torch.cuda.is_available() or torch.xpu.is_available())


def _keeps_strides(device: torch.device | None) -> bool:
    return True


def _accept_tangent(self: HPUTensor, meta: Any, kind: Any = None) -> HPUTensor:
    """What AOTAutograd asks of a gradient of another type than the one it traced with."""
    return self


def _make_interface(device_interface: Any) -> Any:
    """What Dynamo asks of a device; the same names as in ``dynamo/device_interface.py``."""
    from lightning_gaudi.emulator import device_module

    class HpuInterface(device_interface.DeviceInterface):  # type: ignore[misc]
        current_device = staticmethod(device_module.current_device)
        set_device = staticmethod(device_module.set_device)
        device_count = staticmethod(device_module.device_count)
        is_available = staticmethod(device_module.is_available)
        synchronize = staticmethod(device_module.synchronize)

    return HpuInterface


_plain_compile: Any = torch.compile


def _compile(*args: Any, **kwargs: Any) -> Any:
    from lightning_gaudi.emulator import compile_backend

    compile_backend.register()
    return _plain_compile(*args, **kwargs)


def attach() -> None:
    """Get ready for ``torch.compile``, without importing Dynamo until somebody needs it."""
    replace(torch, "compile", _compile)
    if "torch._dynamo" in sys.modules:
        from lightning_gaudi.emulator import compile_backend

        compile_backend.register()
