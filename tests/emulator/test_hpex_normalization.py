"""Fused norms against their formulas on the CPU."""

from __future__ import annotations

import pytest
import torch
from habana_frameworks.torch.hpex.normalization import FusedClipNorm, FusedRMSNorm, RmsNormBwdMode
from habana_frameworks.torch.hpu.metrics import metric_localcontext
from parity import CLOSE, assert_equal_with_gradients, both
from torch import nn
from torch.nn import functional

from lightning_gaudi import emulator


def test_rms_norm_against_the_formula():
    x, x_host = both(2, 3, 8)
    gamma, gamma_host = both(8)
    expected = x_host * gamma_host / torch.sqrt(x_host.square().mean(-1, keepdim=True) + 1e-5)
    found = FusedRMSNorm.apply(x, gamma, 1e-5)
    assert_equal_with_gradients(found, expected, [(x, x_host), (gamma, gamma_host)])


def test_rms_norm_takes_the_sdks_further_arguments():
    x, gamma = torch.randn(2, 8, device="hpu"), torch.ones(8, device="hpu")
    expected = FusedRMSNorm.apply(x, gamma, 1e-5)
    mode = RmsNormBwdMode.STATIC_CASE_WIDTH_PARTITIONING
    for further in ((False,), (False, mode), (True, mode.value, True)):
        assert FusedRMSNorm.apply(x, gamma, 1e-5, *further).tolist() == expected.tolist()


def test_rms_norm_dtypes():
    x = torch.randn(2, 8, device="hpu")
    gamma = torch.ones(8, device="hpu")
    low = FusedRMSNorm.apply(x.bfloat16(), gamma.bfloat16(), 1e-6)
    assert low.dtype == torch.bfloat16
    expected = functional.rms_norm(x.cpu(), (8,), eps=1e-6)
    torch.testing.assert_close(low.float().cpu(), expected, rtol=2e-2, atol=2e-2)
    assert FusedRMSNorm.apply(x.bfloat16(), gamma, 1e-6).dtype == torch.float32


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clip_norm_against_torch(max_norm):
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    reference = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    reference.load_state_dict(module.state_dict())
    module.to("hpu")
    batch = torch.randn(5, 4)
    module(batch.to("hpu")).square().sum().backward()
    reference(batch).square().sum().backward()
    clip = FusedClipNorm(module.parameters(), max_norm)
    with emulator.record() as events:
        found = clip.clip_norm(module.parameters())
    expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    assert (found.shape, found.device.type) == ((1,), "hpu")
    torch.testing.assert_close(found.cpu()[0], expected, **CLOSE)
    for p, q in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad.cpu(), q.grad, **CLOSE)
    kinds = [event.kind for event in events]
    assert kinds.count("mark_step") == 2
    assert not {"host_read", "d2h", "cpu_fallback"} & set(kinds)


def test_clip_norm_of_one_parameter_of_a_dtype_and_of_none():
    p = nn.Parameter(torch.ones(4, device="hpu", dtype=torch.bfloat16))
    clip = FusedClipNorm([p], 1.0)
    assert clip.clip_norm(p).item() == 0.0
    assert clip.clip_norm([]).device.type == "cpu"
    p.grad = torch.full_like(p, 2.0)
    norm = clip.clip_norm(p)
    assert (norm.dtype, norm.item()) == (torch.bfloat16, 4.0)
    assert p.grad.tolist() == [0.5] * 4
    assert FusedClipNorm([], 1.0).dtype == torch.float32


def test_clipping_again_compiles_nothing():
    p = nn.Parameter(torch.ones(4, 7, device="hpu"))
    clip = FusedClipNorm([p], 1.0)
    for step in range(4):
        p.grad = torch.randn(4, 7).to("hpu")
        with metric_localcontext("graph_compilation") as metric:
            clip.clip_norm([p])
        assert step == 0 or dict(metric.stats())["TotalNumber"] == 0
