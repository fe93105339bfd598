"""``HPUGraph``: a replay computes, on new inputs and changed weights, what eager would."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from habana_frameworks.torch.hpu import HPUGraph, graph, graphs, is_current_stream_capturing
from torch import nn
from torch.nn import functional

from lightning_gaudi.emulator import GraphCaptureError, lowering
from lightning_gaudi.emulator.tensor import unwrap

Function = Callable[[torch.Tensor], "torch.Tensor | tuple[torch.Tensor, ...]"]


def capture(function: Callable[[], object]) -> tuple[HPUGraph, object]:
    """Capture as the runtime does: without gradients and outside inference mode."""
    gc.collect()
    captured = HPUGraph()
    with torch.inference_mode(False), torch.no_grad(), graph(captured):
        result = function()
    return captured, result


def values(result: object) -> list[torch.Tensor]:
    results = (result,) if isinstance(result, torch.Tensor) else result
    return [tensor.cpu() for tensor in results]


def mutated(t: torch.Tensor) -> torch.Tensor:
    work = t.clone()
    work[1:].mul_(2)
    work.view(-1)[0] = 7
    work.t().mul_(2)
    return work * 1


FUNCTIONS: dict[str, Function] = {
    "arithmetic": lambda t: (t * 2 + t / 3 - 1).tanh(),
    "views": lambda t: t.t()[1:].reshape(-1).view(3, 4).transpose(0, 1) + 1,
    "only_a_view": lambda t: t[1:],
    "itself": lambda t: t,
    "in_place": mutated,
    "split": lambda t: t.split(2),
    "split_computed": lambda t: (t * 2).split(2),
    "chunk_and_cat": lambda t: torch.cat(t.chunk(2), 1),
    "unbind": lambda t: torch.stack([row * 2 for row in t.unbind()]),
    "topk": lambda t: t.topk(2),
    "sort": lambda t: t.sort(descending=True),
    "max": lambda t: t.max(1),
    "argmax": lambda t: t.argmax(1),
    "cumsum": lambda t: t.cumsum(0),
    "where": lambda t: torch.where(t > 0, t, -t),
    "masked_fill": lambda t: t.masked_fill(t > 0, float("-inf")),
    "softmax": lambda t: t.softmax(-1),
    "softmax_dtype": lambda t: t.softmax(-1, dtype=torch.float64),
    "to_dtype": lambda t: t.to(torch.float16).float(),
    "layer_norm": lambda t: torch.native_layer_norm(t, (4,), None, None, 1e-5),
    "group_norm": lambda t: functional.group_norm(t.view(1, 4, 4), 2),
    "matmul": lambda t: t @ t.t() @ t,
    "einsum": lambda t: torch.einsum("ij,kj->ik", t, t),
    "bmm": lambda t: torch.bmm(t.view(1, 4, 4), t.view(1, 4, 4)),
    "attention": lambda t: functional.scaled_dot_product_attention(*[t.view(1, 1, 4, 4)] * 3),
    "attention_causal": lambda t: functional.scaled_dot_product_attention(
        *[t.view(1, 1, 4, 4)] * 3, is_causal=True
    ),
    "gather": lambda t: t.gather(1, t.argsort(1)),
    "scatter": lambda t: torch.zeros_like(t).scatter_add(1, t.argsort(1), t),
    "index_select": lambda t: t.index_select(0, (t[:, 0] > 0).long()),
    "indexing": lambda t: t[(t[:, 0] > 0).long()],
    "constants": lambda t: (
        t + torch.arange(4.0, device="hpu") * torch.full((4,), 2.0, device="hpu")
    ),
    "from_the_host": lambda t: t + torch.tensor([1.0, 2.0, 3.0, 4.0], device="hpu"),
    "expand": lambda t: t[:, :1].expand(4, 5) * 2,
    "repeat": lambda t: t.repeat(2, 2),
    "pad": lambda t: functional.pad(t, (1, 2)),
    "roll": lambda t: torch.roll(t, 1, 0),
    "one_hot": lambda t: functional.one_hot((t[:, 0] > 0).long(), 3),
    "quantile": lambda t: torch.quantile(t, 0.5, dim=1),
    "interpolate": lambda t: functional.interpolate(t.view(1, 1, 4, 4), scale_factor=2.0),
    "conj": lambda t: torch.view_as_real(torch.complex(t, t).conj().resolve_conj()),
    "out": lambda t: torch.add(t, 1, out=torch.empty(4, 4, device="hpu")),
    "std_mean": lambda t: torch.std_mean(t, 1),
    "foreach": lambda t: tuple(torch._foreach_mul([t, t + 1], 2.0)),
    "foreach_in_place": lambda t: (lambda w: (torch._foreach_add_(w, 1.0), *w)[1:])(
        [t.clone(), t * 2]
    ),
    "assert_async": lambda t: (torch._assert_async(t.sum() == t.sum()), t + 1)[1],
    "copy": lambda t: torch.empty_like(t).copy_(t),
    "autocast": lambda t: torch.autocast("hpu", dtype=torch.bfloat16)(lambda: (t @ t).float())(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_equals_eager_bit_for_bit(name):
    function = FUNCTIONS[name]
    static = torch.randn(4, 4).to("hpu")
    with torch.no_grad():
        expected = values(function(static))
    captured, result = capture(lambda: function(static))
    for found, value in zip(values(result), expected, strict=True):
        assert torch.equal(found, value), "the capture itself must compute"
    for _ in range(2):
        static.copy_(torch.randn(4, 4).to("hpu"))
        with torch.no_grad():
            expected = values(function(static))
        captured.replay()
        for found, value in zip(values(result), expected, strict=True):
            assert torch.equal(found, value)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(x, x, x)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 3), (2, 5, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (1, 2, 6, 6)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (1, 2, 4, 4)),
    "batch_norm": (lambda: nn.BatchNorm2d(2), (3, 2, 4, 4)),
    "layer_norm": (lambda: nn.LayerNorm(8), (2, 8)),
    "rms_norm": (lambda: nn.RMSNorm(8), (2, 8)),
    "lstm": (lambda: nn.LSTM(8, 4, num_layers=2, bidirectional=True), (5, 2, 8)),
    "gru": (lambda: nn.GRU(8, 4), (5, 2, 8)),
    "lstm_cell": (lambda: nn.LSTMCell(8, 4), (2, 8)),
    "attention": (Attention, (2, 3, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)),
    "max_pool": (lambda: nn.MaxPool2d(2), (1, 2, 4, 4)),
    "adaptive_pool": (lambda: nn.AdaptiveAvgPool2d(1), (1, 2, 4, 4)),
}


def flat(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [] if result is None else [leaf for item in result for leaf in flat(item)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_replays_with_new_inputs_and_weights_changed_in_place(name):
    make, shape = MODULES[name]
    module = make().to("hpu").eval()
    static = torch.randn(*shape).to("hpu")
    captured, result = capture(lambda: module(static))
    for _ in range(2):
        static.copy_(torch.randn(*shape).to("hpu"))
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.mul_(1.5)
            expected = [tensor.cpu() for tensor in flat(module(static))]
        captured.replay()
        # These kernels round by where their memory happens to lie, on plain CPU tensors too.
        tolerance = 1e-6 if name in ("lstm", "attention") else 0
        for found, value in zip(flat(result), expected, strict=True):
            torch.testing.assert_close(found.cpu(), value, rtol=0, atol=tolerance)


def test_an_embedding_replays_with_new_indices():
    module = nn.Embedding(10, 4).to("hpu")
    static = torch.tensor([1, 2, 3]).to("hpu")
    captured, result = capture(lambda: module(static))
    static.copy_(torch.tensor([7, 8, 9]))
    captured.replay()
    assert torch.equal(result.cpu(), module.weight[7:].cpu())


def test_batch_norm_in_training_updates_its_statistics_at_each_replay():
    host, device = nn.BatchNorm1d(3), nn.BatchNorm1d(3).to("hpu")
    batch = torch.randn(4, 3)
    static = batch.to("hpu")
    captured, result = capture(lambda: device(static))
    captured.replay()
    host(batch)
    expected = host(batch)
    assert torch.equal(result.cpu(), expected.detach())
    assert torch.equal(device.running_mean.cpu(), host.running_mean)
    assert device.num_batches_tracked.item() == 2


def test_the_output_keeps_its_place():
    static = torch.ones(3, device="hpu")
    captured, result = capture(lambda: static * 2)
    view = result[1:]
    place = result.data_ptr()
    static.fill_(5)
    captured.replay()
    assert result.data_ptr() == place
    assert view.tolist() == [10.0, 10.0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(64, device="hpu"),
        lambda: torch.randn(64, device="hpu"),
        lambda: torch.randint(1000, (64,), device="hpu"),
        lambda: torch.randperm(64, device="hpu"),
        lambda: torch.empty(64, device="hpu").uniform_(),
        lambda: torch.rand_like(torch.ones(64, device="hpu")),
        lambda: functional.dropout(torch.ones(64, device="hpu"), 0.5),
        lambda: torch.bernoulli(torch.full((64,), 0.5, device="hpu")),
        lambda: torch.multinomial(torch.ones(64, device="hpu"), 32),
    ],
)
def test_random_ops_draw_anew_as_eager_would(draw):
    captured, result = capture(draw)
    first = result.cpu()
    torch.manual_seed(7)
    captured.replay()
    second = result.cpu()
    torch.manual_seed(7)
    assert torch.equal(draw().cpu(), second)
    assert not torch.equal(first, second)


def test_random_ops_leave_the_hosts_generator_alone():
    chances = torch.full((64,), 0.5, device="hpu")
    captured, _ = capture(lambda: torch.bernoulli(chances))
    before, device_before = torch.get_rng_state(), torch.hpu.get_rng_state()
    captured.replay()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(torch.hpu.get_rng_state(), device_before)


def test_replays_run_in_any_order_over_shared_weights():
    weight = torch.ones(2, device="hpu")
    static_a, static_b = torch.ones(2, device="hpu"), torch.ones(2, device="hpu")
    first, result_a = capture(lambda: static_a * weight)
    second, result_b = capture(lambda: static_b + weight)
    weight.fill_(3)
    second.replay()
    static_a.fill_(2)
    first.replay(asynchronous=True)
    assert result_a.tolist() == [6.0, 6.0]
    assert result_b.tolist() == [4.0, 4.0]


def test_a_replay_leaves_autocast_and_gradients_alone():
    static = torch.ones(2, 2, device="hpu")
    captured, result = capture(lambda: static @ static)
    with torch.autocast("hpu"):
        captured.replay()
    assert result.dtype == torch.float32
    weight = torch.ones(2, device="hpu", requires_grad=True)
    captured, result = capture(lambda: weight * 2)
    captured.replay()
    assert not result.requires_grad
    with torch.inference_mode():
        captured.replay()
    assert result.tolist() == [2.0, 2.0]


def test_host_reads_are_baked_in_silently_as_on_a_card():
    static = torch.ones(2, device="hpu")

    def forward() -> torch.Tensor:
        scale = static.sum().item()
        branch = 10.0 if bool(static[0] > 0) else -10.0
        return static * scale + branch

    captured, result = capture(forward)
    assert result.tolist() == [12.0, 12.0]
    static.fill_(-3.0)
    captured.replay()
    assert result.tolist() == [4.0, 4.0]  # -3 * 2 + 10: the old numbers, new tensors


def test_data_from_the_host_is_baked_in():
    static, host = torch.ones(2, device="hpu"), torch.ones(2)
    captured, result = capture(lambda: static + host.to("hpu"))
    host.fill_(100)
    static.fill_(5)
    captured.replay()
    assert result.tolist() == [6.0, 6.0]


def test_a_nested_capture_raises():
    outer, inner = HPUGraph(), HPUGraph()
    with graph(outer), pytest.raises(GraphCaptureError, match="another capture is in progress"):
        inner.capture_begin()
    assert not is_current_stream_capturing()


def test_a_replay_inside_a_capture_raises():
    static = torch.ones(2, device="hpu")
    done, _ = capture(lambda: static * 2)
    with graph(HPUGraph()), pytest.raises(GraphCaptureError, match="replay: a capture is in prog"):
        done.replay()


def test_an_empty_graph_cannot_replay():
    with pytest.raises(GraphCaptureError, match=r"nothing was captured\. Call capture_begin first"):
        HPUGraph().replay()
    static = torch.ones(2, device="hpu")
    captured, _ = capture(lambda: static * 2)
    captured.reset()
    with pytest.raises(GraphCaptureError, match="nothing was captured"):
        captured.replay()


def test_ending_what_was_not_begun_raises():
    with pytest.raises(GraphCaptureError, match="this graph has no capture in progress"):
        HPUGraph().capture_end()
    captured = HPUGraph()
    with graph(captured):
        pass
    with pytest.raises(GraphCaptureError, match="no capture in progress"):
        captured.capture_end()
    other = HPUGraph()
    other.capture_begin()
    with pytest.raises(GraphCaptureError, match="no capture in progress"):
        captured.capture_end()
    other.capture_end()


def test_an_exception_in_the_block_ends_the_capture_and_arrives_unchanged():
    error = KeyError("mine")

    def forward() -> None:
        assert is_current_stream_capturing()
        raise error

    with pytest.raises(KeyError) as caught, graph(HPUGraph()):
        forward()
    assert caught.value is error
    assert not is_current_stream_capturing()
    static = torch.ones(2, device="hpu")
    captured, result = capture(lambda: static * 2)
    captured.replay()
    assert result.tolist() == [2.0, 2.0]


def test_a_cpu_fallback_in_a_capture_raises_the_bridges_error():
    tensor = torch.eye(3, device="hpu")
    message = "cpu fallback is not supported during hpu graph capturing: aten::linalg_eig"
    with pytest.raises(RuntimeError, match=message), graph(HPUGraph()):
        torch.linalg.eigvals(tensor)


def test_destroying_a_graph_clears_the_capture_in_progress():
    doomed, captured = HPUGraph(), HPUGraph()
    captured.capture_begin()
    del doomed
    with pytest.raises(GraphCaptureError, match="an HPUGraph was destroyed during the capture"):
        captured.capture_end()
    assert not is_current_stream_capturing()


def test_a_graph_can_capture_again():
    static = torch.ones(2, device="hpu")
    captured, _ = capture(lambda: static * 2)
    with torch.no_grad(), graph(captured):
        result = static + 10
    static.fill_(5)
    captured.replay()
    assert result.tolist() == [15.0, 15.0]


def test_where_the_names_live():
    assert graphs.HPUGraph is HPUGraph
    assert graphs.graph is graph
    assert not is_current_stream_capturing()
    with graph(HPUGraph()):
        assert is_current_stream_capturing()


def test_backward_can_be_captured():
    static = torch.randn(3, 4).to("hpu")
    module = nn.Linear(4, 2).to("hpu")
    module.weight.grad = torch.zeros_like(module.weight)
    module.bias.grad = torch.zeros_like(module.bias)
    gc.collect()
    captured = HPUGraph()
    with graph(captured):
        module(static).sum().backward()
    first = module.weight.grad.cpu()
    static.copy_(torch.randn(3, 4).to("hpu"))
    captured.replay()
    expected = first + static.cpu().sum(0).expand(2, 4)
    torch.testing.assert_close(module.weight.grad.cpu(), expected)


def test_an_op_that_writes_and_makes_something_new_is_replayed_whole():
    x = torch.full((4,), -10.0, device="hpu")
    captured = HPUGraph()
    with torch.no_grad():
        with graph(captured):
            y = functional.rrelu(x, 0.3, 0.3, training=True)
        assert y.tolist() == pytest.approx([-3.0] * 4)
        x.fill_(-1.0)
        captured.replay()
    assert y.tolist() == pytest.approx([-0.3] * 4)


def test_records_hold_every_op_where_they_are_asked_for(monkeypatch):
    static, cache = torch.ones(2, 2, device="hpu"), torch.zeros(4, device="hpu")
    host = torch.tensor([2.0, 3.0])

    def forward() -> torch.Tensor:
        scaled = static.t() * host.to("hpu")
        cache[:2].copy_(scaled[0])
        return torch.bernoulli(scaled.sigmoid())

    assert capture(forward)[0]._program.records is None
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_COMPILE", "1")
    monkeypatch.setattr(lowering, "lower", lambda program, **options: "")  # it takes the records
    records = capture(forward)[0]._program.records
    host.fill_(100)
    names = [record.func._schema.name.removeprefix("aten::") for record in records]
    # However PyTorch spells the pieces, the order is this.
    wanted = ["t", "copy_", "mul", "slice", "select", "copy_", "bernoulli"]
    assert [name for name in names if name in wanted] == wanted
    by_name = dict(zip(names, records, strict=True))
    copies = [record for record in records if record.func._schema.name == "aten::copy_"]
    assert copies[0].args[1].tolist() == [2.0, 3.0]
    assert copies[1].results[0].data_ptr() == unwrap(cache).data_ptr()
    assert by_name["t"].results[0].data_ptr() == unwrap(static).data_ptr()
    multiplied = by_name["mul"]
    assert multiplied.args[0].stride() == by_name["t"].results[0].stride() == (1, 2)
    assert torch.equal(multiplied.func(*multiplied.args), multiplied.results[0])
    assert "out" not in multiplied.kwargs
    assert [record.is_random for record in records] == [name == "bernoulli" for name in names]
    assert all(type(tensor) is torch.Tensor for r in records for tensor in r.results)
