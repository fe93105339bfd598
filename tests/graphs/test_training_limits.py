"""`GraphedTraining` where a graph could not be right: op by op, said once, or an error."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from graphs.training_steps import MLP, assert_same, graphed, one_backward, pair, rows, train
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gaudi.errors import CaptureError, HostReadError


def test_clipping():
    def step(call, number):
        loss = one_backward(call, number)
        nn.utils.clip_grad_norm_(modules[id(call)].parameters(), 0.01)
        return loss

    plain, other = pair(MLP())
    call = graphed(other)
    modules = {id(plain): plain, id(call): other}
    assert_same(train(other, call, step), train(plain, plain, step))


def test_more_shapes_than_max_graphs_run_op_by_op():
    def step(call, number):
        loss = call(rows(1 + number % 3, seed=number)).square().mean()
        loss.backward()
        return loss

    plain, other = pair(MLP())
    call = graphed(other, max_graphs=2)
    with pytest.warns(UserWarning, match="trains op by op.*max_graphs=2 graphs already") as caught:
        found = train(other, call, step, steps=12)
    assert_same(found, train(plain, plain, step, steps=12))
    assert len([w for w in caught if "max_graphs" in str(w.message)]) == 1
    assert (call.stats.captures, call.stats.replays, call.stats.eager_calls) == (2, 4, 6)


def test_double_backward_is_seen_at_once_and_runs_op_by_op():
    def penalty(call, x):
        x = x.requires_grad_()
        (grad,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
        loss = grad.square().sum()
        loss.backward()
        return loss

    def step(call, number):
        return penalty(call, rows(seed=number))

    plain, other = pair(MLP())
    call = graphed(other)
    with pytest.warns(UserWarning, match="differentiated once more"):
        found = train(other, call, step)
    assert_same(found, train(plain, plain, step))
    assert call.stats.captures == 0

    plain, other = pair(MLP())
    call = graphed(other)

    def later(function, number):
        return step(function, number) if number > 3 else one_backward(function, number)

    with pytest.warns(UserWarning, match="differentiated once more"):
        found = train(other, call, later)
    expected = train(plain, plain, later)
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["forward", "backward", "parameter"])
def test_hooks_run_op_by_op(kind):
    ran = []
    plain, other = pair(MLP())
    for module in (plain, other):
        if kind == "forward":
            module.layers[0].register_forward_hook(lambda *_: ran.append(1))
        elif kind == "backward":
            module.layers[1].register_full_backward_hook(lambda *_: ran.append(1))
        else:
            module.layers[0].weight.register_hook(lambda grad: grad * 2)
    call = graphed(other)
    with pytest.warns(UserWarning, match="trains op by op.* hook"):
        found = train(other, call, one_backward)
    assert_same(found, train(plain, plain, one_backward))
    assert len(ran) == (0 if kind == "parameter" else 12)
    assert call.stats.captures == 0


def test_hooks_after_accumulation_run_once_a_backward():
    ran = []
    _, other = pair(MLP())
    other.layers[0].weight.register_post_accumulate_grad_hook(lambda p: ran.append(p.grad.sum()))
    call = graphed(other)
    for seed in range(4):
        call(rows(seed=seed)).sum().backward()
    assert len(ran) == 4
    assert call.stats.replays == 2


def test_a_forward_that_writes_to_its_argument():
    class Writes(nn.Linear):
        def forward(self, x, total):
            total.add_(1)
            return super().forward(x) * total

    plain, other = pair(Writes(4, 2))
    call = graphed(other)
    totals = [torch.zeros(2).to("hpu") for _ in range(2)]
    with pytest.warns(UserWarning, match="it writes to its arguments"):
        for seed in range(4):
            for function, total in zip((plain, call), totals, strict=True):
                function(rows(seed=seed), total).sum().backward()
    assert totals[0].tolist() == totals[1].tolist() == [4.0, 4.0]
    assert torch.equal(plain.weight.grad, other.weight.grad)


def test_a_forward_that_writes_to_an_argument_with_a_gradient():
    class Writes(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(2))

    plain, other = pair(Writes(4, 2))
    call = graphed(other)
    with pytest.warns(UserWarning, match="it writes to an argument that needs a gradient"):
        for seed in range(4):
            for function in (plain, call):
                function(rows(seed=seed).requires_grad_() * 1).sum().backward()
    assert torch.equal(plain.weight.grad, other.weight.grad)


def test_a_host_read_is_an_error_or_runs_op_by_op_with_buffers_written_once():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) * x.mean().item()

    plain, other = pair(Reads())
    call = graphed(other)
    call(rows()).sum().backward()
    with pytest.raises(HostReadError, match="_local_scalar_dense"):
        call(rows()).sum().backward()

    plain, other = pair(Reads())
    call = graphed(other, on_failure="eager")
    with pytest.warns(UserWarning, match="trains op by op"):
        found = train(other, call, one_backward)
    assert_same(found, train(plain, plain, one_backward))


def test_checkpointing_around_the_call_runs_op_by_op():
    def step(call, number):
        loss = checkpoint(call, rows(seed=number), use_reentrant=False).square().mean()
        loss.backward()
        return loss

    plain, other = pair(MLP())
    call = graphed(other)
    with pytest.warns(UserWarning, match="saved-tensor hooks are in use"):
        found = train(other, call, step)
    assert_same(found, train(plain, plain, step))


def test_weights_written_between_forward_and_backward_are_an_error_as_op_by_op():
    _, other = pair(MLP())
    call = graphed(other)
    for seed in range(3):
        call(rows(seed=seed)).sum().backward()
    loss = call(rows()).sum()
    with torch.no_grad():
        other.layers[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_of_a_call():
    plain, other = pair(MLP())
    call = graphed(other)
    for seed in range(3):
        call(rows(seed=seed)).sum().backward()
    other.zero_grad()
    for function in (plain, call):
        loss = function(rows()).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
    loss = call(rows()).sum()
    loss.backward(retain_graph=True)
    call(rows(seed=1)).sum().backward()
    with pytest.raises(CaptureError, match=r"second backward of a call \(retain_graph=True\)"):
        loss.backward()


def test_a_counter_in_the_module_is_not_frozen():
    class Counts(nn.Linear):
        count = 0

        def forward(self, x):
            self.count += 1
            return super().forward(x) * self.count

    plain, other = pair(Counts(4, 2))
    call = graphed(other, max_graphs=1)
    with pytest.warns(UserWarning, match=r"hardly two calls are alike.*\(count\)"):
        found = train(other, call, one_backward, steps=70)
    assert_same(found, train(plain, plain, one_backward, steps=70))
    assert call.stats.captures == 0


def test_nothing_is_said_where_all_is_well_and_memory_goes_back():
    _, other = pair(MLP())
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = graphed(other)
        for seed in range(4):
            other.zero_grad()
            call(rows(seed=seed)).sum().backward()
    other.zero_grad()
    before = torch.hpu.memory_allocated()
    call.clear()
    gc.collect()
    freed = before - torch.hpu.memory_allocated()
    assert freed > 0
    assert call.num_graphs == 0
