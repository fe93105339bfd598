"""Forwards of every kind that a graph must answer like op by op, for several tests.

Each case makes a module (or a function) anew, and the arguments of its n-th call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers on the device, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to("hpu")


@dataclass
class Scored:
    """A result with a tensor, a number and nothing."""

    scores: Tensor
    count: int
    nothing: None = None


@dataclass(frozen=True)
class Case:
    """A forward with calls.

    Attributes:
        make: The callable, and the module with its weights, if any.
        call: Positional arguments of a call by its number.
    """

    make: Callable[[], tuple[Callable[..., Any], nn.Module | None]]
    call: Callable[[int], tuple[Any, ...]]


def of_module(module: Callable[[], nn.Module]) -> Callable[[], tuple[Any, nn.Module]]:
    """A maker of a seeded module on the device."""

    def make() -> tuple[Any, nn.Module]:
        torch.manual_seed(5)
        made = module().to("hpu").requires_grad_(False)
        return made, made

    return make


def _function(fn: Callable[..., Any]) -> Callable[[], tuple[Any, None]]:
    return lambda: (fn, None)


def _written(x: Tensor, cache: Tensor) -> Tensor:
    cache[:, 1] += x.sum(1)
    return cache * 2


def _nested(x: Tensor, options: dict[str, Any], *rest: Any) -> dict[str, Any]:
    y = x * options["scale"] + options["bias"]
    return {"in": x, "list": [Scored(y, len(rest)), None, 3], "twice": (y, y), "pair": (y + 1,)}


class _Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return self.weight, self.weight[1:], x @ self.weight


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(x) * self.calls


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4)).eval()


CASES: dict[str, Case] = {
    "mlp": Case(of_module(_mlp), lambda n: (drawn(3, 4, seed=n),)),
    "integers": Case(
        of_module(lambda: nn.Embedding(7, 4)),
        lambda n: ((drawn(2, 3, seed=n).abs() * 2).to(torch.int64),),
    ),
    "bfloat16": Case(_function(lambda x: x * 3 + 1), lambda n: (drawn(4, seed=n).bfloat16(),)),
    "scalar": Case(_function(lambda x: x * 2), lambda n: (drawn(seed=n),)),
    "no tensors": Case(_function(lambda k: torch.arange(k, device="hpu") * 2), lambda n: (3,)),
    "empty": Case(_function(lambda x: x + 1), lambda n: (drawn(0, 4, seed=n),)),
    "many": Case(
        _function(lambda *xs: torch.stack(xs).sum(0)),
        lambda n: tuple(drawn(2, seed=n * 50 + i) for i in range(20)),
    ),
    "unread": Case(_function(lambda x, y: x + 1), lambda n: (drawn(3, seed=n), drawn(2, seed=n))),
    "transposed": Case(of_module(lambda: nn.Linear(3, 2)), lambda n: (drawn(3, 4, seed=n).t(),)),
    "step": Case(_function(lambda x: x.cumsum(1)), lambda n: (drawn(3, 8, seed=n)[:, ::2],)),
    "rows of a batch": Case(_function(lambda x: x * 2), lambda n: (drawn(6, 4, seed=n)[2:4],)),
    "expanded": Case(_function(lambda x: x * 2), lambda n: (drawn(1, 4, seed=n).expand(3, 4),)),
    "channels last": Case(
        of_module(lambda: nn.Conv2d(2, 3, 1)),
        lambda n: (drawn(2, 2, 4, 4, seed=n).to(memory_format=torch.channels_last),),
    ),
    "halves of one tensor": Case(
        _function(lambda x, y: x * y), lambda n: tuple(drawn(3, 4, seed=n).chunk(2, dim=1))
    ),
    "one tensor twice": Case(
        _function(lambda x, y: x * y if x is y else x - y), lambda n: (drawn(3, seed=n),) * 2
    ),
    "reshaped": Case(_function(lambda x: x.view(-1) * 2), lambda n: (drawn(3, 4, seed=n),)),
    "returns an input": Case(_function(lambda x, y: (x, y * 2)), lambda n: (drawn(3, seed=n),) * 2),
    "returns a view of an input": Case(
        _function(lambda x: (x[1:], x.t(), x + 1)), lambda n: (drawn(3, 4, seed=n),)
    ),
    "returns weights": Case(of_module(_Viewing), lambda n: (drawn(2, 4, seed=n),)),
    "returns a constant": Case(
        _function(lambda x: (x + 1, torch.ones(2, device="hpu"))), lambda n: (drawn(2, seed=n),)
    ),
    "nested": Case(
        _function(_nested),
        lambda n: (drawn(3, seed=n), {"scale": 2.0, "bias": drawn(3, seed=n + 90)}, None, "text"),
    ),
    "writes to an input": Case(
        _function(_written), lambda n: (drawn(2, 3, seed=n), drawn(2, 3, seed=n + 90))
    ),
    "writes to a view": Case(
        _function(_written), lambda n: (drawn(2, 3, seed=n), drawn(4, 3, seed=n + 90)[1:3])
    ),
    "writes to a transposed input": Case(
        _function(_written), lambda n: (drawn(2, 3, seed=n), drawn(3, 2, seed=n + 90).t())
    ),
    "writes and returns an input": Case(
        _function(lambda x: x.add_(1)), lambda n: (drawn(3, seed=n),)
    ),
    "writes to buffers": Case(of_module(_Counting), lambda n: (drawn(3, 4, seed=n),)),
}


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested arguments or results, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Scored):
        value = [value.scores, value.count]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert that two results are of the same types and bit for bit the same."""
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours.cpu(), theirs.cpu())
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, Scored):
        assert_same(ours.scores, theirs.scores)
        assert ours.count == theirs.count
    else:
        assert ours == theirs
