"""What reaches the device: host reads, marks, captures; and how fast it is said to be."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from modules.generation.models import batch_of, make_model, make_prompts, stock_tokens
from modules.generation.runs import predict, rows_of, trainer
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback, emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation import TextGenerationModule
from lightning_gaudi.runtime import metrics

LENGTHS = (5, 12, 3, 9)
# Which rows end at which token depends on the model; these end late.
NUM_TOKENS = 20


def module_of(model=None, **options):
    options = {"max_new_tokens": NUM_TOKENS, "buckets": [16], "eos_check_every": 8, **options}
    return TextGenerationModule(model or make_model(), **options)


def on_device(module):
    module.eval().to("hpu")
    return module


@pytest.mark.parametrize(("every", "num_looks"), [(1, 19), (3, 6), (8, 2), (20, 0)])
def test_one_host_read_every_so_many_tokens(every, num_looks):
    module = on_device(module_of(eos_check_every=every))
    batch = batch_of(make_prompts(LENGTHS))
    with torch.inference_mode():
        expected = module.predict_step(batch)["token_ids"]
        assert max(map(len, expected)) == NUM_TOKENS
        before, counted = metrics.counters(), module.stats.num_host_reads
        module.predict_step(batch)
        found = metrics.counters() - before
    assert found.host_reads == num_looks
    assert found.host_copies == 1, "the tokens at the end"
    assert module.stats.num_host_reads - counted == num_looks + 1
    assert found.compilations == 0


@pytest.mark.parametrize("every", [1, 3, 8])
def test_the_loop_ends_with_the_last_row(every):
    model, prompts = make_model(), make_prompts((5, 12, 3, 9, 7, 11, 2))
    ending = [
        prompt
        for prompt, row in zip(prompts, stock_tokens(model, prompts, NUM_TOKENS), strict=True)
        if len(row) < NUM_TOKENS
    ]
    longest = max(map(len, stock_tokens(model, ending, NUM_TOKENS)))
    module = on_device(module_of(model, eos_check_every=every))
    module.predict_step(batch_of(ending))
    assert module.stats.num_steps == min(-(-longest // every) * every, NUM_TOKENS)


def test_fillers_do_not_hold_the_loop_up():
    model, prompts = make_model(), make_prompts((5, 12, 3, 9, 7, 11, 2))
    rows = stock_tokens(model, prompts, NUM_TOKENS)
    shortest = min(range(len(rows)), key=lambda row: len(rows[row]))
    module = on_device(module_of(model, batch_size=4, eos_check_every=1))
    assert module.predict_step(batch_of([prompts[shortest]]))["token_ids"] == [rows[shortest]]
    assert module.stats.num_steps == len(rows[shortest])
    assert module.stats.num_prompts == 1
    assert module.stats.num_tokens == len(rows[shortest])


def test_sampled_fillers_end_with_the_row_that_they_repeat():
    model, prompts = make_model(), make_prompts((5, 12, 3, 9, 7, 11, 2))
    options = {"do_sample": True, "eos_check_every": 1}
    alone = on_device(module_of(model, batch_size=1, **options))
    rows = alone.predict_step(batch_of(prompts))["token_ids"]
    assert min(map(len, rows)) < NUM_TOKENS
    for prompt, row in zip(prompts, rows, strict=True):
        filled = on_device(module_of(model, batch_size=3, **options))
        assert filled.predict_step(batch_of([prompt]))["token_ids"] == [row]
        assert filled.stats.num_steps == len(row)


def test_a_mark_after_each_step_op_by_op():
    module = on_device(module_of())
    batch = batch_of(make_prompts(LENGTHS))
    module.predict_step(batch)
    with emulator.record() as events:
        module.predict_step(batch)
    marks = [event for event in events if event.kind == "mark_step"]
    assert len(marks) == NUM_TOKENS
    assert not [event for event in events if event.kind == "compile"]


class Counting(HPUGraphCallback):
    """Counts what the last of three batches costs."""

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.before = metrics.counters()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.counted = metrics.counters() - self.before


def test_replays_alone_once_each_was_replayed():
    module, graphs = module_of(), Counting()
    batches = [batch_of(make_prompts(LENGTHS))] * 3
    trainer(graphs).predict(module, DataLoader(batches, batch_size=None))
    counted = graphs.counted
    assert counted.compilations == 0
    assert (counted.host_reads, counted.host_copies) == (2, 1)
    per_target = graphs.stats.per_target
    assert (per_target["prefill"].captures, per_target["prefill"].replays) == (1, 2)
    assert (per_target["decode"].captures, per_target["decode"].replays) == (1, 3 * 19 - 1)
    assert graphs.stats.eager_calls == 0
    assert module.stats.num_captures == 2


def test_a_larger_batch_or_a_longer_prompt_makes_the_cache_anew():
    model, prompts = make_model(), make_prompts((5, 12, 3, 30))
    expected = stock_tokens(model, prompts, 8)
    module = TextGenerationModule(model, max_new_tokens=8)
    batches = [batch_of([prompts[0]]), batch_of(prompts[1:3]), batch_of([prompts[3]])]
    batches.append(batch_of([prompts[0]]))
    rows, graphs = predict(module, batches)
    assert rows == [*expected, expected[0]]
    # Prefill and decode of one row, of two rows, of two rows with a longer cache; the last batch
    # has the first bucket again, in the new cache.
    assert graphs.stats.captures == 7


def test_memory_is_let_go_of():
    module = module_of()
    predict(module, [batch_of(make_prompts(LENGTHS))])
    assert module._loop.state.cache is None
    assert list(module._loop.state.buffers()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"disable_tensor_cache": True},
        {"asynchronous": True, "clone_outputs": False},
        {"verify": True},
        {"on_failure": "eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_callback(options):
    model, prompts = make_model(), make_prompts((5, 12, 3, 9, 7))
    graphs = HPUGraphCallback(**options)
    module = module_of(model, batch_size=2)
    found = trainer(graphs).predict(module, DataLoader([batch_of(prompts)] * 2, batch_size=None))
    assert rows_of(found) == stock_tokens(model, prompts, NUM_TOKENS) * 2
    assert (graphs.stats.captures, graphs.stats.eager_calls) == (2, 0)


def test_a_warmup_before_there_is_a_cache():
    graphs = HPUGraphCallback(
        targets="prefill",
        warmup=[[[4, 16, "int64"], [4, 16, "int64"]]],
    )
    loader = DataLoader([batch_of(make_prompts(LENGTHS))], batch_size=None)
    with pytest.raises(
        ConfigurationError, match=r"no cache yet to read prompts into.*Leave warmup"
    ):
        trainer(graphs).predict(module_of(), loader)


def test_a_poisoned_cache_does_not_reach_the_next_batch():
    """Values of an earlier batch are behind the mask, but zero times infinite is NaN."""
    model, prompts = make_model(), make_prompts(LENGTHS)
    module = on_device(module_of(model))
    module.predict_step(batch_of(prompts))
    for name, buffer in module._loop.state.named_buffers():
        if name.endswith(("keys", "values")):
            buffer.fill_(float("nan"))
    found = module.predict_step(batch_of(prompts))["token_ids"]
    assert found == stock_tokens(model, prompts, NUM_TOKENS)


def test_padding_sees_something():
    """Or a kernel may give NaN for it, which its values would carry into every real token."""
    seen = []

    def looking(query, key, value, attn_mask=None, **kwargs):
        seen.append(attn_mask)
        return stock_attention(query, key, value, attn_mask=attn_mask, **kwargs)

    stock_attention = torch.nn.functional.scaled_dot_product_attention
    module = on_device(module_of())
    module.predict_step(batch_of(make_prompts(LENGTHS)))  # also runs without a mask, to compare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", looking)
        module.predict_step(batch_of(make_prompts(LENGTHS)))
    assert seen
    assert all(mask.any(-1).all() for mask in seen)


def test_throughput_leaves_warmup_out(tmp_path):
    model, prompts = make_model(), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, NUM_TOKENS)
    logger = CSVLogger(tmp_path)
    module = module_of(model)
    predict(module, [batch_of(prompts)], logger=logger)
    stats = module.stats
    # Of the only batch prefill and the first decoding step were captured.
    assert stats.measured_tokens == sum(max(len(row) - 2, 0) for row in expected)
    assert stats.time_to_first_token_s is None
    assert stats.tokens_per_second > 0
    predict(module, [batch_of(prompts)] * 3, logger=logger)
    assert stats.num_tokens == 4 * sum(map(len, expected))
    assert stats.measured_tokens == 2 * sum(max(len(row) - 2, 0) for row in expected) + 2 * sum(
        map(len, expected)
    )
    assert 0 < stats.time_to_first_token_s < stats.measured_seconds
    logger.save()
    lines = [line for line in _read(logger) if line["generation/tokens"]]
    assert [float(line["generation/tokens"]) for line in lines] == [
        sum(map(len, expected)),
        4 * sum(map(len, expected)),
    ]
    assert float(lines[-1]["generation/tokens_per_second"]) == stats.tokens_per_second
    assert float(lines[-1]["generation/time_to_first_token_s"]) == stats.time_to_first_token_s


def test_nothing_measured_yet():
    module = module_of(max_new_tokens=1)
    assert module.stats.tokens_per_second is None
    predict(module, [batch_of(make_prompts(LENGTHS))])
    assert module.stats.tokens_per_second is None
    assert "tokens_per_second" not in module.stats.as_dict()


def _read(logger):
    import csv

    with open(logger.experiment.metrics_file_path, newline="") as file:
        return list(csv.DictReader(file))
