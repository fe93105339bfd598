"""fp8 by `HPUPrecisionPlugin` of lightning-habana, on the stand-in of the Transformer Engine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from training import IGNORED_WARNINGS, Classifier, features, trainer

from lightning_gaudi import HPUPrecision
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.moving_over import HPUPrecisionPlugin
from lightning_gaudi.runtime import transformer_engine

pytestmark = IGNORED_WARNINGS


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, imported as ``intel_transformer_engine``; gone again after the test."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "precision" / "stand_in")
    yield transformer_engine.load()
    for name in [name for name in sys.modules if name.startswith("intel_transformer_engine")]:
        del sys.modules[name]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))


def losses(plugin: HPUPrecision, module: nn.Module) -> list[float]:
    classifier = Classifier(module)
    loader = DataLoader(features((16,), rows=64).dataset, batch_size=16)  # fp8 wants 16 rows
    trainer(plugins=[plugin], max_epochs=1).fit(classifier, loader)
    return classifier.losses


def test_layers_are_replaced_when_asked_for_and_keep_their_weights(engine: Any) -> None:
    plugin = HPUPrecisionPlugin("fp8")
    module = network()
    weights = [layer.weight for layer in module if isinstance(layer, nn.Linear)]
    converted = plugin.convert_modules(module, replace_layers=True)
    assert converted is module
    assert isinstance(module[0], engine.Linear)
    assert module[0].weight is weights[0]
    assert module[2].weight is weights[1]
    # As with our own name, which replaces them by itself.
    assert losses(plugin, module) == losses(HPUPrecision("fp8"), network())


def test_layers_stay_where_nobody_asks(engine: Any) -> None:
    module = network()
    plain = losses(HPUPrecisionPlugin(precision="fp8"), module)
    assert type(module[0]) is nn.Linear
    assert plain == losses(HPUPrecision("bf16-mixed"), network())
    assert plain != losses(HPUPrecisionPlugin("fp8", replace_layers=True), network())


def test_a_recipe_of_either_call(engine: Any) -> None:
    recipe = {"amax_history_len": 4}
    assert HPUPrecisionPlugin("fp8", "hpu", recipe)._recipe == recipe
    plugin = HPUPrecisionPlugin("fp8")
    plugin.convert_modules(network(), recipe=recipe)
    assert plugin._recipe.amax_history_len == 4


def test_inference_is_refused(engine: Any) -> None:
    message = (
        "convert_modules(inference=True) measures and quantizes a module for fp8 inference, which "
        "lightning_gaudi does not do. Quantize the module yourself with Intel Neural Compressor "
        "before you give it to the Trainer, or use precision='bf16-true'."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUPrecisionPlugin("fp8").convert_modules(network(), inference=True, quant=False)
