"""Tiny language models of several families, and what stock Transformers generates with them.

They are initialised so wide that their tokens vary, and that EOS occurs in some rows.
"""

from __future__ import annotations

import copy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY, PAD, EOS = 24, 0, 1
WORDS = ["<pad>", "<eos>", "<bos>", *(f"w{number}" for number in range(3, 24))]
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
# With these weights two to five of seven rows end within 20 tokens.
_SEEDS = {
    "llama": 26,
    "gpt2": 16,
    "qwen2": 20,
    "mistral": 19,
    "gemma": 4,
    "gemma2": 27,
    "gemma3": 1,
    "gpt_neox": 2,
    "phi": 21,
}
FAMILIES = tuple(_SEEDS)
_TOKENS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}


def configs():
    """A config of each family by name."""
    return {
        "llama": LlamaConfig(**_GROUPED, **_TOKENS),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_TOKENS
        ),
        "qwen2": Qwen2Config(**_GROUPED, **_TOKENS),
        "mistral": MistralConfig(**_GROUPED, **_TOKENS, sliding_window=7),
        "gemma": GemmaConfig(**_GROUPED, **_TOKENS, head_dim=8),
        "gemma2": Gemma2Config(
            **_GROUPED, **_TOKENS, head_dim=8, sliding_window=7, tie_word_embeddings=False
        ),
        "gemma3": Gemma3TextConfig(
            **{**_GROUPED, "num_hidden_layers": 3},
            **_TOKENS,
            head_dim=8,
            sliding_window=7,
            sliding_window_pattern=3,
            tie_word_embeddings=False,
        ),
        "gpt_neox": GPTNeoXConfig(**_SMALL, **_TOKENS),
        "phi": PhiConfig(**_SMALL, **_TOKENS),
    }


def make_model(family="llama", **changes):
    """A model with wide random weights, in eval mode on the CPU."""
    config = configs()[family]
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(_SEEDS[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6)
    return model


def make_prompts(lengths, seed=0):
    """Random prompts, as lists of token ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def make_tokenizer(template=None):
    """A tokenizer of words that are numbers."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        chat_template=template,
    )


def ids_of(text):
    """The token ids of a text."""
    return [WORDS.index(word) for word in text.split()]


def batch_of(prompts, side="right", extra=0):
    """A padded batch in Transformers' names."""
    width = max(map(len, prompts)) + extra
    input_ids = torch.full((len(prompts), width), PAD)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        where = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        input_ids[row, where] = torch.tensor(ids)
        attention_mask[row, where] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def cut(row, eos=(EOS,)):
    """A row up to EOS and with it."""
    end = next((i for i, token in enumerate(row) if token in eos), len(row))
    return row[: end + 1]


def stock_tokens(model, prompts, max_new_tokens, eos=(EOS,), **options):
    """New tokens of stock ``generate``, the whole batch at once, padded on the left."""
    model = copy.deepcopy(model)
    batch = batch_of(prompts, side="left")
    width = batch["input_ids"].shape[1]
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    found = model.generate(**batch, **options)
    return [cut(row[width:], eos) for row in found.tolist()]
