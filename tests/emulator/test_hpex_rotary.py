"""Rotary embeddings against their formulas on the CPU; the books and captures of all kernels."""

from __future__ import annotations

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpex.kernels import (
    FusedSDPA,
    RotaryPosEmbeddingHelperV1,
    RotaryPosEmbeddingHelperV2,
    RotaryPosEmbeddingHelperV3,
    RotaryPosEmbeddingMode,
    apply_rotary_pos_emb,
)
from habana_frameworks.torch.hpex.normalization import FusedRMSNorm
from habana_frameworks.torch.hpu import HPUGraph, graph
from habana_frameworks.torch.hpu.metrics import metric_localcontext
from parity import assert_equal_with_gradients, both


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def angles(length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.arange(length)[:, None] * 10 ** -torch.linspace(0, 1, size // 2)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def test_rotary_halves_against_the_formula():
    p, p_host = both(2, 3, 5, 8)
    cos, sin = (t[None, None] for t in angles(5, 8))
    expected = p_host * cos + rotate_half(p_host) * sin
    found = apply_rotary_pos_emb(p, cos.to("hpu"), sin.to("hpu"))
    assert_equal_with_gradients(found, expected, [(p, p_host)])
    assert RotaryPosEmbeddingHelperV1.apply(p, cos.to("hpu"), sin.to("hpu"), 0).tolist() == (
        found.tolist()
    )


@pytest.mark.parametrize("has_four_dimensions", [True, False])
def test_rotary_halves_with_positions(has_four_dimensions):
    p, p_host = both(2, 3, 5, 8)
    cos, sin = angles(9, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
    expected = p_host * cos[positions][:, None] + rotate_half(p_host) * sin[positions][:, None]
    if has_four_dimensions:
        cos, sin = cos[None, None], sin[None, None]
    found = RotaryPosEmbeddingHelperV2.apply(p, cos.to("hpu"), sin.to("hpu"), positions.to("hpu"))
    assert_equal_with_gradients(found, expected, [(p, p_host)])


def rotate_pairs(p: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair is a complex number that is turned."""
    turned = torch.view_as_complex(p.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2)


def test_rotary_pairs_against_complex_numbers():
    p, p_host = both(2, 5, 3, 8)
    cos, sin = (t[:, None, :4] for t in angles(5, 8))
    expected = rotate_pairs(p_host, cos, sin)
    doubled = [t.repeat_interleave(2, dim=-1).to("hpu") for t in (cos, sin)]
    found = apply_rotary_pos_emb(p, *doubled, None, 0, RotaryPosEmbeddingMode.PAIRWISE)
    assert_equal_with_gradients(found, expected, [(p, p_host)])


@pytest.mark.parametrize("size", [8, 12])
def test_rotary_with_a_cache(size):
    p, p_host = both(5, 2, 3, size)
    cos, sin = (t[:, None, None, :4] for t in angles(7, 8))
    cache = torch.stack((cos, sin), dim=-1)[:, :, 0].to("hpu")
    rotated = rotate_pairs(p_host[..., :8], cos[:5], sin[:5])
    expected = torch.cat((rotated, p_host[..., 8:]), dim=-1)
    found = RotaryPosEmbeddingHelperV3.apply(p, cache)
    assert_equal_with_gradients(found, expected, [(p, p_host)])


def test_rotary_dtypes_and_offset():
    p = torch.randn(1, 1, 5, 8, device="hpu")
    cos, sin = (t.to("hpu") for t in angles(5, 8))
    assert apply_rotary_pos_emb(p.bfloat16(), cos, sin).dtype == torch.float32
    low = apply_rotary_pos_emb(p.bfloat16(), cos.bfloat16(), sin.half())
    assert low.dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match="take no offset: slice cos and sin instead"):
        RotaryPosEmbeddingHelperV1.apply(p, cos, sin, 2)


def test_kernels_have_kernels_and_compile_once():
    x = torch.randn(1, 2, 5, 8).to("hpu")
    gamma = torch.ones(8).to("hpu")
    cos, sin = (t.to("hpu") for t in angles(5, 8))
    with metric_localcontext("cpu_fallback") as fallbacks:
        for step in range(3):
            with metric_localcontext("graph_compilation") as metric:
                y = apply_rotary_pos_emb(FusedRMSNorm.apply(x, gamma, 1e-6), cos, sin)
                FusedSDPA.apply(y, y, x, None, 0.0, True)
                htcore.mark_step()
            assert dict(metric.stats())["TotalNumber"] == (0 if step else 1)
    assert dict(fallbacks.stats())["TotalNumber"] == 0


def test_kernels_are_captured_and_replayed():
    x = torch.randn(1, 2, 5, 8, device="hpu")
    gamma = torch.ones(8, device="hpu")
    cos, sin = (t.to("hpu") for t in angles(5, 8))

    def forward() -> torch.Tensor:
        y = apply_rotary_pos_emb(FusedRMSNorm.apply(x, gamma, 1e-6), cos, sin)
        return FusedSDPA.apply(y, y, x, None, 0.0, True)

    captured = HPUGraph()
    with torch.no_grad(), graph(captured):
        output = forward()
    with torch.no_grad():
        x.copy_(torch.randn(1, 2, 5, 8, device="hpu"))
        expected = forward()
    assert output.tolist() != expected.tolist()
    captured.replay()
    assert output.tolist() == expected.tolist()
