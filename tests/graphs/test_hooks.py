"""What a replay would not do: run hooks of submodules, and write attributes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.utils import output_capturing

from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs.transformers_masks import is_idle_hook


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def deep():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    return nn.Sequential(inner, nn.Linear(4, 4)).eval().to("hpu")


REGISTER = {
    "forward hook": lambda m, seen: m.register_forward_hook(
        lambda module, args, result: seen.append(1) or result * 2
    ),
    "pre-hook": lambda m, seen: m.register_forward_pre_hook(
        lambda module, args: seen.append(1) or (args[0] + 1,)
    ),
    "with kwargs": lambda m, seen: m.register_forward_hook(
        lambda module, args, kwargs, result: seen.append(1) or -result, with_kwargs=True
    ),
}


@pytest.mark.parametrize("kind", REGISTER)
@pytest.mark.parametrize("place", ["0", "0.1", "1"])
def test_never_wrong_13_hooks_on_submodules_run(kind, place):
    module, seen = deep(), []
    graphed = GraphedForward(module)
    x = torch.randn(3, 4).to("hpu")
    plain = module(x)
    assert torch.equal(graphed(x).cpu(), plain.cpu())
    handle = REGISTER[kind](module.get_submodule(place), seen)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            result = graphed(x)
            assert len(seen) == 1  # and a replay would have run none
            assert torch.equal(result.cpu(), module(x).cpu())
            assert not torch.equal(result.cpu(), plain.cpu())
            seen.clear()
    assert ["has a forward hook" in str(w.message) for w in said] == [True]
    handle.remove()
    assert torch.equal(graphed(x).cpu(), plain.cpu())
    assert (graphed.stats.captures, graphed.stats.replays, graphed.stats.eager_calls) == (1, 1, 2)


def test_hooks_of_the_target_itself_run_around_its_forward():
    module, seen = deep(), []
    module.forward = GraphedForward(module)  # as the callback swaps it
    module.register_forward_hook(lambda module, args, result: seen.append(1) or result * 2)
    x = torch.randn(3, 4).to("hpu")
    results = [module(x) for _ in range(3)]
    assert len(seen) == 3
    assert all(torch.equal(results[0].cpu(), result.cpu()) for result in results)
    assert module.forward.stats.replays == 2


def test_card_rule_8_attributes_are_written_at_the_capture_only():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.register_buffer("device_calls", torch.zeros(1, device="hpu"))

        def forward(self, x):
            self.calls += 1
            self.device_calls += 1
            return x * self.device_calls

    module = Counts()
    graphed = GraphedForward(module)
    x = torch.ones(2, device="hpu")
    assert [graphed(x).tolist() for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]
    assert module.calls == 1  # as documented; what must count is a buffer
    assert module.device_calls.item() == 3


def bert():
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return BertModel._from_config(config, attn_implementation="eager").eval().to("hpu")


def batch(seed, **options):
    torch.manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 50, (2, 5)).to("hpu"),
        "attention_mask": (torch.rand(2, 5) > 0.2 * seed).long().to("hpu"),
        **options,
    }


ALL = {"output_hidden_states": True, "output_attentions": True}


def assert_same_layers(result, expected):
    assert len(result.hidden_states) == 3
    for name in ("hidden_states", "attentions"):
        pairs = zip(result[name], expected[name], strict=True)
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def test_hidden_states_that_the_library_gathers_with_hooks_of_its_own():
    model = bert()
    graphed = GraphedForward(model)
    for seed in range(3):
        assert_same_layers(graphed(**batch(seed, **ALL)), model(**batch(seed, **ALL)))
        plain = graphed(**batch(seed))
        assert plain.hidden_states is None
        assert torch.equal(plain[0].cpu(), model(**batch(seed))[0].cpu())
    assert (graphed.stats.captures, graphed.stats.replays) == (2, 4)
    # Any other hook forbids replay all the same.
    model.encoder.layer[0].register_forward_hook(lambda *call: None)
    with pytest.warns(UserWarning, match="BertLayer has a forward hook"):
        graphed(**batch(0))


def test_layers_inside_a_model_that_gathers_their_outputs_are_not_replayed(monkeypatch):
    model = bert()
    expected = [model(**batch(seed, **ALL)) for seed in range(3)]
    model.encoder.forward = graphed = GraphedForward(model.encoder)
    with pytest.warns(UserWarning, match="has a forward hook"):
        for seed in range(3):
            assert_same_layers(model(**batch(seed, **ALL)), expected[seed])
    assert graphed.stats.replays == 0
    for seed in range(2):
        assert torch.equal(model(**batch(seed))[0].cpu(), expected[seed][0].cpu())
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 1)
    # A version that does not tell whether somebody gathers.
    monkeypatch.delattr(output_capturing, "_active_collector")
    assert not is_idle_hook(next(iter(model.encoder.layer[0]._forward_hooks.values())))
