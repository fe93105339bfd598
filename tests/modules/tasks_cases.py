"""Tiny models and batches of every task, and runs that the tests of modules share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from lightning_gaudi.modules import TransformersModule

NUM_LABELS = 3
ROWS, TOKENS, VOCAB = 4, 8, 64
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    # Wide enough for predictions to differ.
    "initializer_range": 0.3,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"vocab_size": VOCAB, **SMALL, **NO_DROPOUT}
BART = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "dropout": 0.0,
    "init_std": 0.3,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    **SPECIAL,
}
LLAMA = {"vocab_size": VOCAB, **SMALL, **SPECIAL, "num_key_value_heads": 1}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 40,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "initializer_range": 0.3,
    **SPECIAL,
}
VIT = {**SMALL, **NO_DROPOUT, "image_size": 8, "patch_size": 4}

SINGLE = "single_label_classification"
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: task, model type, config, arguments
    "classes": ("sequence-classification", "bert", BERT, {"num_labels": NUM_LABELS}),
    "classes-of-a-decoder": ("sequence-classification", "gpt2", GPT2, {"num_labels": NUM_LABELS}),
    "multilabel": (
        "sequence-classification",
        "bert",
        BERT,
        {"num_labels": NUM_LABELS, "problem_type": "multi_label_classification"},
    ),
    "number": ("sequence-classification", "distilbert", {}, {"num_labels": 1}),
    "numbers": (
        "sequence-classification",
        "bert",
        BERT,
        {"num_labels": 2, "problem_type": "regression"},
    ),
    "token-classes": ("token-classification", "bert", BERT, {"num_labels": NUM_LABELS}),
    "spans": ("question-answering", "bert", BERT, {}),
    "masked-lm": ("masked-lm", "bert", BERT, {}),
    "llama": ("causal-lm", "llama", LLAMA, {}),
    "gpt2": ("causal-lm", "gpt2", GPT2, {}),
    "t5": ("seq2seq-lm", "t5", T5, {}),
    "bart": ("seq2seq-lm", "bart", BART, {}),
    "images": ("image-classification", "vit", VIT, {"num_labels": NUM_LABELS}),
}
CASES["number"][2].update(
    vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=32, dropout=0.0,
    attention_dropout=0.0, seq_classif_dropout=0.0, initializer_range=0.3,
)  # fmt: skip


def config_of(name: str) -> dict[str, Any]:
    """The model of a case, as a dict."""
    _, model_type, config, _ = CASES[name]
    return {"model_type": model_type, **config}


def make(name: str, **arguments: Any) -> TransformersModule:
    """A module of a case, always with the same weights."""
    task, _, _, own = CASES[name]
    torch.manual_seed(1)
    return TransformersModule(config_of(name), task, **{**own, **arguments})  # type: ignore[arg-type]


def stock_of(module: TransformersModule) -> tf.PreTrainedModel:
    """The same model as the library makes it, on the CPU, in training mode."""
    config = copy.deepcopy(module.model.config)
    config._attn_implementation = None
    stock = type(module.model)(config)
    stock.load_state_dict({k: v.cpu() for k, v in module.model.state_dict().items()})
    return stock.train()


def batches(name: str, count: int = 1, seed: int = 0) -> list[dict[str, Tensor]]:
    """Batches of a case with labels, ragged where there are texts."""
    generator = torch.Generator().manual_seed(seed)
    return [next(_batches(name, generator)) for _ in range(count)]


def _batches(name: str, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    def ints(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    lengths = torch.tensor([TOKENS, 5, 3, 7])[:, None]
    mask = (torch.arange(TOKENS) < lengths).long()
    ids = (ints(VOCAB - 3, ROWS, TOKENS) + 3) * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    of_tokens = torch.where(mask.bool(), ids, -100)
    task = CASES[name][0]
    if name in ("multilabel", "numbers", "number"):
        width = {"multilabel": NUM_LABELS, "numbers": 2, "number": 1}[name]
        labels = torch.rand(ROWS, width, generator=generator)
        batch["labels"] = {"multilabel": labels.round(), "number": labels[:, 0]}.get(name, labels)
    elif task == "token-classification":
        batch["labels"] = torch.where(mask.bool(), ints(NUM_LABELS, ROWS, TOKENS), -100)
    elif task == "question-answering":
        batch["start_positions"] = torch.tensor([1, 0, 1, 99])  # the last is outside
        batch["end_positions"] = torch.tensor([4, 0, 2, 99])
    elif task == "masked-lm":
        batch["labels"] = torch.where(ints(3, ROWS, TOKENS) == 0, of_tokens, -100)
        batch["labels"][0, 0] = ids[0, 0]
    elif task == "causal-lm":
        batch["labels"] = of_tokens
    elif task == "seq2seq-lm":
        batch["labels"] = of_tokens[:, :6].flip(0)
    else:
        batch["labels"] = ints(NUM_LABELS, ROWS)
    if task == "image-classification":
        pixels = torch.randn(ROWS, 3, 8, 8, generator=generator)
        batch = {"pixel_values": pixels, "labels": batch["labels"]}
    yield batch


def to_hpu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch on the device."""
    return {name: value.to("hpu") for name, value in batch.items()}
