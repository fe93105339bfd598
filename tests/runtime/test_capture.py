"""Graph primitives: capture, replay, and where there are none."""

from __future__ import annotations

import gc
import re

import pytest
import torch

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.runtime import capture, loading


def test_capture_and_replay() -> None:
    static = torch.ones(3, device="hpu")
    graph = capture.new_graph()
    with torch.no_grad(), capture.capture(graph):
        assert capture.is_capturing()
        result = static * 2
    assert not capture.is_capturing()
    assert result.tolist() == [2, 2, 2]
    static.fill_(5)
    graph.replay()
    assert result.tolist() == [10, 10, 10]


def test_the_capture_ends_whatever_the_block_does() -> None:
    error = ZeroDivisionError()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError) as caught, capture.capture(capture.new_graph()):
        assert not gc.isenabled()
        raise error
    assert caught.value is error
    assert gc.isenabled()
    assert not capture.is_capturing()


def test_garbage_collection_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with capture.capture(capture.new_graph()):
            torch.ones(2, device="hpu") + 1
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("name", "state"), [("is_lazy", "runs in eager mode"), ("is_loaded", "is not loaded")]
)
def test_no_graphs_outside_lazy_mode(
    monkeypatch: pytest.MonkeyPatch, name: str, state: str
) -> None:
    monkeypatch.setattr(loading, name, lambda: False)
    assert not capture.is_supported()
    assert not capture.is_capturing()
    message = (
        f"HPU graphs exist in lazy mode only, and the Gaudi software {state}. Use "
        "GaudiStrategy(mode='lazy')."
    )
    with pytest.raises(CaptureError, match=f"^{re.escape(message)}$"):
        capture.new_graph()
