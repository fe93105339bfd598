"""Helpers: equal tensors on the device and on the host, and values and gradients compared."""

from __future__ import annotations

import torch

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def both(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A leaf on the device and an equal one on the host."""
    host = torch.randn(*shape).to(dtype)
    return host.to("hpu").requires_grad_(), host.clone().requires_grad_()


def assert_equal_with_gradients(found, expected, leaves) -> None:
    """Values, and the gradients of a weighted sum in each pair of leaves."""
    assert found.device.type == "hpu"
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), **CLOSE)
    weights = torch.randn(expected.shape)
    (found * weights.to("hpu")).sum().backward()
    (expected * weights).sum().backward()
    for on_device, on_host in leaves:
        assert on_device.grad.device.type == "hpu"
        torch.testing.assert_close(on_device.grad.cpu(), on_host.grad, **CLOSE)
