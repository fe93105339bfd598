"""A tokenizer of whole words, files of texts and a tiny classifier, made in a moment."""

from __future__ import annotations

import csv
import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from lightning_gaudi.modules import TransformersModule

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *[f"w{i}" for i in range(45)]]
NUM_SPECIAL = 2  # of one text
SIZES = {"num_buckets": 3, "batch_size": 4}


def word_tokenizer(**options):
    """BERT's manner: [CLS] a [SEP], and [CLS] a [SEP] b [SEP] with token types."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    options = {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "unk_token": "[UNK]",
        "model_max_length": 64,
        **options,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **options,
    )


def plain_tokenizer(**options):
    """GPT's manner: no special tokens around a text."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"pad_token": "[PAD]", "eos_token": "[SEP]", "unk_token": "[UNK]", **options}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **options
    )


def text(number, start=0):
    """A text of so many words."""
    return " ".join(f"w{(start + i) % 45}" for i in range(number))


def write(path, rows):
    """Write rows as the path's suffix says; return the path."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(row["text"] + "\n" for row in rows))
    return path


def labelled_rows():
    """Texts of two classes, in no multiple of a batch."""
    lengths = [3, 9, 4, 5, 8, 2, 9, 20, 1, 12, 7]
    return [{"text": text(n, i), "label": i % 3 // 2} for i, n in enumerate(lengths)]


def classifier():
    """A tiny BERT in our module."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return TransformersModule(BertForSequenceClassification(config))
