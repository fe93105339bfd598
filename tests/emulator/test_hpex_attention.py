"""Fused attention and softmax against their formulas on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from habana_frameworks.torch.hpex.kernels import CustomSoftmax, FusedSDPA
from habana_frameworks.torch.hpu import sdp_kernel
from parity import CLOSE, assert_equal_with_gradients, both


def attention(q, k, v, seen=None, bias=None, scale=None) -> torch.Tensor:
    """The formula, with what each query sees as a bool tensor."""
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("recompute", [None, True, False])
@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "float", "row", "scale"])
def test_attention_against_the_formula(kind, recompute):
    q, q_host = both(2, 3, 5, 4)
    k, k_host = both(2, 3, 6, 4)
    v, v_host = both(2, 3, 6, 7)
    mask = seen = bias = scale = None
    is_causal = kind == "causal"
    if is_causal:
        seen = torch.ones(5, 6, dtype=torch.bool).tril()
    elif kind in ("bool", "row"):
        seen = mask = torch.rand(2, 1, 1 if kind == "row" else 5, 6) > 0.3
        mask[..., 0] = True
    elif kind == "float":
        bias = mask = torch.randn(2, 3, 5, 6)
    elif kind == "scale":
        scale = 0.7
    expected = attention(q_host, k_host, v_host, seen, bias, scale)
    mask = None if mask is None else mask.to("hpu")
    found = FusedSDPA.apply(q, k, v, mask, 0.0, is_causal, scale, "None", recompute)
    assert_equal_with_gradients(found, expected, [(q, q_host), (k, k_host), (v, v_host)])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_of_grouped_queries(groups):
    q, q_host = both(2, 4, 5, 8)
    k, k_host = both(2, groups, 5, 8)
    v, v_host = both(2, groups, 5, 8)
    expected = attention(
        q_host, *(t.repeat_interleave(4 // groups, dim=1) for t in (k_host, v_host))
    )
    found = FusedSDPA.apply(q, k, v)
    assert_equal_with_gradients(found, expected, [(q, q_host), (k, k_host), (v, v_host)])


def test_attention_of_three_dimensions():
    q, q_host = both(2, 5, 4)
    k, k_host = both(2, 6, 4)
    v, v_host = both(2, 6, 4)
    found = FusedSDPA.apply(q, k, v)
    expected = attention(q_host, k_host, v_host)
    assert_equal_with_gradients(found, expected, [(q, q_host), (k, k_host), (v, v_host)])


@pytest.mark.parametrize("is_bool", [True, False])
def test_a_mask_beside_is_causal_in_inference(is_bool):
    q = torch.randn(2, 3, 5, 4, device="hpu")
    seen = torch.rand(2, 1, 5, 5) > 0.3
    seen[..., 0] = True
    mask = seen if is_bool else torch.zeros(2, 1, 5, 5).masked_fill(~seen, -math.inf)
    found = FusedSDPA.apply(q, q, q, mask.to("hpu"), 0.0, True)
    host = q.cpu()
    expected = attention(host, host, host, seen & torch.ones(5, 5, dtype=torch.bool).tril())
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_valid_lengths(padding):
    lengths = [2, 5]
    q = torch.randn(2, 3, 5, 4, device="hpu")
    found = FusedSDPA.apply(
        q, q, q, None, 0.0, True, None, "fast", True, torch.tensor(lengths).to("hpu"), padding
    ).cpu()
    for row, length in enumerate(lengths):
        part = slice(5 - length, 5) if padding == "left" else slice(0, length)
        alone = q[row : row + 1, :, part].cpu()
        expected = attention(
            alone, alone, alone, torch.ones(length, length, dtype=torch.bool).tril()
        )
        torch.testing.assert_close(found[row : row + 1, :, part], expected, **CLOSE)


def test_attention_in_low_precision():
    q = torch.randn(1, 2, 6, 8, dtype=torch.bfloat16, device="hpu")
    expected = attention(*[q.float().cpu()] * 3)
    for mode, tolerance in (("None", 3e-2), ("fast", 3e-2), ("fp32", 1e-2)):
        found = FusedSDPA.apply(q, q, q, None, 0.0, False, None, mode)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float().cpu(), expected, rtol=tolerance, atol=tolerance)


def test_dropout_draws_from_the_devices_generator():
    q = torch.randn(2, 3, 16, 4, device="hpu")
    torch.hpu.manual_seed(3)
    first = FusedSDPA.apply(q, q, q, None, 0.5)
    torch.hpu.manual_seed(3)
    assert FusedSDPA.apply(q, q, q, None, 0.5).tolist() == first.tolist()
    assert FusedSDPA.apply(q, q, q, None, 0.5).tolist() != first.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, 0.0, False, None, "fast", True), AssertionError, "Optimized softmax mode is sup"),
        ((None, 0.0, False, None, "exact"), ValueError, "softmax_mode is None, fast or fp32"),
        (
            (None, 0.0, True, None, "None", None, torch.tensor([2])),
            AssertionError,
            "Valid sequence length is supported only in inference",
        ),
        (
            (torch.ones(5, 5, dtype=torch.bool, device="hpu"), 0.0, True),
            AssertionError,
            "a mask beside is_causal is supported only in inference",
        ),
        (
            (None, 0.1, False, None, "None", False, None, "left", True),
            NotImplementedError,
            "gives no dropout mask",
        ),
        (
            (None, 0.0, False, None, "None", None, None, "middle"),
            ValueError,
            "seq_padding_type left or right, but they are 'None' and 'middle'",
        ),
    ],
)
def test_what_attention_refuses_in_training(arguments, error, message):
    q, _ = both(1, 2, 5, 4)
    with pytest.raises(error, match=message):
        FusedSDPA.apply(q, q, q, *arguments)


def test_the_context_chooses_whether_it_recomputes():
    q, _ = both(1, 2, 5, 4)
    arguments = (q, q, q, None, 0.0, False, None, "fast")
    with sdp_kernel(enable_recompute=False):
        FusedSDPA.apply(*arguments)
    with pytest.raises(AssertionError, match="recompute training mode"):
        FusedSDPA.apply(*arguments)


def test_custom_softmax():
    x = torch.randn(2, 8, device="hpu").bfloat16()
    for flavor in (0, 1, 2):
        assert CustomSoftmax.apply(x, flavor).tolist() == x.softmax(-1).tolist()
    with pytest.raises(RuntimeError, match=r"takes bfloat16 only, but the input is torch\.float32"):
        CustomSoftmax.apply(x.float(), 0)
    with pytest.raises(ValueError, match="the flavors 0, 1 and 2, but got 3"):
        CustomSoftmax.apply(x, 3)
