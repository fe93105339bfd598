"""Tensors grouped by device, as gradient clipping and foreach optimizers do it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype as group

from lightning_gaudi import emulator

HPU, CPU = torch.device("hpu", 0), torch.device("cpu")


def test_groups_are_of_the_device_they_lie_on():
    ours = [torch.ones(2, device="hpu"), torch.ones(1, device="hpu", dtype=torch.int64)]
    plain = [torch.zeros(2), torch.zeros(3)]
    mixed = [ours[0], plain[0], ours[1], plain[1]]
    groups = group([mixed, [torch.full((), float(i)) for i in range(4)]], with_indices=True)
    found = {
        key: ([id(t) for t in columns[0]], [t.item() for t in columns[1]], indices)
        for key, (columns, indices) in groups.items()
    }
    assert found == {
        (HPU, torch.float32): ([id(ours[0])], [0.0], [0]),
        (CPU, torch.float32): ([id(plain[0]), id(plain[1])], [1.0, 3.0], [1, 3]),
        (HPU, torch.int64): ([id(ours[1])], [2.0], [2]),
    }


def test_groups_of_host_tensors_are_pytorchs_own():
    plain = [torch.zeros(2), torch.zeros(3, dtype=torch.int32)]
    assert set(group([plain])) == {(CPU, torch.float32), (CPU, torch.int32)}


@pytest.mark.parametrize("error_if_nonfinite", [False, True])
def test_clipping_by_norm_reads_nothing_that_it_was_not_asked_for(error_if_nonfinite):
    host = nn.Linear(3, 4)
    device = nn.Linear(3, 4).to("hpu")
    device.load_state_dict(host.state_dict())
    for module, inputs in ((host, torch.ones(2, 3)), (device, torch.ones(2, 3).to("hpu"))):
        module(inputs).square().sum().backward()
    clip = torch.nn.utils.clip_grad_norm_
    expected = clip(host.parameters(), 0.1, error_if_nonfinite=error_if_nonfinite)
    with emulator.record() as events:
        found = clip(device.parameters(), 0.1, error_if_nonfinite=error_if_nonfinite)
    kinds = [event.kind for event in events]
    assert kinds.count("host_read") == error_if_nonfinite
    assert not kinds.count("d2h")
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)
    for ours, theirs in zip(device.parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=0, atol=0)


def test_a_foreach_optimizer_against_the_cpu():
    def steps(device):
        torch.manual_seed(0)
        module = nn.Linear(3, 4).to(device)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1, foreach=True)
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.ones(2, 3, device=device)).square().sum().backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in module.parameters()]

    torch.testing.assert_close(steps("hpu"), steps("cpu"), rtol=0, atol=0)
