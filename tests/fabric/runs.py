"""Loops in Fabric that its tests share, on the HPU or, as stock Fabric has them, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from training import features, mlp

Results = tuple[list[float], dict[str, Tensor]]


def fabric(accelerator: str = "hpu", **settings: Any) -> Fabric:
    """A Fabric for one device."""
    return Fabric(accelerator=accelerator, **({"devices": 1} | settings))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def loss_of(network: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross entropy of a classifier, or of a language model."""
    logits = network(batch[0])
    return functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())


def train(
    run: Fabric,
    make_network: Callable[[], nn.Module] = mlp,
    make_loader: Callable[[], Any] = features,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = adamw,
    *,
    accumulate: int = 1,
    num_epochs: int = 2,
    **clip: Any,
) -> Results:
    """Train; the losses, and the weights and buffers on the CPU."""
    torch.manual_seed(0)
    network = make_network()
    model, optimizer = run.setup(network, make_optimizer(network.parameters()))
    loader = run.setup_dataloaders(make_loader())
    losses = []
    for _ in range(num_epochs):
        for index, batch in enumerate(loader):
            is_last = (index + 1) % accumulate == 0
            with run.no_backward_sync(model, enabled=not is_last):
                loss = loss_of(model, batch)
                run.backward(loss / accumulate)
            if is_last:
                if clip:
                    run.clip_gradients(model, optimizer, **clip)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
    return [loss.item() for loss in losses], on_cpu(model)


def on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
