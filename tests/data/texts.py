"""A tokenizer of whole words, and files of texts, made in a moment."""

from __future__ import annotations

import csv
import json

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *[f"w{i}" for i in range(45)]]
NUM_SPECIAL = 2  # of one text


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
