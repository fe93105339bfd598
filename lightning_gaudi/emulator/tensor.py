"""`HPUTensor`: a CPU tensor that is, as far as Python can tell, on the device ``hpu:0``.

It is made by ``Tensor._make_subclass``, so storage, autograd, fused CPU kernels and inference mode
are the real ones; what differs is the Python type, what that type answers, and that every op goes
through `dispatch`. C++ sees a CPU tensor. `transfer` and `methods` attach what it answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.memory import Block

_device: torch.device

_make_subclass: Any = Tensor._make_subclass
_no_dispatch = torch._C._DisableTorchDispatch


OWN_ATTRIBUTES = frozenset({"_block", "_node", "_is_param"})
"""Instance attributes that are ours or say what kind of tensor it is; the others are the user's."""


class HPUTensor(Tensor):
    """A tensor on the emulated HPU.

    Attributes:
        _block: Its device memory, shared by the tensors on the same storage; None until first used.
        _node: The lazy graph that last produced or read it, and its place there (see `accounting`).
    """

    # A Python-level override would cost every call; the few that matter are methods of this class.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    _block: Block | None = None
    _node: tuple[Any, int] = (None, 0)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Always ``hpu:0``."""
        return _device

    @property
    def is_hpu(self) -> bool:
        """Whether it is on an HPU: yes."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """Whether it is on the host: no."""
        return False

    def get_device(self) -> int:
        """The index of its device."""
        return 0


def name_device() -> None:
    """Remember the device, once PyTorch knows ``"hpu"`` as ours.

    A ``torch.device("hpu")`` made before that means PyTorch's own entry of that name, and compares
    unequal to this one; both work wherever a device is asked for.
    """
    global _device
    _device = torch.device("hpu", 0)


def wrap(plain: Tensor, block: Block | None = None) -> HPUTensor:
    """Give a plain CPU tensor, which nobody else may hold, our type.

    Args:
        plain: The tensor; the result shares its storage.
        block: The block of the storage, where it has one already.
    """
    tensor: HPUTensor = _make_subclass(HPUTensor, plain, False)
    tensor._block = new_block(plain) if block is None else block
    return tensor


def new_block(tensor: Tensor, writer: Any = None) -> Block:
    """Device memory for a tensor that has none yet.

    Raises:
        NotImplementedError: The tensor is sparse.
    """
    try:
        return Block(tensor.untyped_storage().nbytes(), writer)
    except NotImplementedError:
        raise NotImplementedError(
            f"the emulated HPU holds dense tensors only, but this one is {tensor.layout}. Call "
            "to_dense() on the CPU first."
        ) from None


def unwrap(tensor: Tensor) -> Tensor:
    """A plain CPU tensor on the same storage: what kernels work on, invisible to accounting."""
    with _no_dispatch():
        return tensor.detach()


def block_of(tensor: HPUTensor) -> Block:
    """The device memory of a tensor; made here for one that C++ built without our help."""
    block = tensor._block
    if block is None:
        block = tensor._block = new_block(tensor)
        block.birth = 0  # its memory may be older than the block
    return block
