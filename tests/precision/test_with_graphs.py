"""HPU graphs and the monitor in every precision: autocast is part of what makes a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training import IGNORED_WARNINGS, Classifier, TinyTransformer, features, mlp, tokens, trainer

from lightning_gaudi import CompileMonitor, HPUGraphCallback
from lightning_gaudi.graphs import GraphedForward

pytestmark = IGNORED_WARNINGS

ALL = ["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]


@pytest.mark.parametrize("precision", ALL)
def test_replays_equal_the_steps_without_graphs(precision: Any) -> None:
    results = []
    for callbacks in ([HPUGraphCallback()], []):
        torch.manual_seed(0)
        module = Classifier(TinyTransformer(), lambda weights: torch.optim.SGD(weights, 0.1))
        run = trainer("hpu", precision=precision, callbacks=callbacks)
        run.fit(module, tokens(), tokens())
        predictions = run.predict(module, tokens())
        results.append((module.losses, predictions))
        if callbacks:
            (callback,) = callbacks
            # One for the twelve steps of validation, one for the six of prediction.
            assert (callback.stats.captures, callback.stats.replays) == (2, 16)
    (losses, predictions), (expected_losses, expected) = results
    assert losses == expected_losses
    for found, wanted in zip(predictions, expected, strict=True):
        assert found.dtype is wanted.dtype
        assert torch.equal(found, wanted)


def test_a_graph_is_for_one_autocast() -> None:
    layer = nn.Linear(4, 4, device="hpu")
    graphed = GraphedForward(layer)
    rows = torch.randn(2, 4).to("hpu")
    expected = layer(rows)
    for _ in range(2):
        for dtype in (None, torch.bfloat16, torch.float16):
            with torch.no_grad(), torch.autocast("hpu", dtype=dtype, enabled=dtype is not None):
                found = graphed(rows)
            assert found.dtype is (dtype or torch.float32)
            tolerance = {None: 1e-6, torch.bfloat16: 0.02, torch.float16: 0.005}[dtype]
            torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    assert graphed.stats.captures == 3
    assert graphed.stats.replays == 3


@pytest.mark.parametrize("precision", ALL)
def test_the_monitor_finds_no_compilation_after_the_third_step(precision: Any) -> None:
    monitor = CompileMonitor(max_compilations=0, warmup_steps=3, on_exceed="raise", report=False)
    module = Classifier(mlp(), lambda weights: torch.optim.SGD(weights, 0.1))
    trainer("hpu", precision=precision, callbacks=[monitor], max_epochs=3).fit(module, features())
