"""Small modules, and steps of training whose values are compared to the last bit."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs.training import GraphedTraining

DROPPED = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.first = nn.Linear(4, 2)
        self.second = nn.Linear(4, 3)

    def forward(self, x):
        h = self.body(x).relu()
        return {
            "first": self.first(h),
            "second": self.second(h),
            "rows": len(x),
            "ids": x.argmax(1),
        }


def graphed(module, **options):
    return GraphedTraining(GraphedForward(module.forward), module.forward, module, **options)


def pair(module):
    """Equal modules on the device: the first op by op, the second as graphs."""
    torch.manual_seed(1)
    plain = copy.deepcopy(module).to("hpu")
    other = copy.deepcopy(plain)
    return plain, other


def rows(number=3, width=4, seed=0):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed)).to("hpu")


def train(module, call, step, steps=6, optimizer=torch.optim.AdamW, **options):
    """Run steps; the losses, gradients and weights of each."""
    torch.manual_seed(7)
    found = []
    optimizer = optimizer(module.parameters(), lr=0.05, weight_decay=0.1)
    for number in range(steps):
        optimizer.zero_grad(**options)
        loss = step(call, number)
        grads = [None if p.grad is None else p.grad.cpu().clone() for p in module.parameters()]
        optimizer.step()
        found.append((loss.detach().cpu().clone(), grads))
    return found, [value.cpu().clone() for value in module.state_dict().values()]


def assert_same(found, expected):
    for (loss, grads), (plain_loss, plain_grads) in zip(found[0], expected[0], strict=True):
        assert torch.equal(loss, plain_loss)
        for grad, plain in zip(grads, plain_grads, strict=True):
            assert (grad is None) == (plain is None)
            assert grad is None or torch.equal(grad, plain)
    assert all(map(torch.equal, found[1], expected[1]))


def one_backward(call, number):
    loss = call(rows(seed=number)).square().mean()
    loss.backward()
    return loss
