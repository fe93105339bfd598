"""PyTorch's profiler and the emulated device."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity


def profile_of(module: nn.Module) -> torch.profiler.profile:
    """A profile that has ended, and that holds weak references to the parameters in C++."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profile:
        module(torch.ones(2, 3).to("hpu"))
    return profile


def test_a_module_moves_after_a_profile() -> None:
    module = nn.Linear(3, 3).to("hpu")
    expected = module.weight.tolist()
    gc.disable()  # or it would be found by chance
    try:
        profile_of(module)
        module.cpu()
    finally:
        gc.enable()
    assert module.weight.device.type == "cpu"
    assert module.weight.tolist() == expected


def test_a_profile_that_is_kept_is_named_and_breaks_nothing() -> None:
    module = nn.Linear(3, 3).to("hpu")
    expected = module(torch.ones(2, 3).to("hpu")).tolist()
    profile = profile_of(module)
    with pytest.raises(RuntimeError) as raised:
        module.cpu()
    assert "Drop what holds it, such as a torch.profiler.profile" in str(raised.value.__cause__)
    assert module(torch.ones(2, 3).to("hpu")).tolist() == expected
    del profile, raised
    assert module.cpu().weight.device.type == "cpu"
