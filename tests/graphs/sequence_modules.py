"""Small modules for sequences of calls: each does something that graphs could get wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTH = 4


class Boom(Exception):
    """What a forward raises."""


@dataclass
class Answer:
    scores: Tensor
    rows: int
    nothing: None = None


class Base(nn.Module):
    """Takes its tensor from wherever the call has it, and may raise half-way."""

    def forward(self, x=None, factor=None, *, pair=None, options=None, cache=None, fail=False):
        if options is not None:
            x = options["x"]
        if pair is not None:
            x = pair[0] + pair[1]
        x = x.to(next(self.parameters()).dtype)
        if cache is not None:
            cache[:, 1] += x.sum()
        result = self.compute(x)
        if fail:
            raise Boom
        if isinstance(factor, str):
            return result
        return result if factor is None else self.scale(result, factor)

    def scale(self, result, factor):
        return result * factor if factor != 1 else result + 1


class TiedMLP(Base):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)

    def compute(self, x):
        return self.second(self.dropout(nn.functional.gelu(self.first(x))))


class ConvNorm(Base):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm1d(WIDTH)

    def compute(self, x):
        return self.norm(self.conv(x.unsqueeze(-1).expand(-1, -1, 3))).sum(-1)


class Attention(Base):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def compute(self, x):
        q, k, v = self.project(x).reshape(-1, 1, WIDTH, 3).unbind(-1)
        mask = (x > -1)[:, None, None, :].expand(-1, 1, WIDTH, WIDTH)
        q, k, v = (part.unsqueeze(-1) for part in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)


class Counter(Base):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def compute(self, x):
        self.calls += 1
        self.mean.mul_(0.9).add_(x.detach().float().mean(0))
        return x * self.weight * self.calls + self.mean


class Nested(Base):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((WIDTH,), 2.0))

    def compute(self, x):
        y = x * self.weight
        return {"in": x, "twice": (y, y), "list": [Answer(y + 1, x.shape[0]), None, "text"]}

    def scale(self, result, factor):
        return {**result, "factor": result["twice"][0] * factor, "weight": self.weight}


class ReadsHost(Base):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("calls", torch.zeros(1))

    def compute(self, x):
        self.calls += 1
        y = x * self.weight + torch.rand_like(x)
        return y if y.sum() > 0 else -y


MODULES: dict[str, type[Base]] = {
    kind.__name__: kind for kind in (TiedMLP, ConvNorm, Attention, Counter, Nested, ReadsHost)
}
