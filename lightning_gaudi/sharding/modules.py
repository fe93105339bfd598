"""Shard a module's parameters over a mesh of HPUs by PyTorch's ``fully_shard``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.sharding.states import place

_CHECKPOINTED = "_lightning_gaudi_checkpointed"


def is_sharded(root: nn.Module) -> bool:
    """Whether a module or a part of it has been sharded."""
    return any(isinstance(module, FSDPModule) for module in root.modules())


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    reshard_after_forward: bool,
    mixed_precision: MixedPrecisionPolicy,
) -> None:
    """Shard the parameters of a module that are not sharded yet, as one group, in place.

    They move to the HPU, each process keeps its part, and the module's class becomes one that
    gathers them before its forward and its backward.

    Args:
        module: The module.
        mesh: The HPUs.
        reshard_after_forward: Whether the parameters are freed between forward and backward.
        mixed_precision: In which dtypes they are gathered and their gradients reduced.
    """
    fully_shard(
        module,
        mesh=mesh,
        reshard_after_forward=reshard_after_forward,
        mp_policy=mixed_precision,
    )


def sum_gradients(root: nn.Module, world_size: int) -> int:
    """Have gradients reduced without asking for a mean, which HCCL does not have.

    Args:
        root: A module, sharded wholly or in part.
        world_size: Over how many processes each group's gradients are reduced.

    Returns:
        What the loss's gradient must still be divided by: 1 where PyTorch divides.

    Raises:
        ConfigurationError: This release of PyTorch can only reduce with a mean.
    """
    divisors = set()
    for module in root.modules():
        if not isinstance(module, FSDPModule):
            continue
        force_sum: Any = getattr(module, "set_force_sum_reduction_for_comms", None)
        if force_sum is not None:
            force_sum(True)
            divisors.add(1)
            continue
        # Releases before that method (2.6, 2.7) have no public way to a sum. What a group holds
        # here goes to `reduce_scatter_tensor` as it is, and nothing is divided.
        group = getattr(module._get_fsdp_state(), "_fsdp_param_group", None)
        if group is None:  # a module whose parameters all belong to others
            continue
        if not hasattr(group, "reduce_scatter_reduce_op"):
            raise ConfigurationError(
                f"torch {torch.__version__} averages the gradients of sharded parameters in a way "
                "that HCCL does not have, and offers no sum (FSDPModule."
                "set_force_sum_reduction_for_comms). Use torch 2.9 or newer, which is Gaudi "
                "software 1.23 or newer."
            )
        group.reduce_scatter_reduce_op = ReduceOp.SUM
        divisors.add(world_size)
    return max(divisors, default=1)


def reshard(root: nn.Module) -> None:
    """Free all gathered parameters, so that each is in parts again."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_sharded(root: nn.Module) -> None:
    """Check that no trainable parameter was left out, since its gradients would not be reduced.

    Raises:
        ConfigurationError: One was.
    """
    for name, parameter in root.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            raise ConfigurationError(
                f"configure_model has sharded a part of {type(root).__name__}, but not {name!r}: "
                "its gradients would differ between the processes. Call fully_shard on a module "
                "around it too, or leave all of it to the strategy."
            )


def move_buffers(root: nn.Module, device: torch.device) -> None:
    """Move a module's buffers to a device; one that several modules share stays shared."""
    moved: dict[int, Tensor] = {}
    for module in root.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta or buffer.device == device:
                continue
            if id(buffer) not in moved:
                moved[id(buffer)] = buffer.to(device)
            setattr(module, name, moved[id(buffer)])


def is_meta(root: nn.Module | None) -> bool:
    """Whether a part of a module is on the "meta" device still."""
    return root is not None and any(t.is_meta for t in (*root.parameters(), *root.buffers()))


def materialize(root: nn.Module, device: torch.device) -> None:
    """Give parameters and buffers on the "meta" device memory and values, in place.

    The values come from each module's own ``reset_parameters``. It sees whole parameters, one
    module's at a time, of which a sharded one keeps this process's part: random numbers for a
    DTensor need a generator that can skip, which the HPU's cannot in all releases.

    Raises:
        ConfigurationError: A module that needs it has no ``reset_parameters``.
    """
    for path, module in list(root.named_modules()):
        parameters = dict(module.named_parameters(recurse=False))
        if not any(t.is_meta for t in (*parameters.values(), *module.buffers(recurse=False))):
            continue
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            raise ConfigurationError(
                f"{path or 'the module'} ({type(module).__name__}) was made on the meta device, "
                "but has no method reset_parameters() that gives its parameters and buffers their "
                "first values. Add one, or make the module on the CPU."
            )
        module.to_empty(device=device, recurse=False)
        sharded = {
            name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(parameter, DTensor)
        }
        for name, parameter in sharded.items():
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(whole, parameter.requires_grad))
        reset()
        for name, parameter in sharded.items():
            with torch.no_grad():
                part = place(getattr(module, name).detach(), parameter)
                parameter.to_local().copy_(part.to_local())
            module.register_parameter(name, parameter)


def checkpoint_activations(modules: Iterable[nn.Module]) -> None:
    """Have forwards run again in the backward instead of keeping what they computed.

    Args:
        modules: Modules whose attribute ``forward`` is replaced, once.
    """
    for module in modules:
        if not hasattr(module.forward, _CHECKPOINTED):
            module.forward = _checkpointed(module.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checkpointed_forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    setattr(checkpointed_forward, _CHECKPOINTED, True)
    return checkpointed_forward
