"""``wrap_in_hpu_graph``: right where the SDK's algorithm is right, and wrong where it is wrong."""

from __future__ import annotations

import gc
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from habana_frameworks.torch.hpu import graphs, wrap_in_hpu_graph, wrap_in_hpu_graph_func
from torch import Tensor, nn

from lightning_gaudi import emulator
from lightning_gaudi.emulator import capture, event_counts


@pytest.fixture(autouse=True)
def _as_in_a_script():
    """Without gradients, and without a collector that may find the last test's graphs."""
    gc.collect()
    gc.disable()
    with torch.no_grad():
        yield
    gc.enable()


def counted(kind: str) -> Callable[[], int]:
    start = event_counts()[kind]
    return lambda: event_counts()[kind] - start


class Mix(nn.Module):
    """Nested arguments in, a nested result out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Any], scale: float = 1.0, *, flip: bool = False) -> Any:
        x = self.linear(batch["x"]) * scale + batch["more"][0]
        return {"out": x.flip(0) if flip else x, "parts": [x.sum(0), (x.amax(),)], "none": None}


def batch(rows: int = 3) -> dict[str, Any]:
    return {"x": torch.randn(rows, 4).to("hpu"), "more": [torch.randn(4).to("hpu")]}


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert torch.equal(found.cpu(), expected.cpu())
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_equal(found[key], expected[key])
    elif isinstance(found, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"asynchronous": True},
        {"dry_run": True},
        {"disable_tensor_cache": True},
        {"disable_tensor_cache": True, "dry_run": True, "asynchronous": True},
    ],
    ids=str,
)
def test_replays_equal_eager(options):
    plain, wrapped = Mix().to("hpu"), Mix().to("hpu")
    wrapped.load_state_dict(plain.state_dict())
    assert wrap_in_hpu_graph(wrapped, **options) is wrapped
    begins = counted("capture_begin")
    for rows in (3, 3, 5, 3, 5):
        for keywords in ({}, {"scale": 2.0}, {"flip": True}):
            given = batch(rows)
            assert_equal(wrapped(given, **keywords), plain(given, **keywords))
    assert begins() == 6


def test_weights_updated_in_place_are_seen():
    for disable_tensor_cache in (False, True):
        module = wrap_in_hpu_graph(
            nn.Linear(2, 2).to("hpu"), disable_tensor_cache=disable_tensor_cache
        )
        x = torch.ones(1, 2, device="hpu")
        module(x)
        module.weight.mul_(3)
        expected = nn.functional.linear(x, module.weight, module.bias)
        assert torch.equal(module(x.clone()).cpu(), expected.cpu())


def test_a_function_can_be_wrapped():
    calls = []

    def function(x: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return x * y

    wrapped = wrap_in_hpu_graph_func(function)
    for _ in range(3):
        x, y = torch.randn(2).to("hpu"), torch.randn(2).to("hpu")
        expected = x.cpu() * y.cpu()
        assert torch.equal(wrapped(x, y=y).cpu(), expected)
    assert len(calls) == 1


def test_caches_written_in_place_are_bound_at_each_call():
    def forward(cache: Tensor, token: Tensor) -> Tensor:
        cache[0].copy_(token)
        return cache.sum(0)

    wrapped = wrap_in_hpu_graph_func(forward, disable_tensor_cache=True)
    for value in (1.0, 2.0, 3.0):
        cache = torch.zeros(2, 2, device="hpu")
        result = wrapped(cache, torch.full((2,), value, device="hpu"))
        assert cache.tolist() == [[value] * 2, [0.0] * 2]
        assert result.tolist() == [value] * 2


def test_views_as_inputs_are_copied_without_the_tensor_cache():
    wrapped = wrap_in_hpu_graph_func(lambda x, y: x * 2 + y, disable_tensor_cache=True)
    for _ in range(3):
        base, other = torch.randn(3, 5).to("hpu"), torch.randn(3, 3).to("hpu")
        view = base[:, 1:4]
        expected = view.cpu() * 2 + other.cpu()
        assert torch.equal(wrapped(view, other).cpu(), expected)


def test_the_environment_can_disable_the_tensor_cache(monkeypatch):
    x = torch.ones(256, device="hpu")

    def used_by_graph() -> int:
        gc.collect()
        start = torch.hpu.memory_allocated()
        wrapped = wrap_in_hpu_graph_func(lambda x: x + 1 + 2 + 3)
        kept = wrapped(x)
        gc.collect()
        used = torch.hpu.memory_allocated() - start
        del wrapped, kept
        return used

    assert used_by_graph() == 3 * 1024
    monkeypatch.setenv("PT_HPUGRAPH_DISABLE_TENSOR_CACHE", "1")
    assert used_by_graph() == 1024


def test_keywords_of_the_wrapper():
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        return x * 2

    wrapped = wrap_in_hpu_graph_func(function)
    replays, marks = counted("replay"), counted("mark_step")
    x = torch.ones(2, device="hpu")
    assert wrapped(x, bypass_hpu_graphs=True).tolist() == [2.0] * 2
    assert (len(calls), replays()) == (1, 0)
    result = wrapped(x)
    assert wrapped(torch.full((2,), 5.0, device="hpu"), warmup_mode=True) is result
    assert result.tolist() == [2.0] * 2  # no replay
    assert (len(calls), replays(), marks()) == (2, 0, 1)


def test_tensors_of_the_cache_list_are_kept():
    between: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        between.append(x * 2)
        return between[0] + 1

    gc.collect()
    wrapped = wrap_in_hpu_graph_func(function, disable_tensor_cache=True)
    # The list is filled during the capture, after its tensors were looked for: it names none.
    wrapped(torch.ones(2, device="hpu"), cache_tensors_list=between)
    assert torch.isnan(between[0].cpu()).all()
    persistent = torch.zeros(2, device="hpu")
    wrapped = wrap_in_hpu_graph_func(lambda x: persistent.add_(x) * 2, disable_tensor_cache=True)
    wrapped(torch.ones(2, device="hpu"), cache_tensors_list=[persistent])
    assert persistent.tolist() == [1.0, 1.0]


def test_clear_cache_drops_the_graphs():
    module = wrap_in_hpu_graph(nn.Linear(2, 2).to("hpu"))
    begins = counted("capture_begin")
    x = torch.ones(1, 2, device="hpu")
    module(x)
    module.clear_inputs()
    module.clear_cache()
    module(x)
    assert begins() == 2


def test_graphs_draw_anew():
    wrapped = wrap_in_hpu_graph_func(lambda x: nn.functional.dropout(x, 0.5))
    x = torch.ones(64, device="hpu")
    draws = []
    for seed in (1, 2, 1, 2):
        torch.manual_seed(seed)
        draws.append(wrapped(x.clone()).cpu())
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[1], draws[3])
    assert not torch.equal(draws[0], draws[1])


def test_inference_mode_captures_and_replays():
    plain, wrapped = nn.Linear(3, 3).to("hpu"), nn.Linear(3, 3).to("hpu")
    wrapped.load_state_dict(plain.state_dict())
    wrap_in_hpu_graph(wrapped)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(2, 3).to("hpu")
            assert torch.equal(wrapped(x).cpu(), plain(x).cpu())


# --- what the SDK's wrapper does wrong ------------------------------------------------------------


def test_the_sdks_wrapper_overwrites_results():
    wrapped = wrap_in_hpu_graph_func(lambda x: x * 2)
    first = wrapped(torch.ones(2, device="hpu"))
    second = wrapped(torch.full((2,), 5.0, device="hpu"))
    assert first is second
    assert first.tolist() == [10.0, 10.0]


def test_the_sdks_wrapper_overwrites_the_first_calls_inputs():
    wrapped = wrap_in_hpu_graph_func(lambda x: x * 2)
    mine = torch.ones(2, device="hpu")
    wrapped(mine)
    wrapped(torch.full((2,), 5.0, device="hpu"))
    assert mine.tolist() == [5.0, 5.0]


def test_the_sdks_wrapper_does_not_tell_dtypes_apart():
    wrapped = wrap_in_hpu_graph_func(lambda x: x / 2)
    assert wrapped(torch.tensor([1, 2], device="hpu")).tolist() == [0.5, 1.0]
    # Copied into the first call's whole numbers: 1.5 and 2.9 become 1 and 2.
    assert wrapped(torch.tensor([1.5, 2.9], device="hpu")).tolist() == [0.5, 1.0]


def test_the_sdks_wrapper_does_not_tell_modes_apart():
    module = nn.Dropout(0.5).to("hpu")
    wrap_in_hpu_graph(module.eval())
    x = torch.ones(64, device="hpu")
    module(x)
    assert module.train()(x.clone()).tolist() == [1.0] * 64


def test_the_sdks_wrapper_does_not_tell_gradients_apart():
    module = wrap_in_hpu_graph(nn.Linear(2, 2).to("hpu"))
    x = torch.ones(1, 2, device="hpu")
    module(x)
    with torch.enable_grad():
        assert not module(x.clone()).requires_grad


def test_the_sdks_wrapper_takes_colliding_hashes_for_equal():
    wrapped = wrap_in_hpu_graph_func(lambda x, power: x**power)
    x = torch.full((2,), 2.0, device="hpu")
    assert wrapped(x, -1).tolist() == [0.5, 0.5]
    assert hash(-1) == hash(-2)
    assert wrapped(x, -2).tolist() == [0.5, 0.5]
    assert graphs.input_hash((1,)) == graphs.input_hash((True,)) == graphs.input_hash([1.0])


def test_the_sdks_wrapper_runs_op_by_op_beyond_max_graphs():
    wrapped = wrap_in_hpu_graph_func(lambda x: x * 2, max_graphs=1)
    begins, replays = counted("capture_begin"), counted("replay")
    for size in (2, 3, 3, 3, 2):
        wrapped(torch.ones(size, device="hpu"))
    assert (begins(), replays()) == (1, 1)


def test_the_sdks_wrapper_leaves_the_capture_open():
    def forward(x: Tensor) -> Tensor:
        if x.shape[0] == 3:
            raise KeyError("mine")
        return x * 2

    wrapped = wrap_in_hpu_graph_func(forward)
    try:
        wrapped(torch.ones(3, device="hpu"))
    except KeyError as error:
        assert capture.current is not None
        kept = error
    with pytest.raises(emulator.GraphCaptureError, match="another capture is in progress"):
        wrapped(torch.ones(2, device="hpu"))
    del kept  # and with its traceback the graph, whose end clears the capture
    gc.collect()
    assert capture.current is None
    assert wrapped(torch.ones(2, device="hpu")).tolist() == [2.0, 2.0]


def test_the_sdks_wrapper_bakes_in_what_the_host_reads():
    wrapped = wrap_in_hpu_graph_func(lambda x: x * x.sum().item())
    assert wrapped(torch.ones(2, device="hpu")).tolist() == [2.0, 2.0]
    assert wrapped(torch.full((2,), 3.0, device="hpu")).tolist() == [6.0, 6.0]


def test_the_sdks_wrapper_captures_a_batch_encoding_anew_each_time():
    wrapped = wrap_in_hpu_graph_func(lambda data: data["x"] * 2)
    begins = counted("capture_begin")
    for _ in range(3):
        wrapped(UserDict(x=torch.ones(2, device="hpu")))
    assert begins() == 3


def test_the_sdks_wrapper_cannot_hash_everything():
    wrapped = wrap_in_hpu_graph_func(lambda x, names: x)
    with pytest.raises(TypeError, match="unhashable type: 'set'"):
        wrapped(torch.ones(2, device="hpu"), {"a"})


def test_the_sdks_wrapper_captures_while_garbage_may_be_collected():
    forgotten = wrap_in_hpu_graph(nn.Linear(2, 2).to("hpu"))
    forgotten(torch.ones(1, 2, device="hpu"))
    del forgotten  # a module that holds its own forward is a cycle

    def forward(x: Tensor) -> Tensor:
        gc.collect()
        return x * 2

    with pytest.raises(emulator.GraphCaptureError, match="by hand or by the garbage collector"):
        wrap_in_hpu_graph_func(forward)(torch.ones(2, device="hpu"))


# --- its parts, which clients call ----------------------------------------------------------------


def test_the_hash_of_a_call():
    x = torch.ones(2, 3, device="hpu")
    same = graphs.input_hash
    assert same((x,)) == same((torch.zeros(2, 3, device="hpu"),))
    assert same((x,)) == same([x])
    assert same({"a": x}) == same((("a", x),))
    assert same((x,)) != same((torch.zeros(3, 2, device="hpu"),))
    assert same((x,)) != same((torch.zeros(3, 2, device="hpu").t(),))
    assert same((x,)) != same((torch.zeros(4, 3, device="hpu")[:2],))
    assert same(x.shape) == same(torch.Size([2, 3]))
    plain = same((x, 1))
    with torch.autocast("hpu"):
        assert same((x, 1)) != plain


@dataclass
class Output:
    logits: Tensor
    extra: dict[str, Any]


def test_tensors_of_nested_structures():
    a, b, c = (torch.full((1,), float(i), device="hpu") for i in range(3))
    nested = ((a, 3), {"k": [b, {"c": c}], "s": "text"})
    found = graphs.get_user_input_tensor_list(nested, ())
    assert [id(tensor) for tensor in found] == [id(a), id(b), id(c)]
    extracted = graphs.extract_tensors(Output(a, {"x": (b, None), "y": c}))
    assert [id(tensor) for tensor in extracted] == [id(a), id(b), id(c)]
    info = graphs.get_tensor_info(a)
    assert info == {"shape": (1,), "dtype": torch.float32, "device": torch.device("hpu", 0)}


def test_copying_nested_structures():
    target = ([torch.zeros(2, device="hpu"), 1], {"k": torch.zeros(1, device="hpu")})
    source = ([torch.ones(2, device="hpu"), 2], {"k": torch.ones(1, device="hpu")})
    graphs.copy_to(target, source)
    assert target[0][0].tolist() == [1.0, 1.0]
    assert target[1]["k"].tolist() == [1.0]
    with pytest.raises(AssertionError):
        graphs.copy_to([1], (1,))
    with pytest.raises(AssertionError):
        graphs.copy_to({"a": 1}, {"b": 1})


def test_a_client_that_keeps_graphs_itself():
    """As pipelines of optimum-habana do: with a stream, and the SDK's parts."""
    cache: dict[int, graphs.CachedParams] = {}
    stream = torch.hpu.Stream()

    def denoise(inputs: list[Any]) -> Tensor:
        key = graphs.input_hash(inputs)
        cached = cache.get(key)
        if cached is None:
            with torch.hpu.stream(stream):
                captured = graphs.HPUGraph()
                captured.capture_begin()
                outputs = inputs[0] * inputs[1]["scale"]
                captured.capture_end()
                cache[key] = graphs.CachedParams(inputs, outputs, captured)
            return outputs
        graphs.copy_to(cached.graph_inputs, inputs)
        cached.graph.replay()
        return cached.graph_outputs

    for value in (1.0, 2.0, 3.0):
        scale = torch.full((1,), value, device="hpu")
        assert (
            denoise([torch.full((2,), 3.0, device="hpu"), {"scale": scale}]).tolist()
            == [3 * value] * 2
        )
    assert len(cache) == 1
