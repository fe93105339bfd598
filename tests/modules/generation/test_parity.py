"""Greedy tokens are those of stock ``generate``."""

from __future__ import annotations

import copy

import pytest
import torch
from modules.generation.models import (
    EOS,
    FAMILIES,
    batch_of,
    configs,
    make_model,
    make_prompts,
    stock_tokens,
)
from modules.generation.runs import generated, predict, rows_of, trainer
from torch.utils.data import DataLoader

from lightning_gaudi.modules.generation import TextGenerationModule

LENGTHS = (5, 12, 3, 9, 7, 11, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_stock_generate(family):
    model, prompts = make_model(family), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, 20)
    num_ended = sum(row[-1] == EOS for row in expected)
    assert 0 < num_ended < len(expected), "EOS must end some rows, and not all"
    assert len({token for row in expected for token in row}) > 8, "the tokens must vary"
    one_by_one = [stock_tokens(model, [prompt], 20)[0] for prompt in prompts]
    assert one_by_one == expected
    module = TextGenerationModule(model, max_new_tokens=20, buckets=[16], batch_size=4)
    batches = [batch_of(prompts[:4]), batch_of(prompts[4:], "left", extra=2)]
    rows, graphs = predict(module, batches)
    assert rows == expected
    stats = graphs.stats
    assert (stats.captures, stats.eager_calls, stats.padded_calls) == (2, 0, 0)
    assert {name: each.captures for name, each in stats.per_target.items()} == {
        "prefill": 1,
        "decode": 1,
    }


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_the_window_matters(family):
    """So that equality with stock shows that windows are right."""
    model, prompts = make_model(family), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, 20)
    wider = copy.deepcopy(model)
    wider.config.sliding_window = 100
    for module in wider.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 100
    assert stock_tokens(wider, prompts, 20) != expected


@pytest.mark.parametrize("every", [1, 3, 8, 50])
@pytest.mark.parametrize("buckets", [[12], [6, 12], [3, 7, 16]], ids=len)
def test_any_buckets_and_any_check(buckets, every):
    model, prompts = make_model(), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, 20)
    batches = [batch_of(prompts[i : i + 1]) for i in (0, 1, 2)] + [batch_of(prompts[3:])]
    module = TextGenerationModule(
        model, max_new_tokens=20, buckets=buckets, batch_size=2, eos_check_every=every
    )
    rows, graphs = predict(module, batches)
    assert rows == expected
    assert graphs.stats.captures == len(buckets) + 1
    assert graphs.stats.per_target["decode"].captures == 1


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7], ids=str)
@pytest.mark.parametrize("batch_size", [None, 3, 8])
def test_any_batches(sizes, batch_size):
    model, prompts = make_model("qwen2"), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, 12)
    rest, batches = list(prompts), []
    for size in sizes:
        batches.append(batch_of(rest[:size]))
        del rest[:size]
    assert generated(model, batches, 12, batch_size=batch_size) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_op_by_op_on_the_device_and_on_the_cpu(family):
    model, prompts = make_model(family), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, 20)
    options = {"max_new_tokens": 20, "buckets": [8, 16], "batch_size": 4}
    loader = DataLoader([batch_of(prompts[:4]), batch_of(prompts[4:])], batch_size=None)
    on_device = TextGenerationModule(copy.deepcopy(model), **options)
    assert rows_of(trainer().predict(on_device, loader)) == expected
    on_cpu = TextGenerationModule(copy.deepcopy(model), **options)
    found = trainer(accelerator="cpu", strategy="auto").predict(on_cpu, loader)
    assert rows_of(found) == expected
    alone = TextGenerationModule(copy.deepcopy(model), **options)
    assert alone.predict_step(batch_of(prompts))["token_ids"] == expected


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_few_tokens(max_new_tokens):
    model, prompts = make_model(), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, max_new_tokens)
    assert generated(model, [batch_of(prompts)], max_new_tokens) == expected


def test_several_eos_tokens():
    model, prompts = make_model(), make_prompts(LENGTHS)
    ends = [EOS, 7, 9]
    expected = stock_tokens(model, prompts, 20, eos=ends, eos_token_id=ends)
    assert {row[-1] for row in expected if len(row) < 20} >= {7, 9}
    assert generated(model, [batch_of(prompts)], eos_token_id=ends) == expected
    model.generation_config.eos_token_id = ends
    assert generated(model, [batch_of(prompts)]) == expected


def test_no_eos_token():
    model, prompts = make_model(), make_prompts(LENGTHS)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    expected = stock_tokens(model, prompts, 20, eos=())
    assert EOS in [token for row in expected for token in row]
    assert generated(model, [batch_of(prompts)]) == expected


def test_repeated_predictions_and_changed_weights():
    model, prompts = make_model(), make_prompts(LENGTHS)
    module = TextGenerationModule(model, max_new_tokens=20, buckets=[16])
    first = stock_tokens(model, prompts, 20)
    for _ in range(2):
        assert predict(module, [batch_of(prompts)])[0] == first
    with torch.no_grad():
        module.model.lm_head.weight.mul_(-1)
    second = stock_tokens(module.model, prompts, 20)
    assert second != first
    assert predict(module, [batch_of(prompts)])[0] == second
    module.model = make_model("gpt2")
    assert predict(module, [batch_of(prompts)])[0] == stock_tokens(module.model, prompts, 20)


def test_weights_change_between_batches():
    """In place: the graphs see it. Replaced: they are dropped and captured again."""
    model, prompts = make_model(), make_prompts(LENGTHS)
    changed = copy.deepcopy(model)
    changed.lm_head.weight.data.mul_(-1)
    expected = [stock_tokens(each, prompts, 20) for each in (model, changed, changed, model)]

    class Changing(TextGenerationModule):
        def on_predict_batch_start(self, batch, batch_idx, dataloader_idx=0):
            weight = self.model.lm_head.weight
            if batch_idx == 1:
                weight.data.mul_(-1)
            if batch_idx == 3:
                self.model.lm_head.weight = torch.nn.Parameter(-weight.detach())

    module = Changing(model, max_new_tokens=20, buckets=[16])
    rows, graphs = predict(module, [batch_of(prompts)] * 4)
    assert rows == [row for each in expected for row in each]
    assert graphs.stats.captures == 4


def test_precision_bf16():
    model, prompts = make_model(), make_prompts(LENGTHS)
    expected = stock_tokens(copy.deepcopy(model).bfloat16(), prompts, 8)
    module = TextGenerationModule(model, max_new_tokens=8)
    assert predict(module, [batch_of(prompts)], precision="bf16-true")[0] == expected


def test_autocast():
    model, prompts = make_model(), make_prompts(LENGTHS)
    module = TextGenerationModule(model, max_new_tokens=8)
    loader = DataLoader([batch_of(prompts)], batch_size=None)
    op_by_op = rows_of(trainer(precision="bf16-mixed").predict(module, loader))
    rows, graphs = predict(module, [batch_of(prompts)], precision="bf16-mixed")
    assert rows == op_by_op
    assert graphs.stats.captures == 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_autocast_on_the_cpu(family):
    """Its keys are of another dtype than its values where they are rotated."""
    model, prompts = make_model(family), make_prompts(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        expected = stock_tokens(model, prompts, 8)
        found = TextGenerationModule(model, max_new_tokens=8).predict_step(batch_of(prompts))
    assert found["token_ids"] == expected


def test_a_config_makes_a_model():
    torch.manual_seed(0)
    module = TextGenerationModule(configs()["llama"], max_new_tokens=4)
    assert all(name.startswith("model.") for name in module.state_dict())
    assert len(module.state_dict()) == len(module.model.state_dict())
    prompts = make_prompts((5, 3))
    assert predict(module, [batch_of(prompts)])[0] == stock_tokens(module.model, prompts, 4)
