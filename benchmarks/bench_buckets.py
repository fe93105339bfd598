"""What buckets save: captures and padding of a prediction over texts of many lengths.

    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_buckets.py --help

The texts are the docstrings of Python's standard library, tokenized for the real MiniLM. A tiny
BERT reads them, since captures and padding do not depend on the model's size; the seconds do, and
are the CPU's. The three ways must give the same embeddings. Captures are what
`HPUGraphCallback` counted, padding is counted in the batches that the model was given.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_buckets.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures prediction on the emulated HPU in lazy mode. Run it as: {USAGE}")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import lightning as L
import torch
from docstrings import load_docstrings
from encoders import tiny_bert
from measure import Row, report
from sentence_search import find_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.data import BucketBatchSampler, BucketCollator, choose_buckets
from lightning_gaudi.data.buckets import padding_fraction

MAX_CAPTURES = 8
MAX_PADDING_PERCENT = 12.0
LARGEST_DIFFERENCE = 1e-5
LONGER = (256, 512)
UNBUCKETED = "batches as they come, padded to their longest text"
LONGEST = "all batches padded to the longest text"
Batch = dict[str, Tensor]


class Result(NamedTuple):
    """One way of making batches.

    Attributes:
        captures: Graphs captured.
        padding_percent: Which part of all tokens was padding.
        seconds: Of the prediction.
        embeddings: Of shape (texts, hidden), in the order of the texts.
    """

    captures: int
    padding_percent: float
    seconds: float
    embeddings: Tensor


class Embedder(L.LightningModule):
    """Mean-pooled hidden states; counts the tokens it is given."""

    hpu_graph_targets = ("encoder",)

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = 0
        self.real_tokens = 0

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count, while the batch is on the host."""
        self.tokens += batch["attention_mask"].numel()
        self.real_tokens += int(batch["attention_mask"].sum())
        return batch

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Embeddings of shape (rows, hidden), with the rows' numbers."""
        mask = batch["attention_mask"].bool()
        hidden = self.encoder(batch["input_ids"], mask[:, None, None, :])
        kept = hidden * mask[:, :, None]
        return {
            "embedding": kept.sum(1) / mask.sum(1, keepdim=True),
            "index": batch["index"],
        }


def predict(vocab_size: int, loader: DataLoader[Any]) -> Result:
    """Embed all rows through the Trainer, with replay."""
    module = Embedder(tiny_bert(vocab_size))
    graphs = HPUGraphCallback(max_graphs=1000)
    graphs.print_table = lambda: None  # type: ignore[method-assign]
    trainer = L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        callbacks=[graphs],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    batches = trainer.predict(module, loader)
    seconds = time.perf_counter() - start
    assert batches is not None
    embeddings = torch.cat([batch["embedding"] for batch in batches])
    ordered = torch.empty_like(embeddings)
    ordered[torch.cat([batch["index"] for batch in batches])] = embeddings
    padding = 100 * (1 - module.real_tokens / module.tokens)
    return Result(graphs.stats.captures, padding, seconds, ordered)


def run(num_texts: int, batch_size: int, num_buckets: int, max_length: int) -> list[Row]:
    """Predict in all three ways and compare.

    Raises:
        RuntimeError: The ways give different embeddings.
    """
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    texts = [docstring.text for docstring in load_docstrings(num_texts)]
    whole = tokenizer(texts, verbose=False)["input_ids"]
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    rows = [{"input_ids": row, "index": number} for number, row in enumerate(ids)]
    lengths = [len(row) for row in ids]
    pad = tokenizer.pad_token_id
    every_length = BucketCollator(range(1, max(lengths) + 1), pad_token_id=pad)
    one_length = BucketCollator([max(lengths)], pad_token_id=pad)
    buckets = choose_buckets(lengths, num_buckets)
    sampler = BucketBatchSampler(lengths, buckets, batch_size)
    collator = BucketCollator(buckets, pad_token_id=pad)
    results = {
        UNBUCKETED: predict(len(tokenizer), DataLoader(rows, batch_size, collate_fn=every_length)),  # type: ignore[arg-type]
        LONGEST: predict(len(tokenizer), DataLoader(rows, batch_size, collate_fn=one_length)),  # type: ignore[arg-type]
        "": predict(len(tokenizer), DataLoader(rows, batch_sampler=sampler, collate_fn=collator)),  # type: ignore[arg-type]
    }
    bucketed = results.pop("")
    for name, other in results.items():
        difference = (other.embeddings - bucketed.embeddings).abs().max().item()
        if difference > LARGEST_DIFFERENCE:
            raise RuntimeError(f"{name}: embeddings differ by {difference} from the bucketed ones.")
    subject = f"{num_texts} texts of up to {max_length} tokens, {len(buckets)} buckets"
    report_rows = [
        Row(
            what=f"captures: {subject}",
            against="",
            measured=bucketed.captures,
            unit="",
            target=MAX_CAPTURES,
            detail="; ".join(f"{name}: {r.captures}" for name, r in results.items()),
        ),
        Row(
            what="padding",
            against="",
            measured=bucketed.padding_percent,
            unit="% of tokens",
            target=MAX_PADDING_PERCENT,
            detail="; ".join(f"{name}: {r.padding_percent:.1f} %" for name, r in results.items()),
        ),
    ]
    for longer in LONGER:
        cut = [min(len(row), longer) for row in whole]
        least = padding_fraction(cut, choose_buckets(cut, num_buckets))
        report_rows.append(
            Row(
                what=f"padding with texts of up to {longer} tokens, forecast",
                against="",
                measured=100 * least,
                unit="% of tokens",
                detail=f"no other {num_buckets} sizes pad less",
            )
        )
    for name, other in results.items():
        report_rows.append(
            Row(
                what="texts per second, captures included",
                against=name,
                measured=other.seconds / bucketed.seconds,
                unit="times as fast",
                better="higher",
                detail=f"{num_texts / bucketed.seconds:.0f} and {num_texts / other.seconds:.0f}",
            )
        )
    return report_rows


def main() -> None:
    """Parse the command line, predict in three ways and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-texts", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-buckets", type=int, default=MAX_CAPTURES)
    parser.add_argument("--max-length", type=int, default=128, help="tokens a text is cut to")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(given.num_texts, given.batch_size, given.num_buckets, given.max_length)
    if not report("Static shapes by buckets", rows, given.json):
        sys.exit(1)


if __name__ == "__main__":
    main()
