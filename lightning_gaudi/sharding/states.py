"""State of modules and optimizers between two forms: in parts on the HPUs, and whole on the host.

Whole, it is what one process that shards nothing would have: the same names, order and types. So a
checkpoint goes from one card to many and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Optimizer


class Gatherer:
    """Makes whole tensors on the host; all processes must gather the same in the same order.

    What is met twice, a tied weight, comes out as one tensor twice.

    Args:
        is_kept: Whether this process wants the result. One that does not takes part in the
            gathering, and gets None for each tensor.
    """

    def __init__(self, *, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._gathered: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, value: Any) -> Any:
        """Gather the tensors in dicts, lists and tuples; anything else comes back as it is."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {key: self(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self, value))
        return value

    def _tensor(self, tensor: Tensor) -> Tensor | None:
        if id(tensor) not in self._gathered:
            with torch.no_grad():
                whole = tensor.detach()
                if isinstance(whole, DTensor):
                    whole = whole.full_tensor()
                # One at a time, so that the device never holds more than one whole tensor.
                kept = whole.cpu() if self._is_kept else None
                if kept is not None and kept.data_ptr() == tensor.data_ptr():
                    kept = kept.clone()  # of the host already, and the next step changes it
            # The source is kept as well, or another tensor might get its id.
            self._gathered[id(tensor)] = (tensor, kept)
        return self._gathered[id(tensor)][1]


def place(value: Tensor, like: DTensor) -> DTensor:
    """This process's part of a whole tensor, placed as another one is.

    Args:
        value: The whole tensor, on the host; the same in all processes.
        like: A tensor of the same shape.

    Returns:
        A tensor on `like`'s device and with `value`'s dtype, which shares nothing with either.
    """
    mesh, placements = like.device_mesh, like.placements
    device = like.to_local().device
    if not all(type(placement) in (Shard, Replicate) for placement in placements):
        return distribute_tensor(value.to(device), mesh, placements)
    part = value
    for dimension, placement in enumerate(placements):
        if isinstance(placement, Shard):
            parts = part.chunk(mesh.size(dimension), placement.dim)
            rank = mesh.get_local_rank(dimension)
            empty = part.narrow(placement.dim, 0, 0)
            part = parts[rank] if rank < len(parts) else empty
    return DTensor.from_local(
        part.contiguous().to(device, copy=True),
        mesh,
        placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def place_module_state(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A module's whole state in this process's parts, to be loaded by ``load_state_dict``.

    What has another shape or no place in the module comes back as it is, for ``load_state_dict`` to
    complain about.
    """
    present = module.state_dict()
    return {name: _placed(value, present.get(name)) for name, value in state.items()}


def _placed(value: Any, like: Any) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return place(value, like)


def place_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state in this process's parts, to be loaded by ``load_state_dict``.

    Args:
        state: As ``Optimizer.state_dict`` gives it; parameters are known by their place in their
            group, as PyTorch knows them.
        optimizer: Its parameters say how the state is placed.
    """
    saved = [number for group in state["param_groups"] for number in group["params"]]
    parameters = dict(zip(saved, _parameters(optimizer), strict=False))
    return {
        **state,
        "state": {
            number: {name: _placed(value, parameters.get(number)) for name, value in values.items()}
            for number, values in state["state"].items()
        },
    }


def name_optimizer_state(
    state: Mapping[str, Any], optimizer: Optimizer, module: nn.Module
) -> dict[str, Any]:
    """An optimizer's state with parameters known by their names in a module, not by numbers."""
    names = _names(optimizer, module)
    return {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def number_optimizer_state(
    state: Mapping[str, Any], optimizer: Optimizer, module: nn.Module
) -> dict[str, Any]:
    """The inverse of `name_optimizer_state`: parameters by number, in `optimizer`'s own order."""
    numbers = {name: number for number, name in enumerate(_names(optimizer, module))}
    groups = state["param_groups"]
    own = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    if [len(group["params"]) for group in groups] == [len(params) for params in own]:
        groups = [{**group, "params": params} for group, params in zip(groups, own, strict=True)]
    # Else ``load_state_dict`` says that they do not match.
    return {
        "state": {numbers.get(name, name): values for name, values in state["state"].items()},
        "param_groups": groups,
    }


def _names(optimizer: Optimizer, module: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        names.get(id(parameter), f"outside the module, {number}")
        for number, parameter in enumerate(_parameters(optimizer))
    ]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
