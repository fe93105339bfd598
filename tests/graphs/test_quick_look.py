"""The quick ways to find a call's graph prove what they say, and others take their place."""

from __future__ import annotations

import pytest
import torch
from cases_of_graphs import CASES, assert_same, drawn
from torch import nn

from lightning_gaudi.graphs import GraphedForward, tensor_check
from lightning_gaudi.graphs.captured import CapturedGraph
from lightning_gaudi.graphs.weights import ModuleWatch


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=["in C++", "in Python"])
def _check(request, monkeypatch):
    """With the compiler's check, and as where PyTorch does not offer it."""
    tensor_check._is_trustworthy.cache_clear()
    if request.param == "in Python":
        monkeypatch.setattr(tensor_check, "_make", lambda tensors: None)
    yield
    tensor_check._is_trustworthy.cache_clear()


def pair():
    return drawn(2, 3, seed=0), drawn(4, seed=1)


OTHERS = {
    "shape": lambda x, y: (drawn(3, 2, seed=0), y),
    "dimensions": lambda x, y: (drawn(2, 3, 1, seed=0), y),
    "dtype": lambda x, y: (x.double(), y),
    "strides": lambda x, y: (drawn(3, 2, seed=0).t(), y),
    "step": lambda x, y: (drawn(2, 6, seed=0)[:, ::2], y),
    "order": lambda x, y: (y, x),
    "device": lambda x, y: (x, y.cpu()),
    "meta": lambda x, y: (x, y.to("meta")),
    "type": lambda x, y: (x, y.cpu().to("meta")),
}


@pytest.mark.parametrize("how", OTHERS)
def test_the_check_tells_tensors_apart(how):
    check = tensor_check.tensor_check(pair())
    assert check is not None
    assert check(*pair())
    assert check(*(t[...] for t in pair()))  # other storage, offset or base: no difference
    assert not check(*OTHERS[how](*pair()))


def test_the_check_holds_no_reference():
    import sys
    import weakref

    tensors = pair()
    counts = [sys.getrefcount(t) for t in tensors]
    check = tensor_check.tensor_check(tensors)
    assert [sys.getrefcount(t) for t in tensors] == counts
    reference = weakref.ref(tensors[0])
    del tensors
    assert reference() is None
    assert check(*pair())


def missing(tensors):
    return None


def always_true(tensors):
    return lambda *others: True


def raising(tensors):
    def check(*others):
        raise TypeError

    return check


def blind_to_repetition(tensors):
    def layouts(them):
        return [(t.shape, t.stride(), t.dtype, t.device) for t in them]

    expected = layouts(tensors)
    return lambda *others: layouts(others) == expected


@pytest.mark.parametrize("broken", [missing, always_true, raising, blind_to_repetition])
def test_a_check_that_fails_its_test_is_not_used(monkeypatch, broken):
    monkeypatch.setattr(tensor_check, "_make", broken)
    tensor_check._is_trustworthy.cache_clear()
    try:
        assert tensor_check.tensor_check(pair()) is None
        graphed = GraphedForward(lambda x: x * 2, pad_batch=False)
        for rows in (1, 2, 1):
            assert_same(graphed(drawn(rows, seed=3)), drawn(rows, seed=3) * 2)
    finally:
        monkeypatch.undo()
        tensor_check._is_trustworthy.cache_clear()
    assert tensor_check.tensor_check(pair()) is not None


def test_no_compilers_guards_at_all(monkeypatch):
    monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    tensor_check._is_trustworthy.cache_clear()
    try:
        assert tensor_check.tensor_check(pair()) is None
    finally:
        monkeypatch.undo()
        tensor_check._is_trustworthy.cache_clear()


@pytest.mark.usefixtures("_check")
@pytest.mark.parametrize("name", CASES)
def test_equals_op_by_op_either_way(name):
    fn, module = CASES[name].make()
    twin, _ = CASES[name].make()
    graphed = GraphedForward(fn, module=module, pad_batch=False)
    for number in range(3):
        ours, theirs = CASES[name].call(number), CASES[name].call(number)
        assert_same(graphed(*ours), twin(*theirs))
        assert_same(list(ours), list(theirs))
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 2)


@pytest.mark.usefixtures("_check")
def test_kinds_of_calls_by_turns():
    graphed = GraphedForward(lambda x, y=None: x * 2 if y is None else x + y, pad_batch=False)
    calls = [
        lambda n: ((drawn(3, seed=n),), {}),
        lambda n: ((drawn(4, seed=n),), {}),
        lambda n: ((drawn(3, seed=n).double(),), {}),
        lambda n: ((), {"x": drawn(3, seed=n)}),
        lambda n: ((drawn(3, seed=n),), {"y": drawn(3, seed=n + 5)}),
        lambda n: ((drawn(3, seed=n),) * 2, {}),
        lambda n: ((drawn(3, seed=n), drawn(3, seed=n + 5)), {}),
        lambda n: ((drawn(3, seed=n), torch.tensor(float(n % 2))), {}),
        lambda n: ((drawn(3, 2, seed=n).t(),), {}),
        lambda n: ((drawn(2, 3, seed=n),), {}),
        lambda n: ((drawn(3, seed=n), 1), {}),
        lambda n: ((drawn(3, seed=n), True), {}),
        lambda n: ((drawn(3, seed=n), 1.0), {}),
    ]
    for number in range(4):
        for call in calls:
            args, kwargs = call(number)
            assert_same(graphed(*args, **kwargs), graphed._fn(*args, **kwargs))
    assert graphed.stats.captures == len(calls) + 1  # the CPU scalar has two values


def test_the_same_kind_of_call_takes_the_quick_way(monkeypatch):
    graphed = GraphedForward(lambda x, y: x + y, pad_batch=False)
    graphed(drawn(3, seed=0), drawn(3, seed=1))
    monkeypatch.setattr("lightning_gaudi.graphs.replay.describe", None)
    assert_same(graphed(drawn(3, seed=2), drawn(3, seed=3)), drawn(3, seed=2) + drawn(3, seed=3))


def test_one_tensor_twice_never_takes_the_graph_of_two(monkeypatch):
    graphed = GraphedForward(lambda x, y: x.add_(1) * y, pad_batch=False)
    graphed(drawn(3, seed=0), drawn(3, seed=1))
    x = drawn(3, seed=2)
    assert_same(graphed(x, x), (drawn(3, seed=2) + 1) ** 2)
    assert_same(x, drawn(3, seed=2) + 1)
    assert graphed.stats.captures == 2
    (first, _) = graphed._graphs.values()
    assert isinstance(first, CapturedGraph)
    assert not first.accepts((x, x), False)


# --- the watch ------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.extra = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False)})
        self.flat = nn.Parameter(torch.randn(12)[2:8])
        self.register_buffer("nothing", None)
        self.tied = self.first.weight

    def forward(self, x):
        return self.second(self.first(x)) + self.extra["a"](x) * self.flat[:3]


def net():
    torch.manual_seed(6)
    return Net().to("hpu").eval()


def of_one_storage(tensor, offset):
    flat = torch.zeros(tensor.numel() + 8, device="hpu")
    view = flat[offset : offset + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return flat, view


def _data(m):
    m.second[0].weight.data = m.second[0].weight.data.clone()


def _transposed(m):
    m.first.weight.data = m.first.weight.data.t()


def _viewed_as_other(m):
    m.first.bias.data = m.first.bias.data.view(torch.int32).view(torch.float32)[:2]


def _dtype(m):
    m.second[1].running_mean.data = m.second[1].running_mean.data.view(torch.int32)


def _set(m):
    m.second[1].running_mean.set_(torch.ones(3, device="hpu"))


def _swap(m):
    torch.utils.swap_tensors(m.first.weight, nn.Parameter(torch.ones(3, 3, device="hpu")))


def _parameter(m):
    m.extra["a"].weight = nn.Parameter(torch.ones(3, 3, device="hpu"))


def _removed(m):
    m.second[0].bias = None


def _registered(m):
    m.second[2].register_parameter("new", nn.Parameter(torch.ones(1, device="hpu")))


def _buffer(m):
    m.second[1].running_var = torch.ones(3, device="hpu")


def _filled_none(m):
    m.nothing = torch.ones(3, device="hpu")


def _child(m):
    m.second[2] = nn.Identity()


def _added_child(m):
    m.extra["b"] = nn.Identity()


def _deeper_child(m):
    m.second[2].add_module("deep", nn.Linear(1, 1))


def _names_exchanged(m):
    a, b = m.second[0]._parameters.pop("weight"), m.extra["a"]._parameters.pop("weight")
    m.second[0]._parameters["weight"], m.extra["a"]._parameters["weight"] = b, a


def _keys_exchanged(m):
    mean, var = (m.second[1]._buffers.pop(n) for n in ("running_mean", "running_var"))
    rest = dict(m.second[1]._buffers)
    m.second[1]._buffers.clear()
    m.second[1]._buffers.update({"running_var": mean, "running_mean": var, **rest})


def _dictionary(m):
    m.first._parameters = {k: nn.Parameter(v.clone()) for k, v in m.first._parameters.items()}


def _moved(m):
    m.cpu()
    m.to("hpu")


def _assigned(m):
    m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True)


CHANGES = {
    fn.__name__.strip("_"): fn
    for fn in (
        _data,
        _transposed,
        _viewed_as_other,
        _dtype,
        _set,
        _swap,
        _parameter,
        _removed,
        _registered,
        _buffer,
        _filled_none,
        _child,
        _added_child,
        _deeper_child,
        _names_exchanged,
        _keys_exchanged,
        _dictionary,
        _moved,
        _assigned,
    )
}


@pytest.mark.usefixtures("_check")
@pytest.mark.parametrize("how", CHANGES)
def test_never_wrong_4_every_replacement_is_noticed(how):
    module = net()
    watch = ModuleWatch(module)
    assert not watch.has_changed()
    assert not watch.has_changed()  # the second time with the check
    CHANGES[how](module)
    assert watch.has_changed()
    assert watch.has_changed()
    watch.refresh()
    assert not watch.has_changed()
    CHANGES["data"](module)
    assert watch.has_changed()


@pytest.mark.usefixtures("_check")
def test_a_weight_that_moves_within_its_storage():
    module = net()
    flat, view = of_one_storage(module.first.weight, 0)
    module.first.weight.data = view
    watch = ModuleWatch(module)
    assert not watch.has_changed()
    module.first.weight.data = flat[4:13].view(3, 3)
    assert watch.has_changed()


UNCHANGED = {
    "values": lambda m: [p.mul_(2) for p in m.parameters()],
    "requires_grad": lambda m: m.requires_grad_(False),
    "gradients": lambda m: setattr(m.first.weight, "grad", torch.ones(3, 3, device="hpu")),
    "an attribute": lambda m: setattr(m, "epoch", 3),
    "an equal dictionary": lambda m: setattr(m.first, "_parameters", dict(m.first._parameters)),
    "a hook": lambda m: m.first.register_forward_hook(lambda *a: None),
    "switches": lambda m: m.second[2].train(),
}


@pytest.mark.usefixtures("_check")
@pytest.mark.parametrize("how", UNCHANGED)
def test_what_changes_no_weight_is_no_change(how):
    module = net()
    watch = ModuleWatch(module)
    switches = watch.switches
    assert not watch.has_changed()
    UNCHANGED[how](module)
    assert not watch.has_changed()
    assert (watch.switches != switches) == (how == "switches")
    assert (watch.hooked() is not None) == (how == "a hook")
    for state in (None, ("autocast", True), None):
        assert not watch.has_changed(state)
    _data(module)
    assert watch.has_changed(("autocast", True))


def test_equal_switches_have_one_number():
    module = net()
    watch = ModuleWatch(module)
    seen = []
    for train in (False, True, False, True):
        module.second[2].train(train)
        assert not watch.has_changed()
        seen.append(watch.switches)
    assert seen[0] == seen[2] != seen[1] == seen[3]


def test_a_module_that_is_unchanged_is_not_described_anew(monkeypatch):
    watch = ModuleWatch(net())
    monkeypatch.setattr(watch, "_describe", None)
    for inference in (False, True, False, True):
        with torch.inference_mode(inference):
            assert not watch.has_changed(inference)


def test_a_forgotten_module_counts_as_changed_and_is_let_go():
    import weakref

    module = net()
    watch = ModuleWatch(module)
    storage = module.first.weight.untyped_storage()
    reference = weakref.ref(module.first.weight)
    watch.forget()
    module.first.weight = nn.Parameter(torch.ones(3, 3, device="hpu"))
    module.tied = None
    assert reference() is None
    assert watch.has_changed()
    del storage


@pytest.mark.usefixtures("_check")
def test_autocast_and_inference_mode_by_turns():
    module = net()
    graphed = GraphedForward(module, pad_batch=False)
    for number in range(3):
        for inference in (False, True):
            for enabled in (False, True):
                with torch.inference_mode(inference):
                    x = drawn(2, 3, seed=number)
                    with torch.autocast("hpu", dtype=torch.bfloat16, enabled=enabled):
                        ours = graphed(x)
                    with torch.autocast("hpu", dtype=torch.bfloat16, enabled=enabled):
                        assert_same(ours, module(x))
    assert graphed.stats.captures == 2


# --- what the look-up must ask in the right order -------------------------------------------------


def test_an_adapter_that_wants_gradients_is_seen_before_they_are_asked_for():
    module = net().requires_grad_(False)
    graphed = GraphedForward(module, pad_batch=False)
    with torch.enable_grad():
        assert not graphed(drawn(2, 3, seed=0)).requires_grad
        module.first = nn.Linear(3, 3).to("hpu")
        result = graphed(drawn(2, 3, seed=0))
        assert result.requires_grad
        result.sum().backward()
    assert module.first.weight.grad is not None
    assert graphed.stats.eager_calls == 1
