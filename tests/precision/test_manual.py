"""Manual optimization computes what automatic optimization does, in every precision.

The backward and the optimizer then run within the training step, under its autocast.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

from lightning_gaudi.runtime.optimizers import fused_adamw

pytestmark = IGNORED_WARNINGS


class Manual(Classifier):
    """Optimizes itself, with clipping."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, 0.1, "norm")
        optimizer.step()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
@pytest.mark.parametrize("name", ["AdamW", "Adagrad", "FusedAdamW"])
def test_manual_equals_automatic(precision: Any, name: str) -> None:
    modules = []
    for kind in (Manual, Classifier):
        torch.manual_seed(0)
        make = fused_adamw if name == "FusedAdamW" else getattr(torch.optim, name)
        module = kind(mlp(), lambda weights, make=make: make(weights, lr=0.01))
        clipping = {} if kind is Manual else {"gradient_clip_val": 0.1}
        trainer("hpu", precision=precision, **clipping).fit(module, features())
        modules.append(module)
    assert modules[0].losses == modules[1].losses
    torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict(), rtol=0, atol=0)
