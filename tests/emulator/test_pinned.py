"""Pinned host memory: the storage is marked, whoever makes it and however it is looked at."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

FACTORIES = {
    "arange": lambda **k: torch.arange(5, **k),
    "empty": lambda **k: torch.empty(2, 3, **k),
    "empty_strided": lambda **k: torch.empty_strided((2, 3), (3, 1), **k),
    "eye": lambda **k: torch.eye(3, **k),
    "full": lambda **k: torch.full((2,), 1.5, **k),
    "linspace": lambda **k: torch.linspace(0, 1, 5, **k),
    "ones": lambda **k: torch.ones(2, **k),
    "rand": lambda **k: torch.rand(3, **k),
    "randint": lambda **k: torch.randint(10, (4,), **k),
    "randn": lambda **k: torch.randn(3, **k),
    "randperm": lambda **k: torch.randperm(6, **k),
    "tensor": lambda **k: torch.tensor([1, 2], **k),
    "zeros": lambda **k: torch.zeros(2, 3, **k),
    "zeros_like": lambda **k: torch.zeros_like(torch.ones(2), **k),
    "empty_like": lambda **k: torch.empty_like(torch.ones(2), **k),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_makes_pinned_memory_when_asked(name):
    torch.manual_seed(1)
    expected = FACTORIES[name]()
    torch.manual_seed(1)
    pinned = FACTORIES[name](pin_memory=True)
    assert pinned.is_pinned()
    assert type(pinned) is torch.Tensor
    assert (pinned.shape, pinned.dtype) == (expected.shape, expected.dtype)
    if not name.startswith("empty"):
        assert torch.equal(pinned, expected)
    assert not expected.is_pinned()
    assert not FACTORIES[name](pin_memory=False).is_pinned()


def test_a_device_tensor_cannot_be_pinned():
    with pytest.raises(RuntimeError, match="cannot pin 'hpu' tensors: only dense CPU tensors"):
        torch.ones(2, device="hpu").pin_memory()
    with pytest.raises(RuntimeError, match=r"ones makes one on hpu:0\. Leave pin_memory out"):
        torch.ones(2, device="hpu", pin_memory=True)
    assert not torch.ones(2, device="hpu").is_pinned()


def test_views_of_pinned_memory_are_pinned():
    plain = torch.arange(6.0)
    pinned = plain.pin_memory()
    assert not plain.is_pinned()
    views = [pinned[2:], pinned.view(2, 3), pinned.detach(), *pinned.split(3), pinned.data]
    assert pinned.pin_memory() is pinned
    del pinned
    gc.collect()
    assert all(view.is_pinned() for view in views)
    assert views[0].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert not views[0].clone().is_pinned()
    assert not (views[0] + 1).is_pinned()


def test_writing_into_pinned_memory_keeps_it_pinned():
    pinned = torch.zeros(3, pin_memory=True)
    pinned.copy_(torch.ones(3, device="hpu"), non_blocking=True)
    assert pinned.tolist() == [1.0, 1.0, 1.0]
    assert pinned.is_pinned()


def test_copies_from_pinned_memory_without_blocking():
    pinned = torch.arange(3.0).pin_memory()
    device = pinned.to("hpu", non_blocking=True)
    assert device.tolist() == [0.0, 1.0, 2.0]
    back = device.to("cpu", non_blocking=True)
    assert not back.is_pinned()
    assert torch.equal(back, pinned)


def test_what_has_no_storage_is_not_pinned():
    assert not torch.eye(2).to_sparse().is_pinned()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_pins_its_batches(num_workers):
    data = [{"x": torch.full((2,), float(i)), "y": i} for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = DataLoader(data, batch_size=2, pin_memory=True, num_workers=num_workers)
        batches = list(loader)
    assert [batch["y"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert batches[1]["x"].tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert all(batch[name].is_pinned() for batch in batches for name in ("x", "y"))
    moved = batches[0]["x"].to("hpu", non_blocking=True)
    assert moved.tolist() == [[0.0, 0.0], [1.0, 1.0]]
