"""The guide's rows for text generation: the code of each runs and does what it says."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from modules.generation.models import batch_of, make_model, make_prompts, stock_tokens
from modules.generation.runs import rows_of
from moving_over.rows import code_of, evaluated, quiet_trainer, rows_under
from torch.utils.data import DataLoader
from training import IGNORED_WARNINGS

from lightning_gaudi import HPUGraphCallback, emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation import TextGenerationModule

pytestmark = IGNORED_WARNINGS
TABLE = "Text generation ("
LENGTHS = (5, 20, 3, 7)
NUM_TOKENS = 9


def row(argument: str, **names: Any) -> Any:
    """What the code of an argument's row gives; a module makes few tokens unless told."""
    few = partial(TextGenerationModule, max_new_tokens=NUM_TOKENS)
    code = code_of(TABLE, argument)
    return evaluated(code, model=make_model(), TextGenerationModule=few, **names)


def short(**settings: Any) -> TextGenerationModule:
    return TextGenerationModule(make_model(), max_new_tokens=NUM_TOKENS, **settings)


def predict(module: TextGenerationModule, *callbacks: Any, **settings: Any) -> list[list[int]]:
    """New tokens of four prompts, in two batches of two."""
    prompts = make_prompts(LENGTHS)
    batches = DataLoader([batch_of(prompts[:2]), batch_of(prompts[2:])], batch_size=None)
    run = settings.pop("run", None) or quiet_trainer(callbacks=list(callbacks))
    return rows_of(run.predict(module, batches))


def expected(num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    return stock_tokens(make_model(), make_prompts(LENGTHS), num_tokens)


def widths_of_prompts(module: TextGenerationModule, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To how many columns the prompts of each batch were padded."""
    widths: list[int] = []
    forward = module.prefill.forward

    def noted(input_ids: torch.Tensor, *args: Any) -> None:
        widths.append(input_ids.shape[1])
        forward(input_ids, *args)

    monkeypatch.setattr(module.prefill, "forward", noted)
    assert predict(module) == expected(module.settings.max_new_tokens)
    return widths


def test_each_argument_of_the_table_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    arguments = {argument for row in rows_under(TABLE) for argument in row.code(0)}
    assert arguments <= tested, arguments - tested


def test_max_new_tokens() -> None:
    module = row("max_new_tokens")
    found = predict(module, HPUGraphCallback())
    assert found == expected(6)
    assert max(map(len, found)) == 6


def test_max_input_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="a prompt of 20 tokens is longer than the"):
        predict(row("max_input_tokens"))
    monkeypatch.setattr(sys.modules[__name__], "LENGTHS", (5, 12, 3, 7))
    assert widths_of_prompts(row("max_input_tokens"), monkeypatch) == [16, 16]


def test_bucket_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = row("bucket_size")
    assert module.buckets == [8, 16, 24, 32]
    assert widths_of_prompts(module, monkeypatch) == [24, 8]  # 20 and 7 are the longest


def test_batch_size() -> None:
    module = row("batch_size")
    prompts = make_prompts((5, 12, 3, 9, 7))
    graphs = HPUGraphCallback()
    run = quiet_trainer(callbacks=[graphs])
    found = rows_of(run.predict(module, DataLoader([batch_of(prompts)], batch_size=None)))
    assert found == stock_tokens(make_model(), prompts, NUM_TOKENS)
    # Two and two and one, which is filled up.
    assert module.batch_size == 2
    assert graphs.stats.captures == 2


def columns_of(module: TextGenerationModule) -> list[tuple[int, int]]:
    """Columns of tokens that go into the model and of logits that come out, in each forward."""
    columns: list[int] = []
    model = module.model
    hooks = [
        model.model.embed_tokens.register_forward_pre_hook(
            lambda layer, inputs: columns.append(inputs[0].shape[1])
        ),
        model.lm_head.register_forward_hook(
            lambda layer, inputs, logits: columns.append(logits.shape[1])
        ),
    ]
    assert predict(module) == expected(module.settings.max_new_tokens)
    for hook in hooks:
        hook.remove()
    # Before the first batch a few tokens tell whether the model can have a static cache.
    pairs = list(zip(columns[::2], columns[1::2], strict=True))
    return pairs[pairs.index((32, 1)) :]


def test_use_kv_cache() -> None:
    columns = [tokens for tokens, _ in columns_of(row("use_kv_cache"))]
    # The prompts of two batches, and between them one token at a time.
    assert (columns[0], columns.count(16), columns.count(1)) == (32, 1, len(columns) - 2)


def test_reuse_cache() -> None:
    module = row("reuse_cache")
    places: list[int] = []

    class Places(HPUGraphCallback):
        def on_predict_batch_end(self, *args: Any) -> None:
            places.append(module._loop.state.cache.layers[0].keys.data_ptr())

    assert predict(module, Places()) == expected()
    assert len(places) == 2
    assert len(set(places)) == 1


def test_trim_logits() -> None:
    assert {logits for _, logits in columns_of(row("trim_logits"))} == {1}


def test_attn_softmax_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    dtypes: set[torch.dtype] = set()

    def noted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dtypes.add(query.dtype)
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    found = predict(short(), run=row("attn_softmax_bf16"))
    assert dtypes == {torch.bfloat16}
    model = make_model().to(torch.bfloat16)
    assert found == stock_tokens(model, make_prompts(LENGTHS), NUM_TOKENS)


def test_use_hpu_graphs() -> None:
    graphs = row("use_hpu_graphs")
    assert predict(short(buckets=[24]), graphs) == expected()
    assert (graphs.stats.captures, graphs.stats.eager_calls) == (2, 0)


def test_limit_hpu_graphs() -> None:
    graphs = row("limit_hpu_graphs")
    assert predict(short(buckets=[24]), graphs) == expected()
    assert list(graphs.stats.per_target) == ["decode"]
    assert graphs.stats.captures == 1


def test_ignore_eos() -> None:
    def reads(module: TextGenerationModule) -> int:
        with emulator.record() as events:
            found = predict(module)
        assert found == expected(module.settings.max_new_tokens)
        return sum(event.kind == "host_read" for event in events)

    every_fourth = row("ignore_eos")
    assert every_fourth.settings.eos_check_every == 4
    every = short(eos_check_every=1)
    assert reads(every_fourth) < reads(every)


def test_do_sample() -> None:
    module = row("do_sample")
    assert module.settings.do_sample
    found = predict(module)
    assert found != expected()
    prompts = make_prompts(LENGTHS)
    one = quiet_trainer().predict(
        row("do_sample"), DataLoader([batch_of([ids]) for ids in prompts], batch_size=None)
    )
    assert rows_of(one) == found


def test_seed() -> None:
    module = row("seed")
    assert module.settings.seed == 27
    other = short(do_sample=True, seed=28)
    assert predict(module) != predict(other)


def test_num_beams() -> None:
    assert predict(row("num_beams")) == expected()
    with pytest.raises(ConfigurationError, match="num_beams"):
        TextGenerationModule(make_model(), num_beams=4)
