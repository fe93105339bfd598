"""``make_graphed_callables`` and ``ModuleCacher``: training through graphs equals eager."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from habana_frameworks.torch.hpu import ModuleCacher, graphs, make_graphed_callables
from torch import Tensor, nn

from lightning_gaudi.emulator import event_counts


@pytest.fixture(autouse=True)
def _no_collection_in_a_capture():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"warmups": 2},
    {"asynchronous": True},
    {"dry_run": True},
    {"disable_tensor_cache": True},
]


def train(module: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Losses, then parameters, of a few steps; batches are moved to where the module is."""
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    found = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        found.append(loss.detach().cpu())
    return found + [parameter.detach().cpu() for parameter in module.parameters()]


def batches(number: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(3, 4), torch.randn(3, 2)) for _ in range(number)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_graphed_module_trains_as_eager_does(options):
    host = MLP()
    device = copy.deepcopy(host).to("hpu")
    data = batches()
    before = [parameter.cpu().clone() for parameter in device.parameters()]
    graphed = make_graphed_callables(device, (torch.randn(3, 4).to("hpu"),), **options)
    assert graphed is device
    for parameter, value in zip(device.parameters(), before, strict=True):
        assert torch.equal(parameter.cpu(), value), "capturing must not train"
        assert parameter.grad is None
    replays = event_counts()["replay"]
    found = train(device, data)
    assert event_counts()["replay"] - replays == 2 * len(data)
    for one, other in zip(found, train(host, data), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_graphed_function_gives_gradients_of_its_arguments(options):
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * y).sum(1), x.exp()

    sample = torch.randn(2, 3).to("hpu").requires_grad_(), torch.randn(2, 3).to("hpu")
    graphed = make_graphed_callables(function, sample, **{**options, "allow_unused_input": True})
    for _ in range(3):
        x, y = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
        device_x = x.detach().to("hpu").requires_grad_()
        weights = torch.randn(2), torch.randn(2, 3)
        first, second = graphed(device_x, y.to("hpu"))
        assert torch.equal(first.cpu(), (x * y).sum(1))
        (first @ weights[0].to("hpu") + (second * weights[1].to("hpu")).sum()).backward()
        ((x * y).sum(1) @ weights[0] + (x.exp() * weights[1]).sum()).backward()
        torch.testing.assert_close(device_x.grad.cpu(), x.grad)


def test_several_callables_in_a_row():
    host = nn.Linear(4, 4), nn.Linear(4, 2)
    device = tuple(copy.deepcopy(module).to("hpu") for module in host)
    samples = (torch.randn(3, 4).to("hpu"),), (torch.randn(3, 4).to("hpu").requires_grad_(),)
    for disable_tensor_cache in (False, True):
        first, second = make_graphed_callables(
            tuple(copy.deepcopy(module) for module in device),
            samples,
            disable_tensor_cache=disable_tensor_cache,
        )
        for module in (*host, first, second):
            module.zero_grad()
        x = torch.randn(3, 4)
        second(first(x.to("hpu")).relu()).square().sum().backward()
        host[1](host[0](x).relu()).square().sum().backward()
        for found, expected in zip((first, second), host, strict=True):
            for one, other in zip(found.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(one.grad.cpu(), other.grad)


def test_a_frozen_parameter_gets_no_gradient():
    module = MLP().to("hpu")
    module.layers[0].weight.requires_grad_(False)
    make_graphed_callables(module, (torch.randn(3, 4).to("hpu"),))
    module(torch.randn(3, 4).to("hpu")).sum().backward()
    assert module.layers[0].weight.grad is None
    assert module.layers[0].bias.grad is not None


def test_the_other_mode_runs_op_by_op():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).to("hpu")
    make_graphed_callables(module, (torch.randn(3, 4).to("hpu"),))
    x = torch.randn(3, 4).to("hpu")
    replays = event_counts()["replay"]
    module.eval()
    expected = nn.functional.linear(x, module[0].weight, module[0].bias)
    assert torch.equal(module(x).detach().cpu(), expected.detach().cpu())
    assert event_counts()["replay"] == replays
    module.train()
    module(x)
    assert event_counts()["replay"] == replays + 1


def test_dropout_in_a_training_graph_draws_anew_and_by_seed():
    module = nn.Dropout(0.5).to("hpu")
    graphed = make_graphed_callables(
        lambda x: module(x) * 1, (torch.ones(64, device="hpu", requires_grad=True),)
    )
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        x = torch.ones(64, device="hpu", requires_grad=True)
        result = graphed(x)
        result.sum().backward()
        # What the forward kept is what the backward lets through.
        assert torch.equal(x.grad.cpu(), result.detach().cpu())
        draws.append(result.detach().cpu().clone())
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_an_unused_input():
    x = torch.ones(2, device="hpu", requires_grad=True)
    unused = torch.ones(2, device="hpu", requires_grad=True)
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        make_graphed_callables(lambda a, b: a * 2, (x, unused))
    graphed = make_graphed_callables(lambda a, b: a * 2, (x, unused), allow_unused_input=True)
    graphed(x, unused).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    assert unused.grad.tolist() == [0.0, 0.0]


def test_what_cannot_be_graphed():
    x = torch.randn(3, 4).to("hpu")
    hooked = MLP().to("hpu")
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(AssertionError, match="the module has hooks"):
        make_graphed_callables(hooked, (x,))
    buffered = MLP().to("hpu")
    buffered.register_buffer("scale", torch.ones(1, device="hpu", requires_grad=True))
    with pytest.raises(AssertionError, match="a buffer requires grad"):
        make_graphed_callables(buffered, (x,))
    with pytest.raises(AssertionError, match="sample_args must be tensors"):
        make_graphed_callables(MLP().to("hpu"), (x, 3))


def test_the_sdks_training_graphs_lose_an_accumulated_gradient():
    module = nn.Linear(2, 1, bias=False).to("hpu")
    make_graphed_callables(module, (torch.ones(1, 2, device="hpu"),))
    module(torch.full((1, 2), 1.0, device="hpu")).sum().backward()
    assert module.weight.grad.tolist() == [[1.0, 1.0]]
    module(torch.full((1, 2), 10.0, device="hpu")).sum().backward()
    # Eager gives 11. The second replay wrote over the first gradient, then was added to itself.
    assert module.weight.grad.tolist() == [[20.0, 20.0]]


# --- ModuleCacher ---------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Takes names and numbers, gives a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(
        self, ids: Tensor, labels: Tensor | None = None, scale: float = 1.0
    ) -> dict[str, Any]:
        logits = self.head(self.embedding(ids)).mean(1) * scale
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def tag_batches(lengths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randint(10, (2, n)), torch.randint(3, (2,))) for n in lengths]


def tag(module: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    device = next(module.parameters()).device
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
    found = []
    for ids, labels in data:
        optimizer.zero_grad()
        output = module(ids.to(device), labels=labels.to(device))
        output["loss"].backward()
        optimizer.step()
        found += [output["loss"].detach().cpu().clone(), output["logits"].detach().cpu().clone()]
    return found + [parameter.detach().cpu() for parameter in module.parameters()]


@pytest.mark.parametrize("options", [{}, {"disable_tensor_cache": True}, {"dry_run": True}])
def test_a_cached_module_trains_as_eager_does(options):
    host = Tagger()
    device = copy.deepcopy(host).to("hpu")
    cacher = ModuleCacher(max_graphs=2)
    assert cacher(device, **options) is device
    data = tag_batches((3, 4, 3, 4, 5, 3))
    captures = event_counts()["capture_begin"]
    for one, other in zip(tag(device, data), tag(host, data), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    # Two lengths fill the cache, forward and backward each; the third runs op by op.
    assert event_counts()["capture_begin"] - captures == 4
    assert sum(cacher.cached_hits_dict.values()) == 5
    assert cacher.uncached_train_hits == 1
    assert set(device.state_dict()) == set(host.state_dict())


def test_evaluation_and_calls_without_gradients_run_op_by_op():
    module = Tagger().to("hpu")
    cacher = ModuleCacher()
    cacher(module)
    ids = torch.randint(10, (2, 3)).to("hpu")
    with torch.no_grad():
        module(ids)
    module.eval()
    module(ids)
    assert (cacher.uncached_train_hits, cacher.uncached_eval_hits) == (1, 1)
    assert not cacher.model_dict
    assert not module.is_hpugraph_tracing()


def test_the_most_frequent_calls_only():
    module = Tagger().to("hpu")
    cacher = ModuleCacher(max_graphs=1)
    cacher(module, use_lfu=True)
    module.capture_start()
    for length in (3, 4, 4):
        module(torch.randint(10, (2, length)).to("hpu"))
    module.capture_end()
    for length in (3, 4, 4, 3):
        module(torch.randint(10, (2, length)).to("hpu"))
    assert list(cacher.cached_hits_dict.values()) == [2]
    assert cacher.uncached_train_hits == 5


def test_the_first_of_accumulated_backwards_has_graphs_of_its_own():
    module = Tagger().to("hpu")
    cacher = ModuleCacher()
    cacher(module, have_grad_accumulation=True)
    ids = torch.randint(10, (2, 3)).to("hpu")
    for count in (0, 1, 2, 0):
        module.set_iteration_count(count)
        module(ids)
    assert sorted(cacher.cached_hits_dict.values()) == [2, 2]


def test_a_copy_can_be_cached():
    module = Tagger().to("hpu")
    cached = ModuleCacher()(module, inplace=False)
    assert cached is not module
    assert "forward" not in module.__dict__
    ids = torch.randint(10, (2, 3)).to("hpu")
    found = cached(ids)["logits"]
    assert torch.equal(found.detach().cpu(), module(ids)["logits"].detach().cpu())


def test_statistics_are_printed(capsys):
    module = Tagger().to("hpu")
    ModuleCacher(max_graphs=3)(module, verbose=True, log_frequency=2)
    for _ in range(2):
        module(torch.randint(10, (2, 3)).to("hpu"))
    printed = capsys.readouterr().out
    assert printed.count("HPU Graph Statistics") == 1
    assert "Max graphs                :- 3" in printed


def test_what_cannot_be_cached():
    class Variadic(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return args[0]

    with pytest.raises(AssertionError, match="Unsupported argument type"):
        ModuleCacher()(Variadic())
    with pytest.raises(AssertionError, match="only after wrapping with ModuleCacher"):
        graphs.GraphModel(nn.DataParallel(nn.Linear(2, 2)))


def test_packing_and_unpacking():
    packer = graphs.TensorPacker()
    a, b = torch.zeros(1), torch.ones(2)
    tensors, rest = packer.pack({"x": [a, 3], "y": (b, None)})
    assert [id(tensor) for tensor in tensors] == [id(a), id(b)]
    assert repr(rest) == "{'x': [#0, 3], 'y': (#1, None)}"
    assert packer.unpack((1, 2), rest) == {"x": [1, 3], "y": (2, None)}
