"""`HPUPrecision`: the values of each precision, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from torch import Tensor, nn
from training import IGNORED_WARNINGS, Classifier, TiedGRU, conv_net, features, mlp, tokens, trainer

from lightning_gaudi import GaudiStrategy, HPUPrecision
from lightning_gaudi.errors import ConfigurationError

pytestmark = IGNORED_WARNINGS

KNOWN = "'32-true', 'bf16-mixed', 'bf16-true', '16-mixed', '16-true', 'fp8'"
UNKNOWN = f"precision must be one of {KNOWN} on the HPU, but it is {{!r}}."
ENGINE = " The Transformer Engine for Gaudi is chosen by Trainer(plugins=[HPUPrecision('fp8')])."


class Dtypes(Classifier):
    """Notes the dtypes of weights, inputs, logits and new tensors inside a training step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        weights = next(self.parameters()).dtype
        logits = self.network(batch[0])
        self.dtypes = [weights, batch[0].dtype, logits.dtype, torch.zeros(1).dtype, batch[1].dtype]
        return super().training_step(batch, batch_idx)


BF16, FP16, FP32, INT = torch.bfloat16, torch.float16, torch.float32, torch.int64


@pytest.mark.parametrize(
    ("precision", "dtypes", "tolerance"),
    [
        ("32-true", [FP32, FP32, FP32, FP32, INT], 1e-5),
        ("bf16-mixed", [FP32, FP32, BF16, FP32, INT], 0.02),
        ("bf16-true", [BF16, BF16, BF16, BF16, INT], 0.05),
        ("16-true", [FP16, FP16, FP16, FP16, INT], 0.01),
    ],
)
@pytest.mark.parametrize("network", [mlp, conv_net])
def test_against_stock_lightning(
    precision: Any, dtypes: list[torch.dtype], tolerance: float, network: Any
) -> None:
    shape = (4,) if network is mlp else (1, 6, 6)
    modules = []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = Dtypes(network(), lambda weights: torch.optim.SGD(weights, 0.1))
        run = trainer(accelerator, precision=precision)
        run.fit(module, features(shape), features(shape))
        assert module.dtypes == dtypes, accelerator
        modules.append(module)
        validation = run.callback_metrics["val_loss"].dtype
        assert validation is FP32
    on_hpu, on_cpu = modules
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(on_hpu.losses, on_cpu.losses, **close)
    torch.testing.assert_close(on_hpu.state_dict(), on_cpu.state_dict(), **close)
    if precision != "32-true":  # the precision changes something at all
        torch.manual_seed(0)
        full = Dtypes(network(), lambda weights: torch.optim.SGD(weights, 0.1))
        trainer("cpu").fit(full, features(shape))
        assert on_hpu.losses != full.losses


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", BF16), ("bf16-true", BF16), ("16-true", FP16)]
)
def test_predictions_against_stock_lightning(precision: Any, dtype: torch.dtype) -> None:
    predictions = []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = Classifier(TiedGRU())
        found = trainer(accelerator, precision=precision).predict(module, tokens(None))
        assert found is not None
        assert {(type(value), value.dtype) for value in found} == {(Tensor, dtype)}
        predictions.append(found)
    torch.testing.assert_close(*predictions, rtol=0.02, atol=0.02)


def test_mixed_precision_is_autocast_for_the_hpu_never_for_cuda() -> None:
    run = L.Trainer(accelerator="hpu", precision="bf16-mixed", logger=False)
    plugin = run.precision_plugin
    assert type(plugin) is HPUPrecision
    assert plugin.precision == "bf16-mixed"
    context = plugin.forward_context()
    assert isinstance(context, torch.autocast)
    assert (context.device, context.fast_dtype) == ("hpu", BF16)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "32-true"),
        (32, "32-true"),
        ("32", "32-true"),
        ("32-true", "32-true"),
        pytest.param(
            "bf16", "bf16-mixed", marks=pytest.mark.filterwarnings("ignore:`precision=bf16`")
        ),
        ("bf16-mixed", "bf16-mixed"),
        ("bf16-true", "bf16-true"),
        pytest.param(16, "16-mixed", marks=pytest.mark.filterwarnings("ignore:`precision=16` is")),
        ("16-mixed", "16-mixed"),
        ("16-true", "16-true"),
    ],
)
def test_lightnings_names(given: Any, name: str) -> None:
    plugin = L.Trainer(accelerator="hpu", precision=given, logger=False).precision_plugin
    assert type(plugin) is HPUPrecision
    assert plugin.precision == name


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [("64-true", ""), ("transformer-engine", ENGINE), ("transformer-engine-float16", ENGINE)],
)
def test_what_the_hpu_does_not_have(precision: Any, remedy: str) -> None:
    message = UNKNOWN.format(precision) + remedy
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        L.Trainer(accelerator="hpu", precision=precision, logger=False)


def test_unknown_precision() -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(UNKNOWN.format('fp4'))}$"):
        HPUPrecision("fp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Precision 'half' is invalid"):
        L.Trainer(accelerator="hpu", precision="half", logger=False)  # type: ignore[arg-type]


def test_our_plugin_is_taken_as_it_is() -> None:
    plugin = HPUPrecision("bf16-true")
    run = L.Trainer(accelerator="hpu", plugins=[plugin], logger=False)
    assert run.precision_plugin is plugin
    run = L.Trainer(strategy=GaudiStrategy(precision_plugin=plugin), logger=False)
    assert run.precision_plugin is plugin


def test_a_users_own_plugin_stays() -> None:
    class Mine(Precision):
        pass

    plugin = Mine()
    run = L.Trainer(accelerator="hpu", plugins=[plugin], logger=False)
    assert run.precision_plugin is plugin


@pytest.mark.parametrize(
    ("plugin", "precision"),
    [
        (Precision(), "32-true"),
        (HalfPrecision("bf16-true"), "bf16-true"),
        (MixedPrecision("bf16-mixed", "cpu"), "bf16-mixed"),
    ],
    ids=["32", "half", "mixed"],
)
def test_lightnings_own_plugins_become_ours(plugin: Precision, precision: str) -> None:
    run = L.Trainer(accelerator="hpu", plugins=[plugin], logger=False)
    assert type(run.precision_plugin) is HPUPrecision
    assert run.precision_plugin.precision == precision


def test_lightnings_own_plugins_that_cannot_be_raise() -> None:
    message = (
        f"precision must be one of {KNOWN} on the HPU, but '64-true' (DoublePrecision) was chosen."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        L.Trainer(accelerator="hpu", plugins=[DoublePrecision()], logger=False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_an_exception_in_a_step_leaves_nothing_behind(precision: Any) -> None:
    class Broken(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(precision=precision).fit(Broken(mlp()), features())
    assert torch.get_default_dtype() is FP32
    assert not torch.is_autocast_enabled("hpu")
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(2, 2, device="hpu") @ torch.ones(2, 2, device="hpu")).dtype is FP32


def test_init_module_makes_weights_in_the_right_dtype() -> None:
    for precision, dtype in (
        ("32-true", FP32),
        ("bf16-mixed", FP32),
        ("bf16-true", BF16),
        ("16-mixed", FP32),
        ("16-true", FP16),
    ):
        run = trainer(precision=precision)
        with run.init_module():
            layer = nn.Linear(2, 2)
        assert layer.weight.dtype is dtype
        assert str(layer.weight.device) == "hpu:0"
