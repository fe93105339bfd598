"""Attention masks of Transformers models, built without asking the host what is padded.

Given a 2-D attention mask, most models look at its values on the host and leave the mask out where
nothing is padded. On a lazy device that is one host read in every forward, and in a captured graph
the answer of the first batch. Transformers lets a mask function and an attention function be
registered under a new name (``AttentionMaskInterface.register``, ``AttentionInterface.register``)
and be chosen with ``set_attn_implementation``. The names registered here compute what ``"sdpa"``
and ``"eager"`` compute, by the library's own functions, but the mask is always built where there is
one. Without a mask nothing has to be looked at, and the library's own decision stands.

The name is kept in the model's config object only: ``save_pretrained`` does not write it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

OURS = {"sdpa": "gaudi_sdpa", "eager": "gaudi_eager"}
"""Our name by the library's."""

_STOCK = {ours: stock for stock, ours in OURS.items()}
_EAGER_FORWARD = "eager_attention_forward"


def build_masks_on_device(model: PreTrainedModel) -> bool:
    """Have a model build its attention masks without host reads.

    The result is the same as before, bit for bit where something is padded. Where a mask pads
    nothing, the model runs with that mask in place of without, so another kernel may run and the
    last bits may differ. Calling it again does nothing, but for a model that was unpickled: it
    makes the names known to the new process.

    Models whose attention the library does not let be chosen (DeBERTa, MPNet, Falcon) stay as they
    are, and so do those with other attention than ``"sdpa"`` and ``"eager"``.

    Args:
        model: The model; its config and its submodels' configs are changed in place.

    Returns:
        Whether every part of the model builds its masks this way now.
    """
    parts = _parts(model)
    if not all(_can_be_chosen(part) for part in parts):
        return False
    chosen = {id(part.config): OURS.get(_name(part.config)) for part in parts}
    if not all(chosen.values()):
        is_done = all(_name(part.config) in _STOCK for part in parts)
        if is_done:  # maybe in another process
            _register()
        return is_done
    _register()
    _choose(model, OURS)
    return all(_name(part.config) in _STOCK for part in parts)


def restore_stock_masks(model: PreTrainedModel) -> None:
    """Undo `build_masks_on_device`: the model's attention has the library's names again.

    Needed where the model object, and not its saved config, goes to a process that has not called
    `build_masks_on_device`.
    """
    if any(_name(part.config) in _STOCK for part in _parts(model)):
        _choose(model, _STOCK)


def _choose(model: PreTrainedModel, names: dict[str, str]) -> None:
    """Replace names of attention by others, part by part where parts differ."""
    own = _name(model.config)
    parts = {
        key: names.get(_name(sub), _name(sub))
        for key in getattr(model.config, "sub_configs", {})
        if (sub := getattr(model.config, key, None)) is not None
    }
    wanted = names.get(own, own)
    with _without_advice():
        if all(name == wanted for name in parts.values()):
            model.set_attn_implementation(wanted)
        else:
            model.set_attn_implementation({"": wanted, **parts})


def _parts(model: PreTrainedModel) -> list[PreTrainedModel]:
    """The model and those inside it that have a config of their own."""
    from transformers import PreTrainedModel

    seen: dict[int, PreTrainedModel] = {}
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            seen.setdefault(id(module.config), module)
    return list(seen.values())


def _name(config: PretrainedConfig) -> str:
    # The one place where the library keeps the choice; it has no public getter.
    return str(getattr(config, "_attn_implementation", None))


def _can_be_chosen(part: PreTrainedModel) -> bool:
    """Whether a model's attention goes by the registered names, and by nothing else."""
    for kind in type(part).__mro__:
        namespace = sys.modules.get(kind.__module__)
        if namespace is None or not kind.__module__.startswith("transformers.models."):
            continue
        try:
            source = inspect.getsource(namespace)
        except (OSError, TypeError):
            return False
        # Some models also ask for the name itself, and would take another path under ours.
        if "get_interface(" not in source and "ALL_ATTENTION_FUNCTIONS[" not in source:
            return False
        if '_attn_implementation == "sdpa"' in source:
            return False
        eager = [name for name in vars(namespace) if name.endswith(_EAGER_FORWARD)]
        return _name(part.config) == "sdpa" or eager == [_EAGER_FORWARD]
    return False


def _register() -> None:
    """Register our names; a second time changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    masks: Any = AttentionMaskInterface()  # type: ignore[no-untyped-call]
    forwards: Any = AttentionInterface()  # type: ignore[no-untyped-call]
    for stock, ours in OURS.items():
        AttentionMaskInterface.register(ours, _mask_function(masks, stock))
    AttentionInterface.register(OURS["sdpa"], forwards["sdpa"])
    AttentionInterface.register(OURS["eager"], _eager_forward)


def _mask_function(masks: Any, stock: str) -> Callable[..., Any]:
    """The library's mask function, told to build every mask whose values it would look at."""

    def mask(
        *args: Any,
        attention_mask: torch.Tensor | None = None,
        allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False,
        **kwargs: Any,
    ) -> Any:
        # A static cache counts its positions on the device; comparing that count is a read too.
        is_free = attention_mask is None and not isinstance(kwargs.get("q_offset"), torch.Tensor)
        return masks[stock](
            *args,
            attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip and is_free,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip and is_free,
            **kwargs,
        )

    return mask


def _eager_forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A model's own eager attention, which lies beside its attention class."""
    for kind in type(module).__mro__:
        forward = getattr(sys.modules.get(kind.__module__), _EAGER_FORWARD, None)
        if forward is not None:
            return forward(module, *args, **kwargs)
    raise AssertionError(f"{type(module).__name__} has no {_EAGER_FORWARD}")


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the library from logging that some part does not take the name; we looked."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
