"""``replayV3``: a replay reads the tensors it is given, and the graph keeps only its results."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from habana_frameworks.torch.hpu import HPUGraph, graph
from torch import Tensor, nn
from torch.nn import functional

from lightning_gaudi.emulator import GraphCaptureError

Function = Callable[..., Any]


def hpu(*shape: int) -> Tensor:
    return torch.randn(*shape).to("hpu")


def capture_bound(function: Function, *inputs: Tensor) -> tuple[HPUGraph, Any]:
    """Capture as ``disable_tensor_cache`` does; the first result is there too."""
    gc.collect()
    captured = HPUGraph()
    with torch.no_grad(), graph(captured, dry_run=True):
        captured.mark_user_inputs(inputs)
        result = function(*inputs)
    captured.mark_user_outputs([result] if isinstance(result, Tensor) else result)
    captured.replayV3(inputs)
    return captured, result


def test_a_replay_reads_the_given_tensors_and_leaves_the_captured_alone():
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)).to("hpu")
    first = hpu(3, 4)
    kept = first.cpu()
    captured, result = capture_bound(module, first)
    for given in (first, hpu(3, 4), hpu(3, 4)):
        captured.replayV3([given])
        with torch.no_grad():
            assert torch.equal(result.cpu(), module(given).cpu())
    assert torch.equal(first.cpu(), kept)


def test_views_of_the_input_are_taken_of_the_given_tensor():
    captured, result = capture_bound(lambda x: x.t()[1:] @ x[:, 1:] + x[0, 0], hpu(4, 4))
    given = hpu(4, 4)
    captured.replayV3([given])
    host = given.cpu()
    torch.testing.assert_close(result.cpu(), host.t()[1:] @ host[:, 1:] + host[0, 0])


def test_writes_in_place_reach_the_given_tensor():
    def forward(cache: Tensor, token: Tensor) -> Tensor:
        cache[:, 1].copy_(token)
        return cache.sum(1)

    first, token = torch.zeros(2, 3, device="hpu"), torch.ones(2, device="hpu")
    captured, result = capture_bound(forward, first, token)
    assert first.tolist() == [[0, 1, 0]] * 2
    other = torch.full((2, 3), 5.0, device="hpu")
    captured.replayV3([other, token * 7])
    assert other.tolist() == [[5, 7, 5]] * 2
    assert result.tolist() == [17.0] * 2
    assert first.tolist() == [[0, 1, 0]] * 2


def test_the_result_is_the_same_tensor_at_each_replay():
    captured, result = capture_bound(lambda x: x * 2, hpu(3))
    place = result.data_ptr()
    captured.replayV3([torch.ones(3, device="hpu")])
    assert result.data_ptr() == place
    assert result.tolist() == [2.0] * 3


def test_several_sub_graphs_are_bound_alike():
    def forward(x: Tensor) -> Tensor:
        y = x + 1
        torch.hpu.synchronize()
        return x * y

    captured, result = capture_bound(forward, hpu(3))
    given = hpu(3)
    captured.replayV3([given])
    assert torch.equal(result.cpu(), given.cpu() * (given.cpu() + 1))


def test_which_marked_inputs_are_bound():
    def forward(x: Tensor, view: Tensor, same: Tensor, unused: Tensor) -> Tensor:
        return x + view + same

    x, base = hpu(3), hpu(4)
    captured, _ = capture_bound(forward, x, base[1:], x, hpu(3))
    # A view is read through its base, a second mark of one tensor is not looked for, and what no op
    # reads is no input of a recipe.
    assert captured.get_user_input_match_indices() == {0}
    assert HPUGraph().get_user_input_match_indices() == set()


def test_what_lies_between_is_freed_and_shows_it():
    between: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        between.append(x * 2)
        between.append((x > 0).long())
        return between[0] + between[1]

    captured, result = capture_bound(forward, torch.ones(2, device="hpu"))
    assert all(torch.isnan(between[0].cpu()))
    assert between[1].tolist() == [torch.iinfo(torch.long).min] * 2
    assert result.tolist() == [3.0, 3.0]
    captured.replayV3([torch.full((2,), -1.0, device="hpu")])
    assert all(torch.isnan(between[0].cpu()))
    assert result.tolist() == [-2.0, -2.0]


def test_it_shows_at_once():
    captured, x = HPUGraph(), torch.ones(2, device="hpu")
    with torch.no_grad(), graph(captured):
        between = x * 2
        result = between + 1
    captured.mark_user_outputs([result])
    assert torch.isnan(between.cpu()).all()
    assert result.tolist() == [3.0, 3.0]


def test_a_graph_lets_go_of_what_it_was_given():
    captured, _ = capture_bound(lambda x: x * 2, hpu(3))
    captured.replayV3([hpu(3)])
    (held,) = captured._inputs._captured
    assert held.untyped_storage().nbytes() == 0


def test_a_view_of_a_result_keeps_its_memory():
    whole: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        whole.append(x * 2)
        return whole[0][1:]

    captured, result = capture_bound(forward, torch.ones(3, device="hpu"))
    captured.replayV3([torch.full((3,), 4.0, device="hpu")])
    assert result.tolist() == [8.0, 8.0]
    assert whole[0].tolist() == [8.0] * 3


def test_weights_and_buffers_from_outside_stay():
    module = nn.BatchNorm1d(3).to("hpu")
    host = nn.BatchNorm1d(3)
    batches = [torch.randn(4, 3) for _ in range(3)]
    captured, result = capture_bound(module, batches[0].to("hpu"))
    expected = host(batches[0])
    for batch in batches[1:]:
        captured.replayV3([batch.to("hpu")])
        expected = host(batch)
    assert torch.equal(result.cpu(), expected.detach())
    assert torch.equal(module.running_mean.cpu(), host.running_mean)
    assert module.num_batches_tracked.item() == 3


def test_random_ops_draw_anew_and_by_seed():
    captured, result = capture_bound(
        lambda x: functional.dropout(x, 0.5), torch.ones(64, device="hpu")
    )
    given = [torch.ones(64, device="hpu")]
    draws = []
    for seed in (3, 4, 3):
        torch.manual_seed(seed)
        captured.replayV3(given)
        draws.append(result.cpu())
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_a_strided_tensor_is_read_as_it_is():
    captured, result = capture_bound(lambda x: x + 1, hpu(3, 4))
    base = hpu(4, 3)
    captured.replayV3([base.t()])
    assert torch.equal(result.cpu(), base.cpu().t() + 1)
    slices = hpu(3, 8)
    captured.replayV3([slices[:, 2:6]])
    assert torch.equal(result.cpu(), slices.cpu()[:, 2:6] + 1)


# --- memory ---------------------------------------------------------------------------------------

KIB = 1024


def kib() -> Tensor:
    return torch.ones(KIB // 4, device="hpu")


def used_by(make: Callable[[], object]) -> tuple[int, object]:
    gc.collect()
    start = torch.hpu.memory_allocated()
    kept = make()
    gc.collect()
    return torch.hpu.memory_allocated() - start, kept


def chain(x: Tensor) -> Tensor:
    for _ in range(5):
        x = x + 1
    return x


def test_without_the_tensor_cache_only_weights_and_results_count():
    def cached() -> object:
        captured, x = HPUGraph(), kib()
        with torch.no_grad(), graph(captured):
            result = chain(x)
        return captured, result

    def uncached() -> object:
        return capture_bound(chain, kib())

    assert used_by(cached)[0] == 6 * KIB  # the input and five results
    size, kept = used_by(uncached)
    assert size == KIB  # the result
    captured, result = kept
    captured.replayV3([kib()])
    gc.collect()
    assert result.tolist()[0] == 6.0
    del captured, result, kept
    assert used_by(lambda: None)[0] == 0


def test_a_graph_frees_its_memory_when_it_dies_or_is_reset():
    def captured() -> HPUGraph:
        captured, x = HPUGraph(), kib()
        with torch.no_grad(), graph(captured):
            chain(x)
        return captured

    size, kept = used_by(captured)
    assert size == 6 * KIB
    start = torch.hpu.memory_allocated()
    kept.reset()
    assert start - torch.hpu.memory_allocated() == 6 * KIB
    size, kept = used_by(captured)
    start = torch.hpu.memory_allocated()
    del kept
    assert start - torch.hpu.memory_allocated() == 6 * KIB


def test_clear_inputs_drops_what_the_graph_wrote_to():
    def forward(x: Tensor, cache: Tensor) -> Tensor:
        cache.add_(x)
        return x * 2

    cache = kib()
    captured = HPUGraph()
    x = kib()
    with torch.no_grad(), graph(captured):
        captured.mark_user_inputs([x])
        result = forward(x, cache)
    captured.clear_inputs()  # nothing is known before the outputs are
    captured.mark_user_outputs([result])
    start = torch.hpu.memory_allocated()
    del cache
    assert torch.hpu.memory_allocated() == start
    captured.clear_inputs()
    assert start - torch.hpu.memory_allocated() == KIB
    with pytest.raises(GraphCaptureError, match="replayV3: clear_inputs has dropped tensors that"):
        captured.replayV3([x])


def test_clear_inputs_leaves_a_graph_whose_inputs_are_marked_usable():
    def forward(cache: Tensor) -> Tensor:
        return cache.add_(1) * 2

    captured, result = capture_bound(forward, kib())
    captured.clear_inputs()
    given = kib()
    captured.replayV3([given])
    assert (given.tolist()[0], result.tolist()[0]) == (2.0, 4.0)


# --- what a card would do wrong -------------------------------------------------------------------


def test_a_wrong_number_shape_dtype_or_device_raises():
    captured, _ = capture_bound(lambda x: x * 2, hpu(3))
    with pytest.raises(GraphCaptureError, match="1 inputs were marked, but 2 are given"):
        captured.replayV3([hpu(3), hpu(3)])
    with pytest.raises(GraphCaptureError, match="1 inputs were marked, but 0 are given"):
        captured.replayV3([])
    with pytest.raises(
        GraphCaptureError, match=r"input 0 was captured with shape \[3\], but \[4\] is given"
    ):
        captured.replayV3([hpu(4)])
    with pytest.raises(
        GraphCaptureError, match=r"torch\.float32, but torch\.int32 is given\. A card compares"
    ):
        captured.replayV3([torch.ones(3, dtype=torch.int32, device="hpu")])
    with pytest.raises(GraphCaptureError, match="input 0 is on cpu, but the graph reads it on"):
        captured.replayV3([torch.ones(3)])


def test_a_marked_view_is_not_bound():
    base = torch.ones(4, device="hpu")
    view = base[1:]
    captured, result = capture_bound(lambda x: x * 2, view)
    with pytest.raises(GraphCaptureError, match="input 0 was a view, or another name"):
        captured.replayV3([torch.full((3,), 5.0, device="hpu")])
    # What the SDK's wrapper does: copy into the captured view, then pass the new tensor.
    given = torch.full((3,), 5.0, device="hpu")
    view.copy_(given)
    captured.replayV3([given])
    assert result.tolist() == [10.0] * 3


def test_a_tensor_marked_twice_is_bound_once():
    x = hpu(3)
    captured, result = capture_bound(lambda a, b: a * b, x, x)
    other = hpu(3)
    captured.replayV3([other, other])
    assert torch.equal(result.cpu(), other.cpu() ** 2)
    with pytest.raises(GraphCaptureError, match="input 1 was a view, or another name for an"):
        captured.replayV3([other, other + 1])


def test_a_view_to_write_to_raises():
    captured, _ = capture_bound(lambda x: x.add_(1) * 2, hpu(3))
    with pytest.raises(GraphCaptureError, match="writes to input 0 in place, and a view is given"):
        captured.replayV3([hpu(4)[1:]])


def test_an_output_in_the_memory_of_an_input_is_not_refreshed():
    first = torch.ones(3, device="hpu")
    captured, result = capture_bound(lambda x: (x.add_(1), x * 2), first)
    captured.replayV3([first])
    assert result[0].tolist() == [3.0] * 3
    with pytest.raises(GraphCaptureError, match="an output lies in the memory of captured input 0"):
        captured.replayV3([torch.ones(3, device="hpu")])


def test_replay_finds_no_inputs_where_they_are_marked():
    captured, _ = capture_bound(lambda x: x * 2, hpu(3))
    with pytest.raises(GraphCaptureError, match=r"a card finds none to read\. Use replayV3"):
        captured.replay()


def test_replayv3_needs_marks():
    captured, x = HPUGraph(), hpu(3)
    with torch.no_grad(), graph(captured):
        x.mul_(2)
    with pytest.raises(GraphCaptureError, match="no inputs were marked, so a card would ignore"):
        captured.replayV3([x])
    with pytest.raises(GraphCaptureError, match=r"replayV3: nothing was captured"):
        HPUGraph().replayV3([])


def test_when_to_mark():
    captured, x = HPUGraph(), hpu(3)
    with pytest.raises(GraphCaptureError, match="mark_user_inputs: this graph has no capture in"):
        captured.mark_user_inputs([x])
    with pytest.raises(GraphCaptureError, match="mark_user_outputs: nothing was captured"):
        captured.mark_user_outputs([x])
    with torch.no_grad(), graph(captured):
        captured.mark_user_inputs([x])
        with pytest.raises(GraphCaptureError, match="called for the second time in this capture"):
            captured.mark_user_inputs([x])
        y = x * 2
        with pytest.raises(GraphCaptureError, match="mark_user_outputs: the capture is in progr"):
            captured.mark_user_outputs([y])
    with pytest.raises(GraphCaptureError, match="mark_user_inputs: this graph has no capture in"):
        captured.mark_user_inputs([x])
    captured.mark_user_outputs([y])
    with pytest.raises(GraphCaptureError, match="mark_user_outputs: called for the second time"):
        captured.mark_user_outputs([y])
