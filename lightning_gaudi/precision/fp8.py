"""Linear layers of the Transformer Engine in the place of PyTorch's, with the same weights.

A new layer gets the old one's `Parameter` objects, so weights stay what and where they were, ties
hold, and optimizers find them. What the layer keeps besides (scales, and the largest values of
past steps) is left out of the module's ``state_dict``, whose names are those of the model without
fp8: checkpoints go both ways. `Fp8Layers.state_dict` has it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import transformer_engine

_MULTIPLE = 16  # of both features of a layer, for the fp8 product (``fp8_autocast``, bridge)
_EXTRA_STATE = "_extra_state"
# Made here: their extra state is in no module's ``state_dict``, whoever converts the module next.
_made_here: WeakSet[nn.Module] = WeakSet()


class Fp8Layers:
    """The layers of one module that compute in 8 bits.

    Attributes:
        replaced: Names of the layers whose place was taken.
        unfit: Names of linear layers whose sizes are no multiples of 16, left as they were.
    """

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self.unfit: list[str] = []
        self._layers: dict[str, nn.Module] = {}

    def replace_in(self, module: nn.Module, skip: Sequence[str] = ()) -> None:
        """Put layers of the Transformer Engine in the place of a module's `torch.nn.Linear`.

        Subclasses of `torch.nn.Linear` are left alone, since they may compute something else. A
        module that is itself a linear layer is left alone too.

        Args:
            module: The module, changed in place.
            skip: Names of layers to leave as they are, as in ``named_modules``; ``*`` stands for
                anything, and the name of a module for all inside it.

        Raises:
            ConfigurationError: An entry of ``skip`` fits no module.
        """
        names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
        for pattern in skip:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigurationError(
                    f"skip_layers must name modules of the model, but {pattern!r} fits none. Its "
                    f"modules: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
                )
        engine: Any = transformer_engine.load()
        skipped = {
            id(inner)
            for name, inner in module.named_modules(remove_duplicate=False)
            if any(_is_at_or_in(name, pattern) for pattern in skip)
        }
        made: dict[int, nn.Module] = {}  # a layer in two places stays one layer
        seen: set[int] = set()
        for place, child in list(module.named_modules(remove_duplicate=False)):
            if not place or type(child) is not nn.Linear or id(child) in skipped:
                continue
            is_new = id(child) not in seen
            seen.add(id(child))
            if child.in_features % _MULTIPLE or child.out_features % _MULTIPLE:
                if is_new:
                    self.unfit.append(place)
                continue
            if is_new:
                made[id(child)] = _layer_like(child, engine)
                self.replaced.append(place)
            parent, _, name = place.rpartition(".")
            setattr(module.get_submodule(parent), name, made[id(child)])

    def find_in(self, module: nn.Module) -> None:
        """Take charge of the layers that were put into a module, now or before.

        Args:
            module: The module; an earlier one is forgotten.
        """
        self._layers = {
            name: layer for name, layer in module.named_modules() if layer in _made_here
        }

    def state_dict(self) -> dict[str, Any]:
        """What the layers keep besides their weights, by name."""
        return {name: layer.get_extra_state() for name, layer in self._layers.items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Go on with what `state_dict` has returned. Layers without a state begin anew.

        The Transformer Engine unpickles these states, so load none from a source you do not trust.
        """
        for name, state in states.items():
            if name in self._layers:
                self._layers[name].set_extra_state(state)


def is_engine_layer(module: nn.Module) -> bool:
    """Whether a module is of the Transformer Engine."""
    engine = transformer_engine.load().__name__
    return any(
        base.__module__ == engine or base.__module__.startswith(f"{engine}.")
        for base in type(module).__mro__
    )


def _is_at_or_in(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _layer_like(linear: nn.Linear, engine: Any) -> nn.Module:
    """A layer of the Transformer Engine with the parameters and the mode of a linear one."""
    weight = linear.weight
    bias: nn.Parameter | None = linear.bias
    # Its own weights are dropped at once, so they need neither memory nor random numbers.
    layer: Any = engine.Linear(
        linear.in_features,
        linear.out_features,
        bias=bias is not None,
        params_dtype=weight.dtype,
        device="meta",
    )
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    elif isinstance(layer.__dict__.get("bias"), Tensor):  # a plain attribute: no move reaches it
        layer.bias = weight.detach().new_empty(0)
    layer.train(linear.training)
    _made_here.add(layer)
    _keep_extra_state_out(layer)
    result: nn.Module = layer
    return result


def _keep_extra_state_out(layer: nn.Module) -> None:
    """Make a layer's ``state_dict`` that of a linear one, to save and to load."""

    def drop(module: Any, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        state_dict.pop(prefix + _EXTRA_STATE, None)

    def supply(module: Any, state_dict: Any, prefix: str, *others: Any) -> None:
        # A strict load wants the entry; a file written by the layer itself may bring its own.
        if prefix + _EXTRA_STATE not in state_dict:
            state_dict[prefix + _EXTRA_STATE] = module.get_extra_state()

    hooks: Any = layer
    hooks.register_state_dict_post_hook(drop)
    hooks.register_load_state_dict_pre_hook(supply)
