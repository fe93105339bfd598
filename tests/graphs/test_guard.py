"""Host reads and host values inside a capture raise, with the op, the line and the remedy."""

from __future__ import annotations

import copy
import inspect
import random
import re

import numpy as np
import pytest
import torch

from lightning_gaudi.errors import HostReadError
from lightning_gaudi.graphs import GraphedForward

X = torch.arange(6.0).reshape(2, 3)
OUTSIDE = torch.ones(3)


def item(x):
    return x * x.sum().item()


def branch(x):
    return x * 2 if x.sum() > 0 else x


def to_int(x):
    return x * int(x[0, 0])


def to_list(x):
    return x * x.tolist()[0][1]


def to_cpu(x):
    return x + x.cpu().to("hpu")


def nonzero(x):
    return x.nonzero()


def mask_select(x):
    return x[x > 2]


def masked_select(x):
    return torch.masked_select(x, x > 2)


def unique(x):
    return torch.unique(x)


def equal(x):
    return x * torch.equal(x, x)


def allclose(x):
    return x * torch.allclose(x, x)


def outside(x):
    return x + OUTSIDE.to("hpu")


def cpu_random(x):
    return x + torch.rand(3).to("hpu")


def any_rows(x):
    return x * (1 if (x > 100).any() else 2)


def show(x):
    str(x)
    return x * 1


def copy_to_host(x):
    host = torch.empty(2, 3)
    host.copy_(x)
    return x * 1


def iterate(x):
    return sum(float(row[0]) for row in x) + x


def fill_under_mask(x):
    y = x.clone()
    y[x > 2] = torch.arange(3.0, device="hpu")
    return y


def to_bool(x):
    return x * bool(x[0, 1])


def to_numpy(x):
    return x + torch.from_numpy(x.cpu().numpy()).to("hpu")


def to_word(x):
    return x * len(f"{x[0, 0]:.2f}")


def print_it(x):
    print(x)
    return x * 1


def print_as_pytorch_does(x):
    torch.Tensor.__repr__(x)  # what a card's tensors do: with all modes off
    return x * 1


def loop(x):
    return sum((x for _ in range(x[0, 2].long())), x)


def check(x):
    assert (x >= 0).all()
    return x * 1


def rebuild_from_values(x):
    return x * torch.tensor([x[0, 1], x[0, 2], 1.0], device="hpu")


def repeat(x):
    return x.repeat_interleave(torch.tensor([1, 2], device="hpu"), dim=0)


def count(x):
    return torch.bincount(x.long().flatten())


def write_a_growing_out(x):
    return torch.nonzero(x, out=torch.empty(0, dtype=torch.int64, device="hpu"))


def factorize(x):
    return torch.linalg.cholesky(x[:2, :2] * 0 + torch.eye(2, device="hpu"))


def rebuild_whole_numbers(x):
    return torch.tensor(list(x.long().flatten()), device="hpu")


def python_random(x):
    scale = random.random()
    return x * scale


def python_random_at_the_end(x):
    y = x * 2
    random.random()
    return y


def numpy_random(x):
    scale = float(np.random.rand())
    return x * scale


def host_sum(x):
    return x * OUTSIDE.sum()


KEPT = torch.ones(3, device="hpu")


def device_tensor_from_outside(x):
    return x + KEPT


BAD = [
    (fill_under_mask, "aten::index_put_", "shape depends on data", "fixed shape"),
    (device_tensor_from_outside, "aten::add", r"shape \(3,\) that is neither", "register_buffer"),
    (item, "aten::_local_scalar_dense", "reads a device value on the host", "torch.where"),
    (to_bool, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (to_numpy, "aten::_to_copy", "copies a device tensor", "behind the call"),
    (to_word, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (print_it, "aten::_to_copy", "copies a device tensor", "behind the call"),
    (print_as_pytorch_does, "repr", "copies a device tensor", "behind the call"),
    (loop, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (check, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (rebuild_from_values, "__float__", "reads a device value", "torch.where"),
    (rebuild_whole_numbers, "__i", "reads a device value", "torch.where"),
    (repeat, "aten::repeat_interleave", "shape depends on data", "fixed shape"),
    (count, "aten::bincount", "shape depends on data", "fixed shape"),
    (write_a_growing_out, "aten::nonzero", "shape depends on data", "fixed shape"),
    (factorize, "aten::_linalg_check_errors", "reads a device value", "torch.where"),
    (allclose, "aten::", "reads a device value", "torch.where"),
    (python_random, "random (the host's)", "random numbers on the CPU", "device=x.device"),
    (python_random_at_the_end, "random (the host's)", "random numbers on the CPU", "on the device"),
    (numpy_random, "numpy.random (the host's)", "random numbers on the CPU", "device=x.device"),
    (host_sum, "aten::sum", "CPU tensor that was made outside", "register_buffer"),
    (branch, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (to_int, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (to_list, "aten::_to_copy", "copies a device tensor to the host", "behind the call"),
    (to_cpu, "aten::_to_copy", "copies a device tensor to the host", "behind the call"),
    (nonzero, "aten::nonzero", "shape depends on data", "fixed shape"),
    (mask_select, "aten::index", "shape depends on data", "fixed shape"),
    (masked_select, "aten::masked_select", "shape depends on data", "fixed shape"),
    (unique, "aten::_unique2", "shape depends on data", "fixed shape"),
    (equal, "aten::equal", "reads a device value", "torch.where"),
    (outside, "aten::_to_copy", "CPU tensor that was made outside", "register_buffer"),
    (cpu_random, "aten::rand", "random numbers on the CPU", "device=x.device"),
    (any_rows, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
    (show, "aten::_to_copy", "copies a device tensor to the host", "behind the call"),
    (copy_to_host, "aten::copy_", "copies a device tensor|made outside", ""),
    (iterate, "aten::_local_scalar_dense", "reads a device value", "torch.where"),
]


@pytest.mark.parametrize(
    ("fn", "op", "what", "remedy"), BAD, ids=lambda v: getattr(v, "__name__", "")
)
@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
def test_never_wrong_5_names_op_line_and_remedy(fn, op, what, remedy, inference):
    graphed = GraphedForward(fn)
    with (
        torch.inference_mode(inference),
        torch.no_grad(),
        pytest.raises(HostReadError) as caught,
    ):
        graphed(X.to("hpu"))
    message = str(caught.value)
    assert message.startswith(f"cannot capture {fn.__name__} as an HPU graph: {op}")
    assert re.search(what, message)
    assert remedy in message
    lines, first = inspect.getsourcelines(fn)
    named = re.search(r"test_guard\.py:(\d+)", message)
    assert named is not None
    assert first < int(named[1]) < first + len(lines)
    assert graphed.num_graphs == 0


def constants(x):
    scale = torch.tensor(2.0, device=x.device)
    positions = torch.arange(3).to(x.device)
    return (
        x * scale
        + positions
        + torch.full((3,), 0.5).to("hpu") * torch.tensor([1.0, 2.0, 3.0]).to("hpu")
    )


def index_with_integers(x):
    rows = torch.tensor([1, 0], device=x.device)
    x = x.clone()
    x[rows, rows] = 9.0
    return x[rows] + x.shape[0] + len(x)


def fill_with_one_value(x):
    y = x.clone()
    y[x > 2] = -1.0
    return y


def device_random(x):
    return x + 0 * torch.rand_like(x)


def repeat_to_a_given_size(x):
    repeats = torch.tensor([1, 2], device="hpu")
    return x.repeat_interleave(repeats, dim=0, output_size=3)


def copy_on_the_device(x):
    return x + torch.empty_like(x).copy_(x) + copy.deepcopy(x)


def compare_addresses(x):
    y = x.view(-1)
    return x * (2 if x.data_ptr() == y.data_ptr() else 3) * (x.clone().data_ptr() == x.data_ptr())


def print_constants(x):
    host = torch.tensor(3.0)
    return x * float(host) * len(repr(host)) * int(host)


@pytest.mark.parametrize(
    "fn",
    [
        constants,
        index_with_integers,
        fill_with_one_value,
        device_random,
        repeat_to_a_given_size,
        copy_on_the_device,
        compare_addresses,
        print_constants,
    ],
)
def test_card_rule_9_what_a_graph_may_hold_passes(fn):
    graphed = GraphedForward(fn)
    with torch.no_grad():
        for step in range(3):
            x = (X + step).to("hpu")
            assert torch.equal(graphed(x).cpu(), fn(x).cpu())
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 2)


def test_the_line_of_a_host_draw_is_not_far_from_it():
    def draws(x):
        y = x * 2
        scale = random.random()
        y = y * scale
        y = y + 1
        return y - 1

    with torch.no_grad(), pytest.raises(HostReadError) as caught:
        GraphedForward(draws)(X.to("hpu"))
    first = inspect.getsourcelines(draws)[1]
    assert f"test_guard.py:{first + 3}." in str(caught.value)  # the next op after it


def test_a_swallowed_refusal_is_raised_all_the_same():
    def swallows(x):
        try:
            return x * x.sum().item()
        except Exception:
            return x

    with torch.no_grad(), pytest.raises(HostReadError, match="_local_scalar_dense"):
        GraphedForward(swallows)(X.to("hpu"))


def test_a_refusal_that_became_another_error_is_raised_as_itself():
    def converts(x):
        try:
            return x * x.sum().item()
        except Exception as error:
            raise KeyError("mine") from error

    with torch.no_grad(), pytest.raises(HostReadError, match="_local_scalar_dense") as caught:
        GraphedForward(converts)(X.to("hpu"))
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_guard_is_gone_after_the_capture():
    printing = torch.Tensor.__repr__
    graphed = GraphedForward(lambda x: x * 2)
    with torch.no_grad():
        y = graphed(X.to("hpu"))
    assert torch.Tensor.__repr__ is printing
    assert "__float__" not in vars(torch.Tensor)
    assert y.sum().item() == 30.0
    with torch.no_grad(), pytest.raises(HostReadError):
        GraphedForward(item)(X.to("hpu"))
    assert torch.Tensor.__repr__ is printing


def test_on_failure_eager_runs_op_by_op_and_says_so_once(recwarn):
    graphed = GraphedForward(item, on_failure="eager")
    with torch.no_grad():
        for step in range(3):
            x = (X + step).to("hpu")
            assert torch.equal(graphed(x).cpu(), item(x).cpu())
    said = [str(w.message) for w in recwarn if "op by op" in str(w.message)]
    assert len(said) == 1
    assert "aten::_local_scalar_dense" in said[0]
    assert (graphed.stats.captures, graphed.stats.replays, graphed.stats.eager_calls) == (0, 0, 3)


def test_without_the_guard_the_answer_would_be_silently_wrong():
    """What a card does, and the emulator with it: the reason for the guard."""
    import habana_frameworks.torch as htorch

    x = X.to("hpu")
    graph = htorch.hpu.HPUGraph()
    with torch.no_grad(), htorch.hpu.graph(graph):
        y = item(x)
    x.copy_(X * 2)
    graph.replay()
    assert torch.equal(y.cpu(), X * 2 * X.sum())  # right would be X * 2 * (X * 2).sum()
