"""Ops in other surroundings: under inference mode, with a step marked between, on more inputs."""

from __future__ import annotations

import pytest
import torch
from emulator.opinfo.harness import Pair, check_pair, pairs

from lightning_gaudi.emulator import accounting

# What networks are made of.
CORE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div.no_rounding_mode",
        "addmm",
        "matmul",
        "bmm",
        "mm",
        "baddbmm",
        "einsum",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "tanh",
        "sigmoid",
        "abs",
        "neg",
        "pow",
        "clamp",
        "where",
        "maximum",
        "minimum",
        "eq",
        "lt",
        "sum",
        "mean",
        "var",
        "amax",
        "argmax",
        "cumsum",
        "prod",
        "sort",
        "topk",
        "cat",
        "stack",
        "split",
        "chunk",
        "reshape",
        "view",
        "transpose",
        "permute",
        "expand",
        "squeeze",
        "unsqueeze",
        "flatten",
        "index_select",
        "gather",
        "scatter",
        "masked_fill",
        "index_put",
        "tril",
        "triu",
        "softmax",
        "log_softmax",
        "to",
        "clone",
        "contiguous",
        "nn.functional.linear",
        "nn.functional.gelu",
        "nn.functional.relu",
        "nn.functional.silu",
        "nn.functional.embedding",
        "nn.functional.layer_norm",
        "nn.functional.batch_norm",
        "nn.functional.group_norm",
        "nn.functional.conv2d",
        "nn.functional.conv_transpose2d",
        "nn.functional.dropout",
        "nn.functional.cross_entropy",
        "nn.functional.mse_loss",
        "nn.functional.scaled_dot_product_attention",
        "nn.functional.pad.constant",
        "nn.functional.max_pool2d",
        "nn.functional.avg_pool2d",
        "nn.functional.interpolate.bilinear",
        "nn.functional.rms_norm",
        "linalg.vector_norm",
        "linalg.solve",
        "linalg.qr",
        "fft.fft",
        "__getitem__",
        "normal",
        "uniform",
        "bernoulli",
        "nonzero",
        "unique",
        "arange",
        "zeros_like",
        "full",
        "triu_indices",
        "resize_",
        "complex",
        "real",
        "view_as_complex",
    ]
)
CORE_PAIRS = [pair for pair in pairs() if pair.name in CORE]
pytestmark = pytest.mark.opinfo


def test_the_names_are_in_the_table():
    assert {pair.name for pair in pairs()} >= CORE


@pytest.mark.parametrize("pair", CORE_PAIRS, ids=lambda pair: pair.id)
def test_under_inference_mode(pair: Pair):
    with torch.inference_mode():
        assert check_pair(pair, gradients=False).num_calls > 0


@pytest.mark.parametrize("pair", CORE_PAIRS, ids=lambda pair: pair.id)
def test_without_gradients_and_with_a_step_marked_after_each_call(pair: Pair):
    import habana_frameworks.torch.core as htcore

    with torch.no_grad():
        counts = check_pair(pair, gradients=False, after_call=htcore.mark_step)
    assert counts.num_calls > 0
    assert not accounting.pending.ops


@pytest.mark.parametrize(
    "pair", [p for p in CORE_PAIRS if p.dtype is torch.float32], ids=lambda pair: pair.id
)
def test_on_reference_inputs(pair: Pair):
    # Some of them mix dtypes, and those of bools have no gradient.
    counts = check_pair(pair, "reference_inputs", gradients=False)
    assert counts.num_calls > counts.num_refused
