"""The layers."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import fp8


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Linear) -> Tensor:
        dtype = torch.hpu.get_autocast_hpu_dtype()
        x8, w8 = layer.rounded(x.to(dtype), 0), layer.rounded(weight.to(dtype), 1)
        ctx.save_for_backward(x8, w8)
        ctx.layer, ctx.has_bias, ctx.dtype = layer, bias is not None, x.dtype
        with torch.autocast("hpu", enabled=False):
            return functional.linear(x8, w8, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x8, w8 = ctx.saved_tensors
        grad8 = ctx.layer.rounded(grad, 2)
        rows = grad8.flatten(0, -2)
        grad_bias = grad.flatten(0, -2).sum(0).float() if ctx.has_bias else None
        grad_weight = (rows.T @ x8.flatten(0, -2)).float()
        return (grad8 @ w8).to(ctx.dtype), grad_weight, grad_bias, None


class TransformerEngineBaseModule(nn.Module):
    """What layers keep beside their weights: the largest values of past steps."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {}

    def get_extra_state(self) -> Tensor:
        """Bytes of a pickle, as the real one has it."""
        state = {name: value.cpu() for name, value in self.fp8_meta.items()} or None
        return torch.tensor(np.frombuffer(pickle.dumps(state), dtype=np.uint8))

    def set_extra_state(self, state: Tensor) -> None:
        """Load them."""
        found = pickle.loads(state.cpu().numpy().tobytes())
        if found is not None:
            self.fp8_meta = {name: value.to("hpu") for name, value in found.items()}

    def rounded(self, tensor: Tensor, place: int) -> Tensor:
        """A tensor rounded to 8 bits and back; notes its largest value in training."""
        dtype = fp8.recipe.fp8_format.value[place == 2] if fp8.recipe else torch.float8_e5m2
        history = self.fp8_meta["amax_history"]
        largest = history[:, place].max()
        if self.training:
            history[1:, place] = history[:-1, place].clone()
            history[0, place] = tensor.detach().abs().max()
        limit = torch.finfo(dtype).max
        scale = torch.where(largest > 0, (limit / largest).log2().floor().exp2(), 1.0)
        scaled = (tensor.float() * scale).clamp(-limit, limit)
        return (scaled.to(dtype).float() / scale).to(tensor.dtype)


class Linear(TransformerEngineBaseModule):
    """The drop-in replacement of `torch.nn.Linear`, which is none of its subclasses."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        bias: bool = True,
        params_dtype: torch.dtype | None = None,
        device: torch.device | str = "hpu",
        minimize_memory: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        dtype = params_dtype or torch.get_default_dtype()
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype)
        )
        nn.init.normal_(self.weight, mean=0.0, std=0.023)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.bias = torch.Tensor().to(dtype=dtype, device=device)
        with torch.no_grad():
            self.bias.zero_()

    def forward(self, inp: Tensor) -> Tensor:
        """The transformation, in 8 bits where `fp8_autocast` is on."""
        bias = self.bias if self.use_bias else None
        if not fp8.is_enabled:
            return functional.linear(inp, self.weight, bias)
        assert torch.hpu.is_autocast_hpu_enabled(), "this stand-in needs autocast"
        assert not inp.shape[:-1].numel() % 16, "rows must be a multiple of 16"
        assert not self.in_features % 16, "features must be a multiple of 16"
        assert not self.out_features % 16, "features must be a multiple of 16"
        length = fp8.recipe.amax_history_len
        if "amax_history" not in self.fp8_meta:
            self.fp8_meta["amax_history"] = torch.zeros(length, 3, device="hpu")
        return _Linear.apply(inp, self.weight, bias, self)
