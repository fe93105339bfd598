"""Rules that keep replay right on a card, as far as the engine goes."""

from __future__ import annotations

import gc

import pytest
import torch
from cases_of_graphs import assert_same, drawn
from torch import nn

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.runtime import capture as hpu_capture
from lightning_gaudi.runtime import loading


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_card_rule_2_begin_and_end_on_the_default_stream_whatever_happens():
    hpu = loading.module("torch.hpu")
    seen = []

    def forward(x, fail):
        seen.append((hpu.current_stream() == hpu.default_stream(), hpu_capture.is_capturing()))
        if fail:
            raise KeyboardInterrupt
        return x * 2

    graphed = GraphedForward(forward)
    with pytest.raises(KeyboardInterrupt):
        graphed(drawn(2, seed=0), True)
    assert not hpu_capture.is_capturing()
    assert gc.isenabled()
    assert_same(graphed(drawn(2, seed=0), False), drawn(2, seed=0) * 2)
    assert seen == [(True, True)] * 2


def test_card_rule_3_the_key_holds_the_dtype():
    graphed = GraphedForward(lambda x: x + 1, disable_tensor_cache=True, pad_batch=False)
    for dtype in (torch.float32, torch.int32, torch.float32, torch.int32):
        x = drawn(4, seed=0).to(dtype)
        assert_same(graphed(x), x + 1)
    assert (graphed.stats.captures, graphed.stats.replays) == (2, 2)


@pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])
def test_card_rule_4_a_dry_run_shows_no_values_and_freed_memory_is_never_read(binds):
    kept = []

    def forward(x):
        kept.append(x * 2)
        return kept[-1] + 1

    graphed = GraphedForward(forward, disable_tensor_cache=binds, pad_batch=False)
    graphed.warmup([(3,)])
    assert kept[0].isnan().all()
    for seed in range(2):
        assert_same(graphed(drawn(3, seed=seed)), drawn(3, seed=seed) * 2 + 1)
    if binds:  # an intermediate is freed; the answer did not come from it
        assert kept[0].isnan().all()


@pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])
def test_card_rule_5_captures_run_outside_inference_mode_without_gradients(binds):
    seen = []

    def forward(x):
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), x.is_inference()))
        return x * 2

    for context in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        graphed = GraphedForward(forward, disable_tensor_cache=binds)
        with context():
            assert_same(graphed(drawn(2, seed=0)), drawn(2, seed=0) * 2)
    assert seen == [(False, False, False)] * 3


class Remembering(nn.Module):
    """Makes a buffer when it is first called, as caches of masks and positions are made."""

    def __init__(self, replaces):
        super().__init__()
        self.replaces = replaces
        self.register_buffer("state", None)

    def forward(self, x):
        if self.state is None or self.replaces:
            before = x * 0 if self.state is None else self.state
            self.state = before + x.mean() * self.replaces + 1
        return x + self.state


@pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])
def test_a_buffer_made_by_the_first_call_is_made_op_by_op(binds):
    module, twin = Remembering(False), Remembering(False)
    graphed = GraphedForward(module, disable_tensor_cache=binds, pad_batch=False)
    for seed in range(4):
        assert_same(graphed(drawn(3, seed=seed)), twin(drawn(3, seed=seed)))
        assert_same(module.state, twin.state)
    stats = graphed.stats
    assert (stats.eager_calls, stats.captures, stats.replays) == (1, 1, 2)


@pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])
def test_card_rule_8_a_forward_that_replaces_a_buffer_each_time_is_refused(binds):
    module, twin = Remembering(True), Remembering(True)
    graphed = GraphedForward(module, disable_tensor_cache=binds, pad_batch=False)
    assert_same(graphed(drawn(3, seed=0)), twin(drawn(3, seed=0)))
    before = module.state
    with pytest.raises(CaptureError, match=r"it replaces 'state' in its module.*state\.copy_\("):
        graphed(drawn(3, seed=1))
    assert module.state is before
    graphed = GraphedForward(module, disable_tensor_cache=binds, on_failure="eager")
    with pytest.warns(UserWarning, match="it replaces 'state'"):
        for seed in range(1, 4):
            assert_same(graphed(drawn(3, seed=seed)), twin(drawn(3, seed=seed)))
            assert_same(module.state, twin.state)


def test_card_rule_9_constants_made_from_numbers_are_allowed():
    graphed = GraphedForward(lambda x: x * torch.tensor(2.0) + torch.ones(3, device="hpu"))
    for seed in range(2):
        x = drawn(3, seed=seed)
        assert_same(graphed(x), x * 2 + 1)
    assert graphed.stats.replays == 1


def test_card_rule_11_no_address_of_data_decides(monkeypatch):
    module = nn.Linear(3, 3).to("hpu")
    graphed = GraphedForward(module, pad_batch=False)

    def refuse(tensor):
        raise AssertionError("data_ptr means little in lazy mode")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "data_ptr", refuse)
        for seed in range(2):
            graphed(drawn(2, 3, seed=seed))
        module.weight.data = module.weight.data * 2
        ours = graphed(drawn(2, 3, seed=5))
    assert_same(ours, module(drawn(2, 3, seed=5)))
    assert graphed.stats.captures == 2


def test_an_argument_that_shares_memory_with_a_weight_that_is_written_to_is_refused():
    module = nn.Module()
    module.register_buffer("cache", torch.zeros(4, 3, device="hpu"))

    def forward(x, rows):
        module.cache.add_(x)
        return rows * 1

    graphed = GraphedForward(forward, module=module, pad_batch=False)
    assert_same(graphed(drawn(3, seed=0), drawn(2, 3, seed=1)), drawn(2, 3, seed=1))
    with pytest.raises(CaptureError, match="one of its arguments shares memory with a weight"):
        graphed(drawn(3, seed=0), module.cache[:2])
    fresh = GraphedForward(forward, module=module, pad_batch=False)
    with pytest.raises(CaptureError, match="one of its arguments shares memory with a weight"):
        fresh(drawn(3, seed=0), module.cache[:2])
