"""Live and peak bytes are those of the tensors that exist, whoever holds them."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

KIB = 1024


def kib() -> torch.Tensor:
    return torch.empty(KIB // 4, device="hpu")


@pytest.fixture
def used():
    """Bytes in use since the test began."""
    gc.collect()
    start = torch.hpu.memory_allocated()
    torch.hpu.reset_peak_memory_stats()
    return lambda: torch.hpu.memory_allocated() - start


@pytest.fixture
def peak(used):
    """Peak bytes since the test began."""
    start = torch.hpu.memory_allocated()
    return lambda: torch.hpu.max_memory_allocated() - start


def test_a_tensor_counts_while_it_lives(used, peak):
    first = kib()
    assert used() == KIB
    second = first + 1
    assert used() == 2 * KIB
    del first
    assert used() == KIB
    del second
    assert used() == 0
    assert peak() == 2 * KIB
    torch.hpu.reset_peak_memory_stats()
    assert peak() == 0


def test_views_share_their_memory_and_keep_it(used):
    base = kib()
    views = [base[:3], base.view(16, 16), base.detach(), base.t(), *base.split(64), base.data]
    assert used() == KIB
    del base
    assert used() == KIB
    del views
    assert used() == 0


def test_a_reshape_that_copies_counts_twice(used):
    base = kib().view(16, 16)
    copied = base.t().reshape(-1)
    assert used() == 2 * KIB
    del base
    assert used() == KIB
    del copied


def test_ops_in_place_need_no_memory(used, peak):
    tensor = kib()
    tensor.add_(1).mul_(2).clamp_(0)
    torch.add(tensor, 1, out=tensor)
    assert peak() == KIB
    tensor[3] = 5
    assert used() == KIB
    assert peak() == KIB + 4  # the number, as PyTorch makes a tensor of it on the device


def test_moves_count_on_the_device_only(used):
    host = torch.ones(KIB // 4)
    device = host.to("hpu")
    assert used() == KIB
    back = device.cpu()
    assert used() == KIB
    del device, back
    assert used() == 0


def test_what_only_autograd_holds_still_counts(used):
    leaf = kib().requires_grad_()
    loss = leaf.exp().sum()  # exp saves its result for backward
    assert used() == 2 * KIB + 4
    loss.backward()
    assert used() == 2 * KIB + 4  # the leaf, its gradient, the loss
    del loss
    leaf.grad = None
    assert used() == KIB


def test_a_training_step_leaves_what_it_should(used):
    module = nn.Linear(16, 16).to("hpu")
    size = used()
    assert size == 4 * (16 * 16 + 16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.ones(2, 16, device="hpu")).sum().backward()
        optimizer.step()
        assert used() == 2 * size  # parameters and gradients
    optimizer.zero_grad()
    assert used() == size
    module.to("cpu")
    assert used() == 0
    module.to("hpu")
    assert used() == size


def test_multiple_results(used):
    values, indices = torch.ones(8, 8, device="hpu").topk(2)
    assert used() == 8 * 2 * 4 + 8 * 2 * 8
    del values
    assert used() == 8 * 2 * 8
    del indices
    assert used() == 0


def test_resizing_follows_the_storage(used):
    tensor = torch.empty(4, device="hpu")
    tensor.resize_(KIB // 4)
    assert used() == KIB
    other = torch.empty(2, device="hpu")
    tensor.set_(other)
    assert used() == 8


def test_assigning_data_releases_the_old_memory(used):
    parameter = nn.Parameter(kib())
    parameter.data = torch.empty(2, device="hpu")
    assert used() == 8
    parameter.data = torch.empty(2)
    assert used() == 0


def test_the_peak_of_a_chain(peak):
    tensor = kib()
    for _ in range(5):
        tensor = tensor + 1
    assert peak() == 2 * KIB


def test_a_graph_keeps_its_buffers():
    from habana_frameworks.torch.hpu import HPUGraph, graph

    static = kib()
    start = torch.hpu.memory_allocated()
    captured = HPUGraph()
    with graph(captured):
        output = (static + 1) * 2
    assert torch.hpu.memory_allocated() - start == 2 * KIB
    captured.reset()
    assert torch.hpu.memory_allocated() - start == KIB
    del output
    assert torch.hpu.memory_allocated() == start


def test_the_statistics_have_the_sdks_names(used):
    tensor = kib()
    stats = torch.hpu.memory_stats()
    assert set(stats) == {
        "Limit",
        "InUse",
        "MaxInUse",
        "NumAllocs",
        "NumFrees",
        "ActiveAllocs",
        "MaxAllocSize",
        "TotalSystemAllocs",
        "TotalSystemFrees",
        "TotalActiveAllocs",
    }
    assert stats["ActiveAllocs"] == stats["NumAllocs"] - stats["NumFrees"]
    assert torch.hpu.memory_reserved() == stats["Limit"] == 96 * 2**30
    free, total = torch.hpu.mem_get_info()
    assert (total, total - free) == (stats["Limit"], stats["InUse"])
    torch.hpu.reset_accumulated_memory_stats()
    after = torch.hpu.memory_stats()
    assert after["NumFrees"] == 0
    assert after["ActiveAllocs"] == stats["ActiveAllocs"]
    assert after["InUse"] == stats["InUse"]
    for name in ("TotalSystemAllocs", "TotalSystemFrees", "TotalActiveAllocs"):
        assert after[name] == stats[name]
    assert stats["TotalActiveAllocs"] == stats["ActiveAllocs"]
    del tensor


def test_failed_ops_leave_nothing(used):
    with pytest.raises(RuntimeError):
        kib() @ torch.ones(3, device="hpu")
    assert used() == 0


def test_the_summary_has_the_figures(used):
    tensor = kib()
    stats = torch.hpu.memory_stats()
    lines = torch.hpu.memory_summary().splitlines()
    assert lines[0] == "|" + "=" * 52 + "|"
    assert "PyTorch HPU memory summary, device ID 0" in lines[1]
    found = dict(line.replace(" ", "").split("(")[0].split(":") for line in lines[3:])
    assert list(found) == [
        "Limit",
        "InUse",
        "MaxInUse",
        "NumAllocs",
        "NumFrees",
        "MaxAllocSize",
        "ActiveAllocs",
    ]
    assert {name: int(value) for name, value in found.items()} == {
        name: stats[name] for name in found
    }
    assert lines[3].endswith("(96.00 GB)")
    del tensor


def test_old_names_warn_and_answer():
    for old, new in (("memory_cached", "memory_reserved"), ("max_memory_cached", "max_memory_res")):
        with pytest.warns(
            FutureWarning, match=f"torch.hpu.{old} has been renamed to torch.hpu.{new}"
        ):
            assert getattr(torch.hpu, old)() == torch.hpu.memory_reserved()


@pytest.mark.parametrize("name", ["memory_allocated", "memory_stats", "reset_peak_memory_stats"])
def test_a_device_that_is_asked_for(name):
    function = getattr(torch.hpu, name)
    for device in (None, 0, "hpu", "hpu:0", torch.device("hpu", 0)):
        function(device)
    with pytest.raises(AssertionError, match="Invalid device id"):
        function(5)
    with pytest.raises(AssertionError, match="Invalid device id"):
        function("hpu:3")
    with pytest.raises(ValueError, match="Expected a hpu device, but got: cpu"):
        function("cpu")


def test_pytorchs_own_names_give_the_same_figures(used):
    tensor = kib()
    stats, accelerator = torch.hpu.memory_stats(), torch.accelerator
    found = accelerator.memory_stats()
    assert found["allocated_bytes.all.current"] == stats["InUse"]
    assert found["allocated_bytes.all.peak"] == stats["MaxInUse"]
    assert found["num_device_alloc"] - found["num_device_free"] == stats["ActiveAllocs"]
    assert accelerator.memory_allocated() == torch.hpu.memory_usage() == stats["InUse"]
    assert accelerator.max_memory_allocated(0) == stats["MaxInUse"]
    assert accelerator.get_memory_info() == torch.hpu.mem_get_info()
    accelerator.reset_peak_memory_stats()
    accelerator.empty_host_cache()
    assert accelerator.max_memory_allocated() == stats["InUse"]
    del tensor
