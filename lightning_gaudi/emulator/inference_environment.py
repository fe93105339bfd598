"""Preparing a model for inference (bridge 1.19.0, ``core/quantization.py``).

The SDK sets switches of its compiler, folds batch norms into the convolutions before them, and
marks parameters as constants. Only the folding can be seen from Python; the switches are kept.
"""

from __future__ import annotations

import os
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_gaudi.emulator import switches


def set_inference_env(model: nn.Module | None = None) -> nn.Module | None:
    """Switch to inference, before the model moves to the device.

    Args:
        model: A model in evaluation mode on the CPU, whose convolutions take up the batch norms
            that alone follow them.

    Returns:
        A copy with the batch norms folded in; `model` itself where that cannot be (it trains, is
        not on the CPU, or torch.fx cannot trace it), with a line that says so; None without a
        model.
    """
    _enable()
    if os.environ.get("PT_HPU_WEIGHT_SHARING", "1") == "1":
        print(
            "WARNING: weight sharing is on and may need more device memory for quantized models. "
            "Set PT_HPU_WEIGHT_SHARING=0 to switch it off."
        )
    return None if model is None else _fold_batch_norms(model)


def inference_initialize(
    model: nn.Module | None = None,
    mark_only_scales_as_const: bool = False,
    optimizer: Any = None,
    args: Any = None,
) -> None:
    """Switch to inference, after the model has moved to the device.

    Args:
        model: The model, whose parameters a card takes for constants from now on.
        mark_only_scales_as_const: Whether it takes only the scales for constants.
        optimizer: Ignored, as the SDK does.
        args: Ignored, as the SDK does.
    """
    _enable()


def teardown_inference_env() -> None:
    """Switch back to training."""
    switches.disable_inference_mode()
    switches.disable_matmul3d_2d_reshape()


def _enable() -> None:
    switches.enable_inference_mode()
    switches.enable_matmul3d_2d_reshape()


def _fold_batch_norms(model: nn.Module) -> nn.Module:
    if model.training:
        print("Fusion is only applicable for eval mode")
        return model
    if not all(parameter.is_cpu for parameter in model.parameters()):
        print("This fusion pass is to be run for model on CPU, Skipping!")
        return model
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # whatever torch.fx makes of a model that it cannot trace
        print("Can not apply conv+bn fusion on a non-fx traceable module, Skipping!")
        return model
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        norm, convolution = modules[str(node.target)], modules[str(source.target)]
        if type(norm) is not nn.BatchNorm2d or type(convolution) is not nn.Conv2d:
            continue
        if len(source.users) > 1:  # others need the convolution's own result
            continue
        fused = fuse_conv_bn_eval(convolution, norm)
        traced.set_submodule(str(source.target), fused)
        modules[str(source.target)] = fused
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced
