"""A Fabric loop on one HPU gives the losses and the weights of the same loop on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fabric.runs import adamw, fabric, loss_of, on_cpu, sgd, train
from lightning.fabric import Fabric
from torch import Tensor, nn
from training import TiedGRU, TinyTransformer, conv_net, features, mlp, tokens

CLOSE = {"rtol": 1e-5, "atol": 1e-5}

NETWORKS = [
    pytest.param(mlp, features, id="mlp"),
    pytest.param(conv_net, lambda: features((1, 6, 6)), id="conv_net"),
    pytest.param(TiedGRU, lambda: tokens(num_classes=None), id="TiedGRU"),
    pytest.param(TinyTransformer, tokens, id="TinyTransformer"),
]
LOOPS = [
    pytest.param({}, id="plain"),
    pytest.param({"accumulate": 2}, id="accumulation"),
    pytest.param({"max_norm": 0.05}, id="clip by norm"),
    pytest.param({"max_norm": 0.05, "norm_type": float("inf")}, id="clip by largest"),
    pytest.param({"clip_val": 0.01, "accumulate": 3}, id="clip by value, accumulation"),
]


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize(("network", "loader"), NETWORKS)
def test_networks_against_the_cpu(network: Any, loader: Any, optimizer: Any) -> None:
    found = train(fabric(), network, loader, optimizer)
    expected = train(fabric("cpu"), network, loader, optimizer)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found[0][0] != found[0][-1]


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("loop", LOOPS)
def test_loops_against_the_cpu(loop: dict[str, Any], optimizer: Any) -> None:
    found = train(fabric(), make_optimizer=optimizer, **loop)
    expected = train(fabric("cpu"), make_optimizer=optimizer, **loop)
    torch.testing.assert_close(found, expected, **CLOSE)
    if loop:
        plain = train(fabric(), make_optimizer=optimizer)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found[1], plain[1], **CLOSE)


def test_clipping_returns_the_norm() -> None:
    def norm(run: Fabric) -> float:
        torch.manual_seed(0)
        network = mlp()
        model, optimizer = run.setup(network, sgd(network.parameters()))
        run.backward(loss_of(model, run.to_device(next(iter(features())))))
        return run.clip_gradients(model, optimizer, max_norm=0.1).item()

    assert norm(fabric()) == pytest.approx(norm(fabric("cpu")), abs=1e-6)


def gan(run: Fabric) -> list[Any]:
    """Two models and two optimizers that take turns."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    made, make_step = run.setup(generator, adamw(generator.parameters()))
    judged, judge_step = run.setup(critic, sgd(critic.parameters()))
    noise = torch.Generator().manual_seed(2)
    losses = []
    for real, _ in run.setup_dataloaders(features()):
        fake = made(run.to_device(torch.randn(4, 3, generator=noise)))
        judge_step.zero_grad()
        loss = judged(fake.detach()).mean() - judged(real).mean()
        run.backward(loss)
        judge_step.step()
        make_step.zero_grad()
        fooled = -judged(fake).mean()
        run.backward(fooled)
        make_step.step()
        losses += [loss.detach(), fooled.detach()]
    return [[loss.item() for loss in losses], on_cpu(made), on_cpu(judged)]


def test_two_models_that_take_turns_against_the_cpu() -> None:
    torch.testing.assert_close(gan(fabric()), gan(fabric("cpu")), **CLOSE)


def apart(run: Fabric) -> list[Any]:
    """Model and optimizer set up one after the other, with a schedule and a closure."""
    torch.manual_seed(0)
    model = run.setup_module(mlp())
    optimizer = run.setup_optimizers(sgd(model.parameters()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    losses = []
    for batch in run.setup_dataloaders(features()):

        def closure(batch: list[Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            run.backward(loss)
            return loss

        losses.append(optimizer.step(closure).item())
        schedule.step()
    return [losses, on_cpu(model), optimizer.param_groups[0]["lr"]]


def test_module_and_optimizer_apart_against_the_cpu() -> None:
    found = apart(fabric())
    torch.testing.assert_close(found, apart(fabric("cpu")), **CLOSE)
    assert found[2] == 0.1 * 0.5**3


def test_lbfgs_against_the_cpu() -> None:
    def run_lbfgs(run: Fabric) -> Any:
        torch.manual_seed(0)
        network = mlp()
        made = torch.optim.LBFGS(network.parameters(), lr=0.5, max_iter=3)
        model, optimizer = run.setup(network, made)
        batch = run.to_device(next(iter(features())))

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            run.backward(loss)
            return loss

        return [optimizer.step(closure).item() for _ in range(3)], on_cpu(model)

    torch.testing.assert_close(run_lbfgs(fabric()), run_lbfgs(fabric("cpu")), **CLOSE)


class WithLoss(nn.Module):
    """Has a method besides ``forward`` that a loop calls."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(inputs), labels)


def test_a_marked_forward_method_against_the_cpu() -> None:
    def run_marked(run: Fabric) -> list[float]:
        torch.manual_seed(0)
        network = WithLoss()
        model, optimizer = run.setup(network, sgd(network.parameters()))
        model.mark_forward_method("loss")
        losses = []
        for batch in run.setup_dataloaders(features()):
            optimizer.zero_grad()
            loss = model.loss(*batch)
            run.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert run_marked(fabric()) == pytest.approx(run_marked(fabric("cpu")), abs=1e-5)


def test_a_forward_that_raises_reaches_the_user_and_a_later_run_goes_on() -> None:
    class Failing(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                raise ValueError("not today")
            return super().forward(inputs)

    run = fabric()
    model = run.setup_module(Failing(4, 3))
    with pytest.raises(ValueError, match="not today"):
        for batch in run.setup_dataloaders(features()):
            model(batch[0])
    model.eval()
    results = [model(batch[0]) for batch in run.setup_dataloaders(features())]
    expected = [
        nn.functional.linear(batch[0], *(p.cpu() for p in model.parameters()))
        for batch in features()
    ]
    torch.testing.assert_close([result.cpu() for result in results], expected, **CLOSE)
