"""`torch.compile(backend="hpu_backend")` against eager mode: values, gradients, aliases, books."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_gaudi.emulator import accounting, inductor, mode, record
from lightning_gaudi.emulator.tensor import HPUTensor


@pytest.fixture(autouse=True)
def _eager_mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend works in eager mode only; each test compiles anew."""
    accounting.flush("before eager mode")
    monkeypatch.setattr(mode, "_is_lazy", False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    os.environ.pop("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", None)  # Inductor's way to its loader


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    options = {"fullgraph": True, "dynamic": False, **options}
    return torch.compile(function, backend="hpu_backend", **options)


def assert_same(result: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    assert type(result) is type(expected)
    assert result.device == expected.device
    assert result.stride() == expected.stride()
    torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=tolerance, atol=tolerance)


def compilations() -> tuple[int, int]:
    return accounting.cache.num_compilations, accounting.cache.num_hits


def assert_trains_alike(
    model: nn.Module, call: Callable[[Any], Tensor], tolerance: float = 0.0
) -> None:
    """Three steps of AdamW, then an evaluation, both compiled and not."""
    reference = copy.deepcopy(model)
    function = compiled(model)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, reference)]
    for step in range(3):
        losses = []
        for module, optimizer in zip((function, reference), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = call(module).float().pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss)
        assert_same(losses[0], losses[1], tolerance)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            assert_same(ours.grad, theirs.grad, tolerance)
        assert_same(ours.data, theirs.data, tolerance * 10)
        ours.data.copy_(theirs.data)
    for ours, theirs in zip(model.buffers(), reference.buffers(), strict=True):
        assert_same(ours, theirs, tolerance)
    model.eval()
    reference.eval()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            result, expected = call(function), call(reference)
        assert_same(result, expected, 1e-6)
        assert result.is_inference() == expected.is_inference()


def test_multilayer_perceptron_with_dropout_against_eager():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).to("hpu")
    x = torch.randn(3, 4).to("hpu")
    assert_trains_alike(model, lambda module: module(x))


def test_convolutions_with_batch_norm_against_eager():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    ).to("hpu")
    x = torch.randn(2, 3, 6, 6).to("hpu")
    assert_trains_alike(model, lambda module: module(x))
    assert model[1].num_batches_tracked.item() == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_transformers_against_eager(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    ids = torch.randint(0, 50, (2, 6)).to("hpu")
    inputs: dict[str, Any] = {"input_ids": ids}
    if name == "bert":
        config = transformers.BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16)
        model = transformers.BertForSequenceClassification(config)
        inputs["attention_mask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).to("hpu")
    else:
        config = transformers.LlamaConfig(
            **sizes, intermediate_size=32, num_key_value_heads=1, use_cache=False
        )
        model = transformers.LlamaForCausalLM(config)
    # Attention is a fused kernel in eager mode and its steps in a graph.
    assert_trains_alike(model.to("hpu"), lambda module: module(**inputs).logits, 2e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_inputs_written_to_and_outputs_that_alias(context):
    def function(x: Tensor, buffer: Tensor) -> tuple[Any, ...]:
        x.add_(1)
        buffer[0] = x.sum()
        x.view(-1)[0] = 5
        doubled = x * 2
        return doubled, doubled.t(), x[0], x, None, 3

    with context():
        x, buffer = torch.randn(2, 3).to("hpu"), torch.zeros(3).to("hpu")
        other_x, other_buffer = x.clone(), buffer.clone()
        results = compiled(function)(x, buffer)
        expected = function(other_x, other_buffer)
        references = (*expected[:4], other_x, other_buffer)
        for result, reference in zip((*results[:4], x, buffer), references, strict=True):
            assert_same(result, reference)
        assert results[3] is x
        assert results[4:] == (None, 3)
        # Memory is shared as in eager mode, for values and for the books.
        results[2].zero_()
        assert x[0].abs().sum().item() == 0
        results[0].fill_(7)
        assert results[1].sum().item() == 42
        assert results[0]._block is results[1]._block
        assert results[2]._block is x._block


def test_results_keep_the_strides_of_eager_mode():
    x = torch.randn(2, 3).to("hpu")

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        doubled = x.t() * 2
        return doubled, doubled.t().view(-1)  # a view only where the product is transposed too

    for result, expected in zip(compiled(function)(x), function(x), strict=True):
        assert_same(result, expected)


def test_a_graph_is_one_recipe_for_each_shape():
    def function(x: Tensor) -> Tensor:
        return (x * 2 + 1).relu()

    # Sizes that no other test has compiled the eager sum below for.
    inputs = [torch.randn(size).to("hpu") for size in (211, 211, 223, 223, 211)]
    calls = compiled(function)
    before = compilations()
    with record() as events:
        for x in inputs:
            calls(x)
    after = compilations()
    assert (after[0] - before[0], after[1] - before[1]) == (2, 3)
    assert [event.kind for event in events] == ["compile", "compile"]
    assert all(event.cause == "hpu_backend" and __file__ in event.line for event in events)
    assert events[1].detail == "3 ops; inputs [223]:torch.float32"
    before = compilations()
    x = inputs[0].requires_grad_()
    compiled(function)(x).sum()
    # Forward, the sum outside it; the backward is compiled when it first runs.
    assert accounting.cache.num_compilations - before[0] == 2


def test_a_dynamic_graph_is_compiled_for_each_shape():
    calls = compiled(lambda x: x * 3, dynamic=True)
    inputs = [torch.randn(size).to("hpu") for size in (4, 5, 4)]
    before = compilations()
    for x in inputs:
        assert_same(calls(x), x * 3)
    # Each size twice: in the graph, and as the multiplication of eager mode.
    assert accounting.cache.num_compilations - before[0] == 4


def test_graph_breaks_read_the_host_between_two_graphs():
    def function(x: Tensor) -> Tensor:
        doubled = x * 2
        return doubled + 1 if doubled.sum().item() > 0 else doubled - 1

    x = torch.ones(3).to("hpu")
    with record() as events:
        result = compiled(function, fullgraph=False)(x)
    assert result.tolist() == [3, 3, 3]
    kinds = [event.kind for event in events]
    assert kinds[:3] == ["compile", "host_read", "compile"]
    torch._dynamo.reset()  # or the two graphs serve once more
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="data-dependent"):
        compiled(function)(x)
    assert torch._dynamo.explain(function)(x).graph_break_count == 1


def test_an_op_without_a_kernel_falls_back_and_cuts_the_recipe(monkeypatch):
    def function(x: Tensor) -> Tensor:
        return torch.linalg.det(x @ x) * 2

    x = torch.randn(3, 3).to("hpu")
    with record() as events:
        result = compiled(function)(x)
    assert [event.kind for event in events] == ["compile", "cpu_fallback", "compile"]
    assert_same(result, function(x))
    monkeypatch.setenv("PT_HPU_PLACE_ON_CPU", "none")
    with pytest.raises(RuntimeError, match=r"aten::_linalg_det has no HPU kernel and PT_HPU_PLACE"):
        compiled(function)(x)


def test_moves_are_part_of_the_graph_with_their_gradients():
    def function(x: Tensor) -> Tensor:
        return ((x * 2).cpu() * 3).to("hpu") + torch.tensor([1.0, 2.0], device=x.device)

    x = torch.ones(2).to("hpu").requires_grad_()
    with record() as events:
        result = compiled(function)(x)
    assert result.tolist() == [7, 8]
    assert [event.kind for event in events[:-1]].count("d2h") == 1
    assert [event.kind for event in events].count("h2d") == 2
    result.sum().backward()
    assert_same(x.grad, torch.full((2,), 6.0).to("hpu"))

    host = torch.ones(2, requires_grad=True)
    moved = compiled(lambda x: x.to("hpu") * 3)(host)
    assert type(moved) is HPUTensor
    moved.sum().backward()
    assert type(host.grad) is Tensor
    assert host.grad.tolist() == [3, 3]
    assert type(compiled(lambda x: (x * 2).cpu())(x)) is Tensor


def test_two_devices_in_one_op_are_refused():
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match=r"two devices, hpu:0 and cpu"):
        compiled(torch.add)(torch.ones(2).to("hpu"), torch.ones(2))


def test_autocast_around_and_inside_a_graph():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1)).to("hpu")
    x = torch.randn(4, 8).to("hpu")
    calls = compiled(model)
    gradients = []
    for function in (calls, model):
        model.zero_grad()
        with torch.autocast("hpu", dtype=torch.bfloat16):
            result = function(x)
        assert result.dtype is torch.bfloat16
        result.float().pow(2).sum().backward()
        gradients.append([result.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        assert_same(ours, theirs)

    def inside(x: Tensor) -> Tensor:
        with torch.autocast("hpu", dtype=torch.bfloat16):
            return model(x)

    assert_same(compiled(inside)(x), inside(x))
    assert calls(x).dtype is torch.float32


def test_random_numbers_come_from_the_device():
    def function(x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3) + torch.rand(8, device="hpu") + torch.randn_like(x)

    x = torch.ones(8).to("hpu")
    calls = compiled(function)
    host_state = torch.get_rng_state()
    results = []
    for call in (function, calls, calls):
        torch.hpu.manual_seed(3)
        results.append(call(x))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert not torch.equal(calls(x), results[0])
    assert torch.equal(torch.get_rng_state(), host_state)


def test_checkpointed_blocks_draw_the_same_numbers_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5)).to("hpu")
    x = torch.randn(2, 4).to("hpu")

    def function(x: Tensor) -> Tensor:
        return checkpoint(model, x, use_reentrant=False).sum()

    gradients = []
    for call in (function, compiled(function)):
        torch.hpu.manual_seed(0)
        model.zero_grad()
        call(x).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_through_inductor_against_eager(monkeypatch):
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_COMPILE", "1")
    monkeypatch.setattr(inductor, "_warned", set())
    # No bias before batch norm: its gradient would be rounding alone, which AdamW blows up.
    layers = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 2)
    model = nn.Sequential(*layers).to("hpu")
    x = torch.randn(6, 4).to("hpu")
    assert_trains_alike(model, lambda module: module(x), 1e-5)
    with pytest.warns(UserWarning, match="op by op instead: it draws random numbers"):
        result = compiled(lambda x: functional.dropout(x, 0.5))(torch.ones(64).to("hpu"))
    assert set(result.tolist()) == {0.0, 2.0}
    calls = compiled(lambda x: x * 3, dynamic=True)
    with pytest.warns(UserWarning, match="op by op instead: its shapes are dynamic"):
        calls(x)
    assert_same(calls(x[:3]), x[:3] * 3)


def test_the_cpu_and_other_backends_are_as_they_were():
    model = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    assert_same(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))
    assert_same(compiled(model)(x), model(x))
    model.to("hpu")
    result = torch.compile(model, backend="aot_eager", fullgraph=True)(x.to("hpu"))
    assert_same(result, model(x.to("hpu")))


def test_a_model_that_moves_is_compiled_again():
    model = nn.Linear(3, 3).to("hpu")
    calls = compiled(model)
    x = torch.randn(2, 3)
    assert type(calls(x.to("hpu"))) is HPUTensor
    model.to("cpu")
    assert_same(calls(x), model(x))


def test_gradients_of_outputs_in_a_structure():
    model = nn.Linear(4, 4).to("hpu")

    def function(x: Tensor) -> dict[str, Any]:
        hidden = model(x)
        return {"hidden": hidden, "detached": hidden.detach(), "rest": (hidden * 2,)}

    x = torch.randn(2, 4).to("hpu").requires_grad_()
    result, expected = compiled(function)(x), function(x)
    assert not result["detached"].requires_grad
    sources = [x, *model.parameters()]
    ours = torch.autograd.grad(result["rest"][0].sum() + result["hidden"].sum(), sources)
    theirs = torch.autograd.grad(expected["rest"][0].sum() + expected["hidden"].sum(), sources)
    for gradient, reference in zip(ours, theirs, strict=True):
        assert_same(gradient, reference)
