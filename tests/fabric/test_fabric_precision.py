"""Precision in Fabric on the HPU: what stock Fabric does on the CPU, and never CUDA."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from fabric.runs import adamw, fabric, loss_of, on_cpu, train
from lightning.fabric import Fabric
from lightning.fabric.plugins import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from lightning.pytorch.plugins.precision import Precision as TrainerPrecision
from torch import Tensor, nn
from training import conv_net, features, mlp

from lightning_gaudi import HPUPrecision
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fabric import GaudiFabricStrategy, HPUFabricPrecision

REFUSED = (
    "{} is a precision plugin for another device or for the Trainer. On the HPU say "
    "Fabric(precision='bf16-mixed'), or plugins=HPUFabricPrecision('bf16-mixed')."
)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_training_against_the_cpu(precision: str) -> None:
    case = mlp, features, adamw
    found = train(fabric(precision=precision), *case)
    expected = train(fabric("cpu", precision=precision), *case)
    tolerance = 1e-5 if precision == "32-true" else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {value.dtype for value in found[1].values()} == {weights}
    if precision != "32-true":
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found[0], train(fabric(), *case)[0], rtol=1e-6, atol=1e-6)


class Dtypes(nn.Module):
    """Notes the dtypes it meets: of its argument, of a matrix product, of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, inputs: Tensor, index: Tensor) -> dict[str, Tensor]:
        result = self.linear(inputs)
        self.seen = (inputs.dtype, result.dtype, self.linear.weight.dtype, index.dtype)
        return {"result": result, "index": index}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_dtypes_are_those_of_stock_fabric(precision: str) -> None:
    def dtypes(accelerator: str) -> list[Any]:
        run = fabric(accelerator, precision=precision)
        module = Dtypes()
        model = run.setup_module(module)
        output = model(*run.to_device((torch.ones(2, 4), torch.arange(2))))
        with run.autocast():
            product = model.linear.weight @ torch.ones(4, 4, device=run.device)[:, :1].to(
                model.linear.weight.dtype
            )
        with run.init_module():
            inside = nn.Linear(2, 2)
        with run.init_tensor():
            tensor = torch.ones(2)
        assert inside.weight.device == tensor.device == product.device == run.device
        return [
            module.seen,
            {name: value.dtype for name, value in output.items()},
            product.dtype,
            inside.weight.dtype,
            tensor.dtype,
        ]

    assert dtypes("hpu") == dtypes("cpu")


def test_init_module_gives_the_weights_of_the_cpu() -> None:
    def weights(accelerator: str) -> dict[str, Tensor]:
        run = fabric(accelerator)
        run.seed_everything(3, verbose=False)
        with run.init_module():
            network = conv_net()
        assert {value.device for value in network.parameters()} == {run.device}
        return on_cpu(run.setup_module(network))

    torch.testing.assert_close(weights("hpu"), weights("cpu"), rtol=0, atol=0)


def test_autocast_is_never_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = torch.autocast.__init__

    def noting(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        asked.append(device_type)
        original(self, device_type, *args, **kwargs)

    monkeypatch.setattr(torch.autocast, "__init__", noting)
    run = fabric(precision="bf16-mixed")
    run.setup_module(mlp())(torch.ones(1, 4, device=run.device))
    with run.autocast():
        pass
    assert asked == ["hpu", "hpu"]


def test_plugins_are_translated() -> None:
    inner = HPUPrecision("bf16-mixed")
    for settings in (
        {"plugins": inner},
        {"plugins": [inner]},
        {"strategy": GaudiFabricStrategy(precision=inner)},
    ):
        plugin = Fabric(accelerator="hpu", **settings).strategy.precision
        assert type(plugin) is HPUFabricPrecision
        assert plugin.inner is inner
    ours = HPUFabricPrecision("bf16-true")
    assert fabric(plugins=ours).strategy.precision is ours
    for kept in (Precision(), MixedPrecision("bf16-mixed", "hpu")):
        assert fabric(plugins=kept).strategy.precision is kept

    class OfTheUser(Precision):
        pass

    users = OfTheUser()
    assert fabric(plugins=users).strategy.precision is users


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: MixedPrecision("bf16-mixed", "cuda"), id="MixedPrecision"),
        pytest.param(DoublePrecision, id="DoublePrecision"),
        pytest.param(TrainerPrecision, id="Precision"),
    ],
)
def test_plugins_for_other_devices_are_refused(make: Any, request: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(REFUSED.format(type(make()).__name__))):
        fabric(plugins=make())


def test_lightnings_half_precision_is_any_devices() -> None:
    found = train(fabric(plugins=HalfPrecision("bf16-true")))
    torch.testing.assert_close(found, train(fabric(precision="bf16-true")), rtol=0, atol=0)


def test_a_precision_that_the_hpu_does_not_have() -> None:
    with pytest.raises(ConfigurationError, match=r"on the HPU, but it is '64-true'"):
        fabric(precision="64-true")
    with pytest.raises(ValueError, match="Precision 'half' is invalid"):
        fabric(precision="half")


def scaled_steps(run: Fabric) -> list[Any]:
    """Three steps under loss scaling; the gradients of the second overflow."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    model, optimizer = run.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    plugin = run.strategy.precision
    results = []
    for index, batch in enumerate(list(features())[:3]):
        optimizer.zero_grad()
        loss = loss_of(model, run.to_device(batch)) * (1e38 if index == 1 else 1)
        run.backward(loss)
        norm = run.clip_gradients(model, optimizer, max_norm=1e3, error_if_nonfinite=False)
        optimizer.step()
        if index != 1:
            results.append(norm.item())
        results.append((on_cpu(model), plugin.state_dict()["scale"]))
    return results


def test_loss_scaling_against_stock_mixed_precision_on_the_cpu() -> None:
    found = train(fabric(precision="16-mixed"), max_norm=0.1)
    # Asked for by name, Fabric takes bfloat16 on the CPU.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    stock = fabric("cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))
    torch.testing.assert_close(found, train(stock, max_norm=0.1), rtol=2e-3, atol=2e-3)
    assert found[0][0] != train(fabric())[0][0]


def test_fp8_needs_the_transformer_engine() -> None:
    with pytest.raises(ConfigurationError, match="Transformer Engine"):
        fabric(plugins=HPUFabricPrecision("fp8"))


def test_loss_scaling_skips_what_overflows() -> None:
    run = fabric(precision="16-mixed")
    assert run.strategy.precision._scaling.scaler is run.strategy.precision.inner.scaler
    first, second, third = [r for r in scaled_steps(run) if isinstance(r, tuple)]
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert second[1] == first[1] / 2
    with pytest.raises(AssertionError):
        torch.testing.assert_close(third[0], second[0], rtol=0, atol=0)
    state = run.strategy.precision.state_dict()
    other = HPUFabricPrecision("16-mixed")
    other.load_state_dict(state)
    assert other.state_dict() == state
