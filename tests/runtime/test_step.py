"""`mark_step`: breaks the lazy graph where there is one."""

from __future__ import annotations

import pytest
import torch

from lightning_gaudi import emulator
from lightning_gaudi.runtime import loading, step
from lightning_gaudi.runtime.step import mark_step


def test_it_flushes_what_is_pending() -> None:
    with emulator.record() as events:
        value = torch.ones(3, device="hpu") + 1
        mark_step()
        mark_step()
    kinds = [event.kind for event in events if event.kind in ("mark_step", "flush")]
    assert kinds == ["mark_step", "flush", "mark_step"]
    assert value.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["is_loaded", "is_lazy"])
def test_it_does_nothing_where_there_is_no_lazy_graph(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(step, "_mark", None)  # as in a process where nobody has marked yet
    monkeypatch.setattr(loading, name, lambda: False)
    with emulator.record() as events:
        mark_step()
    assert events == []
