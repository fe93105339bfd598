"""Host reads and host values inside a capture raise, with the op, the line and the remedy."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.errors import CaptureError, HostReadError
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


KEPT = torch.ones(3, device="hpu")


def device_tensor_from_outside(x):
    return x + KEPT


BAD = [
    (fill_under_mask, "aten::index_put_", "shape depends on data", "fixed shape"),
    (device_tensor_from_outside, "aten::add", r"shape \(3,\) that is neither", "register_buffer"),
    (item, "aten::_local_scalar_dense", "reads a device value on the host", "torch.where"),
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
def test_names_op_line_and_remedy(fn, op, what, remedy, inference):
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


@pytest.mark.parametrize("fn", [constants, index_with_integers, fill_with_one_value, device_random])
def test_what_a_graph_may_hold_passes(fn):
    graphed = GraphedForward(fn)
    with torch.no_grad():
        for step in range(3):
            x = (X + step).to("hpu")
            assert torch.equal(graphed(x).cpu(), fn(x).cpu())
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 2)


def test_a_swallowed_refusal_is_raised_all_the_same():
    def swallows(x):
        try:
            return x * x.sum().item()
        except Exception:
            return x

    with torch.no_grad(), pytest.raises(HostReadError, match="_local_scalar_dense"):
        GraphedForward(swallows)(X.to("hpu"))


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


def test_stock_bert_with_a_2d_mask_is_refused_and_names_its_line():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = BertModel(config).eval().to("hpu")
    ids = torch.randint(0, 50, (2, 6)).to("hpu")
    mask = torch.ones(2, 6, dtype=torch.int64, device="hpu")
    with (
        torch.no_grad(),
        pytest.raises(CaptureError, match=r"transformers/masking_utils\.py:\d+, called"),
    ):
        GraphedForward(model.forward)(input_ids=ids, attention_mask=mask)


def test_a_batch_norm_module_is_left_whole_by_a_refusal():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval().to("hpu")
    state = {name: value.cpu().clone() for name, value in module.state_dict().items()}

    def forward(x):
        return module(x) * module(x).sum().item()

    with torch.no_grad(), pytest.raises(HostReadError):
        GraphedForward(forward, module=module)(X.to("hpu"))
    assert all(torch.equal(state[k], v.cpu()) for k, v in module.state_dict().items())
    with emulator.record() as events:
        module(X.to("hpu"))
    assert not [e for e in events if e.kind == "capture_begin"]
