"""Masks for prompts that are padded on the left.

The mask of a causal model hides the padding and all that comes later, so a query at a padding
token sees nothing at all. What attention gives for it is undefined: PyTorch's kernels give zeros,
others NaN, which the values of padding would carry into every real token, for zero times NaN is
NaN. So such a query is let see everything. Nobody reads what comes of it, and a real token's
result is the same bit for bit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lightning_gaudi.modules.attention import OURS, build_masks_on_device

LEFT_PADDED = "gaudi_sdpa_left_padded"


def build_masks_of_prompts(model: PreTrainedModel) -> None:
    """Have a model build its masks without host reads, and for left padding.

    Where the model's attention cannot be chosen, or is another than ``"sdpa"`` and ``"eager"``, it
    stays as it is (see `build_masks_on_device`); eager attention needs no more than that, for its
    masks are finite.

    Args:
        model: The model; its config is changed in place. Saving it writes nothing of this.
    """
    if not build_masks_on_device(model):
        return
    config = model.config
    # As in `modules.attention`: the library has no public getter.
    if getattr(config, "_attn_implementation", None) != OURS["sdpa"] or config.sub_configs:
        return
    masks: Any = AttentionMaskInterface()  # type: ignore[no-untyped-call]
    forwards: Any = AttentionInterface()  # type: ignore[no-untyped-call]
    stock = masks[OURS["sdpa"]]

    def mask(*args: Any, **kwargs: Any) -> Any:
        built = stock(*args, **kwargs)
        if isinstance(built, Tensor) and built.shape[-2] > 1:  # a new token sees itself
            return built | ~built.any(-1, keepdim=True)
        return built

    AttentionMaskInterface.register(LEFT_PADDED, mask)
    AttentionInterface.register(LEFT_PADDED, forwards[OURS["sdpa"]])
    model.set_attn_implementation(LEFT_PADDED)
