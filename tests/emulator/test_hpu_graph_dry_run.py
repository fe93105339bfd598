"""A dry run leaves no trace: shapes and dtypes are right, values are not there."""

from __future__ import annotations

import gc

import pytest
import torch
from habana_frameworks.torch.hpu import HPUGraph, graph, wrap_in_hpu_graph_func
from torch import Tensor, nn
from torch.nn import functional

from lightning_gaudi.emulator import hpu_graph


def test_results_have_shape_and_dtype_and_no_value_until_a_replay():
    x = torch.ones(2, 3, device="hpu")
    captured = HPUGraph()
    with torch.no_grad(), graph(captured, dry_run=True):
        product = x @ x.t()
        mask = product > 100
        number = product.argmax(1)
        half = product.to(torch.bfloat16)
        zeros = torch.zeros(2, device="hpu")
        view = product[1]
    assert (product.shape, mask.dtype, half.dtype) == ((2, 2), torch.bool, torch.bfloat16)
    for tensor in (product, half, zeros, view):
        assert torch.isnan(tensor.cpu()).all()
    assert mask.cpu().all()
    assert number.tolist() == [torch.iinfo(torch.long).min] * 2
    captured.replay()
    assert product.tolist() == [[3.0, 3.0]] * 2
    assert view.tolist() == half[1].tolist() == [3.0, 3.0]
    assert not mask.cpu().any()
    assert number.tolist() == [0, 0]
    assert zeros.tolist() == [0.0, 0.0]


def test_memory_from_before_is_put_back():
    norm = nn.BatchNorm1d(3).to("hpu")
    cache, counter = torch.zeros(4, 3, device="hpu"), torch.tensor([7], device="hpu")
    filled, from_host = torch.zeros(3, device="hpu"), torch.zeros(3, device="hpu")
    masked, without_block = torch.zeros(2, device="hpu"), torch.zeros(2, device="hpu")
    without_block._block = None  # as for a tensor that C++ has built
    state = {name: tensor.cpu() for name, tensor in norm.state_dict().items()}
    captured = HPUGraph()
    with torch.no_grad(), graph(captured, dry_run=True):
        y = norm(torch.ones(2, 3, device="hpu") * 5)
        cache[1:3].copy_(y)
        cache[0].fill_(1.0)
        counter += 1
        torch.add(counter, 1, out=counter)
        filled.fill_(1.0)
        from_host.copy_(torch.ones(3))
        torch._foreach_add_([cache, counter], 1)
        masked[masked == 0] = torch.tensor([4.0, 5.0], device="hpu")
        without_block.add_(1)
    assert cache.tolist() == [[0.0] * 3] * 4
    assert counter.tolist() == [7]
    assert filled.tolist() == from_host.tolist() == [0.0] * 3
    assert masked.tolist() == without_block.tolist() == [0.0] * 2
    for name, tensor in norm.state_dict().items():
        assert torch.equal(tensor.cpu(), state[name])
    captured.replay()
    assert counter.tolist() == [10]
    assert norm.num_batches_tracked.item() == 1
    assert filled.tolist() == from_host.tolist() == [1.0] * 3
    assert without_block.tolist() == [1.0] * 2


def test_the_random_generators_are_put_back():
    own = torch.Generator(device="hpu").manual_seed(5)
    torch.manual_seed(3)
    captured = HPUGraph()
    with torch.no_grad(), graph(captured, dry_run=True):
        dropped = functional.dropout(torch.ones(32, device="hpu"), 0.5)
        drawn = torch.randn(4, device="hpu", generator=own)
    captured.replay()
    torch.manual_seed(3)
    with torch.no_grad():
        expected = functional.dropout(torch.ones(32, device="hpu"), 0.5)
    assert torch.equal(dropped.cpu(), expected.cpu())
    fresh = torch.Generator(device="hpu").manual_seed(5)
    assert torch.equal(drawn.cpu(), torch.randn(4, device="hpu", generator=fresh).cpu())


def test_capture_begin_takes_it_too():
    x = torch.ones(2, device="hpu")
    captured = HPUGraph()
    with torch.no_grad():
        captured.capture_begin(dry_run=True)
        y = x * 2
        captured.capture_end()
    assert torch.isnan(y.cpu()).all()
    captured.replay()
    assert y.tolist() == [2.0, 2.0]


def test_an_exception_in_a_dry_run_puts_memory_back_too():
    cache = torch.zeros(3, device="hpu")

    def forward() -> None:
        cache.add_(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), graph(HPUGraph(), dry_run=True):
        forward()
    assert cache.tolist() == [0.0] * 3


def test_a_dry_run_whose_graph_dies_puts_memory_back_too():
    cache = torch.zeros(3, device="hpu")

    def forward(x: Tensor) -> Tensor:
        cache.add_(x)
        raise KeyError("mine")

    wrapped = wrap_in_hpu_graph_func(forward, disable_tensor_cache=True)
    with torch.no_grad(), pytest.raises(KeyError, match="mine") as caught:
        wrapped(torch.ones(3, device="hpu"))
    del caught  # its traceback holds the graph
    gc.collect()
    assert cache.tolist() == [0.0] * 3


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is read once in a process.
    monkeypatch.setattr(hpu_graph, "is_strict", lambda: True)


def unseen(captured: HPUGraph, held: Tensor) -> list[Tensor]:
    """Plain tensors on the private memory of a graph that `held` is not in."""
    return [plain for block, plain in captured._program.private.items() if block is not held._block]


def test_strict_mode_fills_what_no_tensor_looks_at(strict):
    x = torch.ones(2, device="hpu")
    captured = HPUGraph()
    with torch.no_grad(), graph(captured):
        held = x * 2
        result = held + 1 + 1
    for _ in range(2):
        hidden = [
            plain for plain in unseen(captured, held) if plain.data_ptr() != result.data_ptr()
        ]
        assert len(hidden) == 1
        assert torch.isnan(hidden[0]).all()
        assert held.tolist() == [2.0, 2.0]
        assert result.tolist() == [4.0, 4.0]
        captured.replay()


def test_without_strict_mode_it_stays():
    x = torch.ones(2, device="hpu")
    captured = HPUGraph()
    with torch.no_grad(), graph(captured):
        result = x * 2 + 1
    assert [plain.tolist() for plain in unseen(captured, result)] == [[2.0, 2.0]]


def test_strict_mode_leaves_what_a_graph_does_not_fill(strict):
    x = torch.tensor([0.0, 3.0, 0.0, 4.0], device="hpu")
    captured = HPUGraph()
    with torch.no_grad(), graph(captured):
        places = x.nonzero().squeeze(1)  # its values are baked in
        scratch = torch.empty_like(x).mul_(0)
        result = x[places] * 2 + scratch.sum().nan_to_num()
        del places, scratch
    captured.replay()
    assert result.tolist() == [6.0, 8.0]


def test_what_reshape_ends_with_is_a_view_though_its_schema_does_not_say_so():
    """Else its memory would be filled with NaN as that of what it views."""
    x = torch.arange(6.0).reshape(2, 3).to("hpu")
    captured = HPUGraph()
    captured.capture_begin(dry_run=True)
    with torch.no_grad():
        captured.mark_user_inputs([x])
        doubled = x * 2  # alive, so that what a card frees of it shows
        result = torch.ops.aten._unsafe_view(doubled, [3, 2])
    captured.capture_end()
    captured.mark_user_outputs([result])
    captured.replayV3([x], False)
    assert result.tolist() == [[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]
