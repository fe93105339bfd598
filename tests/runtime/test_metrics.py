"""Counters: what the software compiled, found again, ran elsewhere, and read."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_gaudi.emulator import accounting
from lightning_gaudi.runtime import loading
from lightning_gaudi.runtime.metrics import Counters, counters
from lightning_gaudi.runtime.step import mark_step


@pytest.fixture(autouse=True)
def _empty_recipe_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())


def test_compilations_and_hits() -> None:
    value = torch.ones(3, device="hpu")
    mark_step()
    before = counters()
    for _ in range(3):
        value = value * 2 + 1
        mark_step()
    assert counters() - before == Counters(
        compilations=1, cache_hits=2, cpu_fallbacks=0, host_reads=0, host_copies=0
    )


def test_host_reads_and_copies() -> None:
    value = torch.ones(3, device="hpu")
    before = counters()
    assert value.sum().item() == 3
    value.cpu()
    found = counters() - before
    assert (found.host_reads, found.host_copies) == (1, 1)


def test_cpu_fallbacks() -> None:
    before = counters()
    torch.linalg.eigvalsh(torch.eye(2, device="hpu"))
    assert (counters() - before).cpu_fallbacks == 1


def test_a_card_does_not_count_host_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_emulated", lambda: False)
    found = counters()
    assert found.host_reads is None
    assert found.host_copies is None
    assert (found - found).host_reads is None
    assert found.compilations is not None


def test_counters_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        counters().compilations = 0  # type: ignore[misc]
