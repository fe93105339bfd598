"""Models that go wrong with a static cache or with padding, or are no models, are refused."""

from __future__ import annotations

import pytest
import torch
from modules.generation.models import EOS, PAD, batch_of, make_prompts, stock_tokens
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    MixtralConfig,
    Phi3Config,
    TrOCRConfig,
)

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation import TextGenerationModule

_TOKENS = {"vocab_size": 24, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
_LLAMA = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PROMPTS = make_prompts((5, 12, 3, 9))
NUM_TOKENS = 10


def make(config):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6)
    return model


def generate(model, bucket=16):
    module = TextGenerationModule(model, max_new_tokens=NUM_TOKENS, buckets=[bucket])
    return module.predict_step(batch_of(PROMPTS))["token_ids"]


def gpt_neo(window):
    """Each second layer sees a window, which it counts from the end of the cache."""
    return GPTNeoConfig(
        **_TOKENS, hidden_size=32, num_layers=2, num_heads=4, window_size=window,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128,
    )  # fmt: skip


def phi3(original):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "factor": 128 / original, **factors}
    return Phi3Config(**_LLAMA, original_max_position_embeddings=original, rope_scaling=rope)


def test_a_window_that_is_counted_from_the_caches_end():
    with pytest.raises(ConfigurationError, match=r"GPTNeoForCausalLM cannot .* other logits"):
        generate(make(gpt_neo(window=7)))
    model = make(gpt_neo(window=64))
    assert generate(model) == stock_tokens(model, PROMPTS, NUM_TOKENS)


def test_positions_that_count_padding():
    """Stock generate is wrong with padding too, but right for one prompt."""
    config = TrOCRConfig(
        **_TOKENS, d_model=32, decoder_layers=2, decoder_ffn_dim=48, decoder_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    model = make(config)
    one_by_one = [stock_tokens(model, [prompt], NUM_TOKENS)[0] for prompt in PROMPTS]
    assert stock_tokens(model, PROMPTS, NUM_TOKENS) != one_by_one
    with pytest.raises(ConfigurationError, match=r"TrOCRForCausalLM cannot .* padded left"):
        generate(model)


def test_rotations_that_change_with_the_texts_length():
    """Stock generate makes all keys anew where a text outgrows the original length."""
    with pytest.raises(ConfigurationError, match=r"make 26 positions, .* has 25 \(original_max_"):
        generate(make(phi3(original=25)))
    model = make(phi3(original=26))
    expected = [stock_tokens(model, [prompt], NUM_TOKENS)[0] for prompt in PROMPTS]
    assert generate(model) == expected


def test_dropout_is_no_difference_that_counts():
    """Outside a trainer a model may be in train mode, where each forward gives other logits."""
    model = make(GPT2Config(**_TOKENS, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5)).train()
    assert all(1 <= len(row) <= NUM_TOKENS for row in generate(model))
    assert generate(model.eval()) == stock_tokens(model, PROMPTS, NUM_TOKENS)


def test_experts_are_no_difference():
    model = make(MixtralConfig(**_LLAMA, num_local_experts=4))
    assert generate(model) == stock_tokens(model, PROMPTS, NUM_TOKENS)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": None}, "model must be a Transformers model.*of type NoneType"),
        ({"model": torch.nn.Linear(2, 2)}, "model must be a Transformers model.*of type Linear"),
        ({"model": "missing/place/here"}, "no model to generate with at 'missing/place/here'"),
        ({"tokenizer": "missing/place/here"}, "no tokenizer at 'missing/place/here'"),
        ({"tokenizer": "missing.gguf"}, r"no tokenizer at 'missing\.gguf'"),
    ],
    ids=["none", "module", "folder", "tokenizer", "gguf"],
)
def test_what_cannot_be_loaded(options, text):
    with pytest.raises(ConfigurationError, match=text):
        TextGenerationModule(**{"model": MixtralConfig(**_LLAMA), **options})
