"""`GraphedTraining`: gradients of replayed forwards and backwards equal those op by op."""

from __future__ import annotations

import pytest
import torch
from graphs.training_steps import (
    DROPPED,
    MLP,
    TwoHeads,
    assert_same,
    graphed,
    one_backward,
    pair,
    rows,
    train,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs.training_capture import _own_autocast_cache


@pytest.mark.parametrize("module", [MLP(), DROPPED], ids=["mlp", "dropout and batch norm"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_several_steps_equal_op_by_op_to_the_last_bit(module, set_to_none):
    plain, other = pair(module)
    expected = train(plain, plain, one_backward, set_to_none=set_to_none)
    call = graphed(other)
    assert_same(train(other, call, one_backward, set_to_none=set_to_none), expected)
    # The first is observed, the second captured.
    assert (call.stats.eager_calls, call.stats.captures, call.stats.replays) == (1, 1, 4)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_gradients(set_to_none):
    def step(call, number):
        for micro in range(3):
            loss = call(rows(seed=3 * number + micro)).square().mean() / 3
            loss.backward()
        return loss

    plain, other = pair(MLP())
    call = graphed(other)
    assert_same(
        train(other, call, step, set_to_none=set_to_none),
        train(plain, plain, step, set_to_none=set_to_none),
    )
    assert call.stats.captures == 1


def test_a_gradient_that_was_kept_is_not_overwritten():
    _, other = pair(MLP())
    call = graphed(other)
    for seed in range(3):
        other.zero_grad()
        call(rows(seed=seed)).sum().backward()
    kept = [p.grad for p in other.parameters()]
    values = [grad.clone() for grad in kept]
    other.zero_grad()
    call(rows(seed=9)).sum().backward()
    assert all(map(torch.equal, kept, values))


def test_several_calls_in_one_step_have_a_graph_each():
    def step(call, number):
        first, second = call(rows(seed=number)), call(rows(seed=50 + number))
        loss = (first * second.detach() + second.square()).mean()
        loss.backward()
        return loss

    plain, other = pair(MLP())
    call = graphed(other)
    assert_same(train(other, call, step), train(plain, plain, step))
    assert (call.stats.captures, call.num_graphs) == (2, 2)


def test_a_call_whose_backward_never_comes_gives_its_graph_back():
    _, other = pair(MLP())
    call = graphed(other)
    for seed in range(5):
        call(rows(seed=seed))  # dropped at once
        call(rows(seed=seed)).sum().backward()
    assert call.num_graphs == 1


def test_frozen_parameters_and_those_frozen_later():
    def step(call, number):
        modules[id(call)].layers[0].weight.requires_grad_(number % 3 == 0)
        return one_backward(call, number)

    plain, other = pair(MLP())
    call = graphed(other)
    modules = {id(plain): plain, id(call): other}
    assert_same(train(other, call, step, steps=9), train(plain, plain, step, steps=9))
    assert call.stats.captures == 2


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_gradients_of_inputs(needs):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, *, y):
            return self.linear(x) * y

    plain, other = pair(Product())
    call = graphed(other)
    for seed in range(4):
        grads = []
        for function in (plain, call):
            x, y = rows(seed=seed), rows(seed=20 + seed)
            x.requires_grad_(needs[0])
            y.requires_grad_(needs[1])
            function(x * 1, y=y).square().sum().backward()
            grads.append([x.grad, y.grad])
        for one, two in zip(*grads, strict=True):
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)
    assert call.stats.replays == 2


def test_an_output_without_a_gradient_gives_no_zeros():
    def step(call, number):
        loss = call(rows(seed=number))["first"].square().mean()
        loss.backward()
        return loss

    plain, other = pair(TwoHeads())
    call = graphed(other)
    assert_same(train(other, call, step), train(plain, plain, step))
    assert other.second.weight.grad is None
    assert call.stats.replays == 4


def test_outputs_that_get_a_gradient_by_turns():
    def step(call, number):
        loss = call(rows(seed=number))["second" if number % 2 else "first"].square().mean()
        loss.backward()
        return loss

    plain, other = pair(TwoHeads())
    call = graphed(other)
    assert_same(train(other, call, step, steps=8), train(plain, plain, step, steps=8))
    assert call.stats.captures == 2  # with one backward, then with both


def test_another_output_where_the_forward_draws_is_an_error():
    class Drops(TwoHeads):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x))

    _, other = pair(Drops())
    call = graphed(other)
    for seed in range(3):
        call(rows(seed=seed))["first"].sum().backward()
    with pytest.raises(CaptureError, match=r"gradients of outputs \[1\] only.*for outputs \[0\]"):
        call(rows())["second"].sum().backward()


def test_outputs_that_are_no_tensors_or_need_no_gradient_come_back():
    plain, other = pair(TwoHeads())
    call = graphed(other)
    for seed in range(3):
        expected, found = plain(rows(seed=seed)), call(rows(seed=seed))
        assert found["rows"] == expected["rows"] == 3
        assert torch.equal(found["ids"], expected["ids"])
        assert not found["ids"].requires_grad
        (found["first"].sum() + found["second"].sum()).backward()
    assert call.stats.replays == 1


def test_an_output_that_is_an_input_or_a_weight_is_that_tensor():
    class Echo(nn.Linear):
        def forward(self, x):
            return super().forward(x), x, self.weight

    _, other = pair(Echo(4, 4))
    call = graphed(other)
    for seed in range(4):
        x = rows(seed=seed).requires_grad_()
        out, same, weight = call(x)
        assert same is x
        assert weight is other.weight
        other.zero_grad()
        (out.sum() + (same * 2).sum() + weight.sum()).backward()
        expected = other.weight.detach().sum(0).expand(3, 4) + 2
        torch.testing.assert_close(x.grad, expected)
        torch.testing.assert_close(other.weight.grad, x.detach().sum(0).expand(4, 4) + 1)
    assert call.stats.replays == 2


def test_weights_loaded_and_replaced_in_between():
    def step(call, number):
        owner = modules[id(call)]
        if number == 3:
            owner.load_state_dict({k: v * 0.5 for k, v in owner.state_dict().items()})
        if number == 5:
            bias = owner.layers[0].bias
            bias.data = bias.detach().clone() + 1
        return one_backward(call, number)

    plain, other = pair(MLP())
    call = graphed(other)
    modules = {id(plain): plain, id(call): other}
    assert_same(train(other, call, step, steps=8), train(plain, plain, step, steps=8))
    assert call.stats.captures == 2


@pytest.mark.parametrize("shares", [False, True], ids=["one use", "tied"])
def test_bf16_autocast(shares):
    module = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    if shares:
        module[2] = module[0]

    def step(call, number):
        with torch.autocast("hpu", dtype=torch.bfloat16):
            out = call(rows(seed=number))
            assert out.dtype == torch.bfloat16
            loss = out.float().square().mean()
        loss.backward()
        return loss

    plain, other = pair(module)
    call = graphed(other)
    assert_same(train(other, call, step), train(plain, plain, step))
    assert call.stats.replays == 4


def test_a_setting_that_training_changes_is_seen():
    def step(call, number):
        modules[id(call)].p = 0.1 * (1 + number // 3)
        loss = call(rows(64, seed=number).requires_grad_()).sum()
        loss.backward()
        return loss

    plain, other = nn.Dropout(0.5), nn.Dropout(0.5)
    call = graphed(other)
    modules = {id(plain): plain, id(call): other}
    for number in range(9):
        torch.manual_seed(number)
        expected = step(plain, number)
        torch.manual_seed(number)
        assert torch.equal(step(call, number), expected)
    assert call.stats.captures == 3


def test_evaluation_mode_and_calls_without_gradients():
    plain, other = pair(DROPPED)
    call = graphed(other)
    for seed in range(3):
        call(rows(seed=seed)).sum().backward()
        plain(rows(seed=seed)).sum().backward()
    plain.load_state_dict(other.state_dict())
    plain.eval()
    other.eval()
    with torch.no_grad():
        for seed in range(3):
            assert torch.equal(call(rows(seed=seed)), plain(rows(seed=seed)))
    assert call.stats.captures == 2
    expected = train(plain, plain, one_backward)
    assert_same(train(other, call, one_backward), expected)


def test_gradients_that_are_kept_are_the_callers_own():
    _, other = pair(MLP())
    call = graphed(other)
    kept, values = [], []
    for seed in range(5):
        x = rows(seed=seed).requires_grad_()
        grads = torch.autograd.grad(call(x).sum(), [x, *other.parameters()])
        kept.append(grads)
        values.append([grad.cpu().clone() for grad in grads])
    for grads, before in zip(kept, values, strict=True):
        for grad, value in zip(grads, before, strict=True):
            assert torch.equal(grad.cpu(), value)
    assert call.stats.replays == 3


@pytest.mark.parametrize("clone_outputs", [True, False])
def test_outputs_that_are_kept_are_the_callers_own_unless_told_otherwise(clone_outputs):
    plain, other = pair(MLP())
    call = graphed(other, clone_outputs=clone_outputs)
    kept, values = [], []
    for seed in range(5):
        out = call(rows(seed=seed))
        out.sum().backward()
        kept.append(out.detach())
        values.append(plain(rows(seed=seed)).detach())
    for out, value in list(zip(kept, values, strict=True))[-1 if not clone_outputs else 0 :]:
        assert torch.equal(out, value)
    assert torch.equal(kept[-2], kept[-1]) != clone_outputs


class InnerFloat(nn.Module):
    """A part that autocast leaves alone."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        with torch.autocast("hpu", enabled=False):
            return self.second(x.float())


def test_the_backward_of_what_autocast_leaves_alone_does_so_too():
    def step(call, number):
        with torch.autocast("hpu", dtype=torch.bfloat16):
            loss = call(rows(seed=number)).square().mean()
        loss.backward()
        return loss

    plain, other = pair(InnerFloat())
    call = graphed(other)
    assert_same(train(other, call, step), train(plain, plain, step))
    assert call.stats.replays == 4


def test_weights_that_autocast_has_cast_before_and_casts_after_the_call():
    def step(call, number):
        weight = modules[id(call)].layers[0].weight
        with torch.autocast("hpu", dtype=torch.bfloat16):
            before = nn.functional.linear(rows(seed=number), weight)
            out = call(rows(seed=number))
            after = nn.functional.linear(rows(seed=number), weight * 1)
            again = nn.functional.linear(rows(seed=number), weight)
            loss = sum(each.float().square().mean() for each in (before, out, after, again))
        loss.backward()
        return loss

    plain, other = pair(MLP())
    call = graphed(other)
    modules = {id(plain): plain, id(call): other}
    found, expected = train(other, call, step), train(plain, plain, step)
    # The uses outside share one cast op by op, and its gradient is summed up in bfloat16.
    for (loss, grads), (plain_loss, plain_grads) in zip(found[0][:3], expected[0][:3], strict=True):
        torch.testing.assert_close(loss, plain_loss, rtol=1e-2, atol=1e-3)
        for grad, other_grad in zip(grads, plain_grads, strict=True):
            torch.testing.assert_close(grad, other_grad, rtol=5e-2, atol=5e-2)
    assert call.stats.replays == 4


def test_the_cache_of_autocast_is_empty_before_and_after_a_capture():
    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._to_copy.default and args[0].shape == (5, 4)
            return func(*args, **(kwargs or {}))

    weight = nn.Parameter(torch.randn(5, 4))
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
        nn.functional.linear(x, weight)
        nn.functional.linear(x, weight)
        assert casts.count == 1  # that there is a cache
        with _own_autocast_cache():
            nn.functional.linear(x, weight)
            nn.functional.linear(x, weight)
            assert casts.count == 2
        nn.functional.linear(x, weight)
        assert casts.count == 3
