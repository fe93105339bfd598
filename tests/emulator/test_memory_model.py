"""Live and peak bytes equal a plain model's, for any sequence of what allocates and frees.

The model knows storages, and for each thing that the test holds (a tensor, a module, an optimizer,
the end of an autograd graph) which storages it keeps alive. Live bytes are those of all of them.
"""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

FLOAT = 4


@dataclass(eq=False)
class Storage:
    """Memory behind tensors; two are the same only if they are one."""

    nbytes: int


@dataclass
class Handle:
    """Something that the test holds, and the storages that live as long as it.

    A module shares the storages of its parameters and gradients with its optimizers. A view keeps
    the tensor that it was made from, with whatever storage that has by now.
    """

    kind: str
    value: Any
    storages: list[Storage]
    shared: list[Storage] = field(default_factory=list)
    base: Handle | None = None


class Model:
    """Runs each action on the device and in the model."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def live(self) -> int:
        kept = [*self.handles, *(handle.base for handle in self.handles if handle.base)]
        held = {s for handle in kept for s in (*handle.storages, *handle.shared)}
        return sum(storage.nbytes for storage in held)

    def pick(self, number: int, *kinds: str) -> Handle | None:
        """One of the handles of these kinds."""
        candidates = [handle for handle in self.handles if handle.kind in kinds]
        return candidates[number % len(candidates)] if candidates else None

    def hold(self, kind: str, value: Any, *storages: Storage) -> None:
        self.handles.append(Handle(kind, value, list(storages)))

    def allocate(self, a: int, b: int, size: int) -> None:
        tensor = torch.randn(size).to("hpu") if a % 2 else torch.empty(size, device="hpu")
        self.hold("tensor", tensor, Storage(size * FLOAT))

    def view(self, a: int, b: int, size: int) -> None:
        # Of a view of a view PyTorch keeps more than `_base` says; it shares the storage anyway.
        if (base := self.pick(a, "tensor")) and base.value._base is None:
            tensor = base.value
            views = (tensor[b % (len(tensor) + 1) :], tensor.view(-1), tensor.detach(), tensor.data)
            self.hold("tensor", views[size % len(views)], *base.storages)
            if self.handles[-1].value._base is not None:
                assert self.handles[-1].value._base is tensor
                self.handles[-1].base = base

    def clone(self, a: int, b: int, size: int) -> None:
        if source := self.pick(a, "tensor"):
            copied = source.value.clone() if b % 2 else source.value * 2
            self.hold("tensor", copied, Storage(len(copied) * FLOAT))

    def write(self, a: int, b: int, size: int) -> None:
        if target := self.pick(a, "tensor"):
            target.value.add_(1).mul_(2)
            target.value[: b % (len(target.value) + 1)] = 3

    def delete(self, a: int, b: int, size: int) -> None:
        if self.handles:
            handle = self.handles.pop(a % len(self.handles))
            needs_collection = handle.kind == "optimizer"  # a cycle of its hooks
            del handle
            if needs_collection:
                gc.collect()

    def resize(self, a: int, b: int, size: int) -> None:
        if target := self.pick(a, "tensor"):
            tensor, (storage,) = target.value, target.storages
            tensor.resize_(size)
            if size:  # memory grows where it must, and never shrinks
                needed = (tensor.storage_offset() + size) * FLOAT
                storage.nbytes = max(storage.nbytes, needed)

    def set_storage(self, a: int, b: int, size: int) -> None:
        target, source = self.pick(a, "tensor"), self.pick(b, "tensor")
        if target and source:
            target.value.set_(source.value)
            target.storages = list(source.storages)

    def set_data(self, a: int, b: int, size: int) -> None:
        target, source = self.pick(a, "tensor"), self.pick(b, "tensor")
        if target and source:
            target.value.data = source.value
            target.storages = list(source.storages)

    def make_module(self, a: int, b: int, size: int) -> None:
        self.hold("module", nn.Linear(size + 1, 3))

    def move_module(self, a: int, b: int, size: int) -> None:
        if handle := self.pick(a, "module"):
            module = handle.value
            was_there = next(module.parameters()).device.type == "hpu"
            module.to("hpu" if b % 3 else "cpu")
            if not b % 3:
                handle.shared.clear()
            elif not was_there:
                parameters = list(module.parameters())
                gradients = [p.grad for p in parameters if p.grad is not None]
                handle.shared += [Storage(t.numel() * FLOAT) for t in (*parameters, *gradients)]

    def train(self, a: int, b: int, size: int) -> None:
        """A step of a new Adam, which keeps two tensors for each parameter."""
        handle = self.pick(a, "module")
        if handle is None or not handle.shared:
            return
        module = handle.value
        parameters = list(module.parameters())
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        module(torch.ones(2, module.in_features, device="hpu")).sum().backward()
        optimizer.step()
        if len(handle.shared) == len(parameters):
            handle.shared += [Storage(p.numel() * FLOAT) for p in parameters]
        moments = [Storage(p.numel() * FLOAT) for p in parameters for _ in range(2)]
        self.handles.append(Handle("optimizer", optimizer, moments, handle.shared))

    def build_graph(self, a: int, b: int, size: int) -> None:
        """``exp`` keeps its result for the backward, and the leaf lives with the graph."""
        leaf = torch.zeros(size, device="hpu", requires_grad=True)
        self.hold("graph", leaf.exp().sum(), *(Storage(n * FLOAT) for n in (size, size, 1)))

    def run_backward(self, a: int, b: int, size: int) -> None:
        if handle := self.pick(a, "graph"):
            handle.value.backward()
            leaf, _, result = handle.storages
            handle.kind = "done"
            # The leaf and its gradient live with the graph's end, what was saved does not.
            handle.storages = [leaf, Storage(leaf.nbytes), result]


ACTIONS = [name for name in vars(Model) if name not in ("hold", "live", "pick") and name[0] != "_"]


@pytest.mark.parametrize("seed", range(20))
def test_the_figures_equal_the_models(seed):
    gc.collect()
    start = torch.hpu.memory_allocated()
    active = torch.hpu.memory_stats()["ActiveAllocs"]
    torch.hpu.reset_peak_memory_stats()
    generator = random.Random(seed)
    model = Model()
    highest = 0
    for step in range(300):
        action = generator.choice(ACTIONS)
        getattr(model, action)(*(generator.randrange(60) for _ in range(3)))
        live = torch.hpu.memory_allocated() - start
        assert live == model.live(), f"{action} at step {step}"
        highest = max(highest, live)
        assert torch.hpu.max_memory_allocated() - start >= highest
    model.handles.clear()
    gc.collect()
    assert torch.hpu.memory_allocated() == start
    assert torch.hpu.memory_stats()["ActiveAllocs"] == active
    assert torch.hpu.max_memory_allocated() - start >= highest > 0
    torch.hpu.reset_peak_memory_stats()
    assert torch.hpu.max_memory_allocated() == start
