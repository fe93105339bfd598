"""What each precision converts, against Lightning's own plugins for the CPU."""

from __future__ import annotations

from typing import Any

import lightning.fabric.plugins.precision as fabric
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from training import IGNORED_WARNINGS, Classifier, conv_net, features, trainer

from lightning_gaudi import HPUPrecision

pytestmark = IGNORED_WARNINGS

ALL = ["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]


def stock(name: Any) -> Precision:
    if name == "32-true":
        return Precision()
    return HalfPrecision(name) if name.endswith("true") else MixedPrecision(name, "cpu")


def stock_of_fabric(name: Any) -> fabric.Precision:
    if name == "32-true":
        return fabric.Precision()
    if name.endswith("true"):
        return fabric.HalfPrecision(name)
    return fabric.MixedPrecision(name, "cpu")


def batch() -> dict[str, Any]:
    tensors = {str(dtype): torch.ones(2, dtype=dtype) for dtype in DTYPES}
    return tensors | {"nested": (tensors["torch.float32"], ["text", None, 3])}


def dtypes(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.dtype
    if isinstance(data, dict):
        return {name: dtypes(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(dtypes(value) for value in data)
    return data


class Net(nn.Module):
    """Parameters and buffers of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.half = nn.Linear(3, 3, dtype=torch.bfloat16)
        self.register_buffer("positions", torch.arange(3))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("precision", ALL)
def test_against_stock_lightning(precision: Any) -> None:
    ours, theirs = HPUPrecision(precision), stock(precision)
    modules = [Net(), Net()]
    for plugin, module in zip((ours, theirs), modules, strict=True):
        assert plugin.convert_module(module) is module
    found, expected = (dtypes(module.state_dict()) for module in modules)
    assert found == expected
    assert found["positions"] is torch.int64
    assert dtypes(ours.convert_input(batch())) == dtypes(theirs.convert_input(batch()))
    for name in ("tensor_init_context", "module_init_context"):
        for plugin in (ours, theirs):
            with getattr(plugin, name)():
                made = (torch.zeros(1).dtype, nn.Linear(1, 1).weight.dtype)
            if plugin is ours:
                first = made
        assert made == first
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("precision", ALL)
def test_outputs_against_fabric(precision: Any) -> None:
    expected = stock_of_fabric(precision).convert_output(batch())
    assert dtypes(HPUPrecision(precision).convert_output(batch())) == dtypes(expected)


def test_a_bfloat16_model_in_float32_is_left_alone() -> None:
    """A model loaded in bfloat16 predicts in it, unless another precision is asked for."""
    predictions = []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = Classifier(conv_net().to(torch.bfloat16))

        def step(batch: Any, batch_idx: int, module: Classifier = module) -> Tensor:
            return module.network(batch[0].to(torch.bfloat16))

        module.predict_step = step  # type: ignore[method-assign]
        found = trainer(accelerator).predict(module, features((1, 6, 6)))
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in found} == {torch.bfloat16}
        predictions.append(found)
    torch.testing.assert_close(*predictions, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", ALL)
def test_weights_and_buffers_of_a_run(precision: Any) -> None:
    """Running statistics and counters, after training, as stock Lightning has them."""
    states = []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = Classifier(conv_net(), lambda weights: torch.optim.SGD(weights, 0.01))
        plugins = [HPUPrecision(precision) if accelerator == "hpu" else stock(precision)]
        trainer(accelerator, plugins=plugins).fit(module, features((1, 6, 6)))
        states.append(module.state_dict())
    assert dtypes(states[0]) == dtypes(states[1])
    counter = "network.1.num_batches_tracked"
    assert states[0][counter] == states[1][counter] == 12
    torch.testing.assert_close(*states, rtol=0.1, atol=0.1)
