"""The device: memory, waiting, its name."""

from __future__ import annotations

import pytest
import torch

from lightning_gaudi import emulator
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime import loading


def test_this_device_is_always_index_zero() -> None:
    assert hpu.this_device() == torch.device("hpu", 0)


def test_name_says_that_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    name = hpu.name()
    assert name.endswith(" (emulated)")
    monkeypatch.setattr(loading, "is_emulated", lambda: False)
    assert hpu.name() == name.removesuffix(" (emulated)")


def test_memory_statistics_follow_tensors() -> None:
    before = hpu.memory_stats()["InUse"]
    kept = torch.zeros(1000, device="hpu")
    assert hpu.memory_stats()["InUse"] == before + kept.nbytes
    del kept
    assert hpu.memory_stats()["InUse"] == before


def test_memory_statistics_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    assert hpu.memory_stats() == {}


def test_synchronize_flushes() -> None:
    value = torch.ones(3, device="hpu") + 1
    with emulator.record() as events:
        hpu.synchronize()
    assert [event.kind for event in events if event.kind == "flush"] == ["flush"]
    assert value.tolist() == [2, 2, 2]
