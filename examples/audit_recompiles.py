"""See why a fine-tuning run compiles hundreds of graphs, and what a few changes do about it.

    LIGHTNING_GAUDI_EMULATOR=1 python examples/audit_recompiles.py

A small BERT learns to tell which module of the standard library a docstring comes from, twice from
the same weights. First the usual way: batches padded to their longest row, a smaller last batch,
``loss.item()`` in every step, stock attention masks. Then with buckets, batches of one size, losses
left on the device, and masks built there. `CompileMonitor` writes a report of each, with the lines
that caused compilations and host reads. No card is needed. On a Gaudi machine, where the monitor
counts but names no lines: ``lightning-gaudi run examples/audit_recompiles.py``.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning as L
import torch
from docstrings import load_docstrings
from rich.console import Console
from rich.table import Table
from sentence_search import find_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from lightning_gaudi import CompileMonitor, GaudiStrategy
from lightning_gaudi.callbacks.monitor.figure import png_of
from lightning_gaudi.data import BucketBatchSampler, BucketCollator, choose_buckets
from lightning_gaudi.modules.attention import build_masks_on_device

torch.set_num_threads(1)  # for tensors this small threads only wait for each other

MAX_LENGTH = 160  # tokens
NUM_MODULES = 8
Row = dict[str, Any]
Batch = dict[str, Tensor]

# Lightning's, about its own dependencies and about loading in this process. Ours are to be seen.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")


class Naive(L.LightningModule):
    """Fine-tuning as one writes it without thinking of graphs.

    Args:
        model: A Transformers classifier.
    """

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, read on the host for a list."""
        loss: Tensor = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as for fine-tuning."""
        return torch.optim.AdamW(self.parameters(), lr=5e-4)


class Bucketed(Naive):
    """The same without host reads: losses stay on the device until the run has ended."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__(model)
        build_masks_on_device(model)
        self._losses: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = self.model(**batch).loss
        self._losses.append(loss.detach())
        return loss

    def on_train_end(self) -> None:
        """Read all losses at once."""
        self.losses = torch.stack(self._losses).tolist()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is compared.

    Attributes:
        name: For people and folders.
        facts: The monitor's.
        losses: Of every step.
        padding: The share of tokens that are padding.
        seconds: How long the fit took, on this machine's CPU where there is no card.
    """

    name: str
    facts: dict[str, Any]
    losses: list[float]
    padding: float
    seconds: float


def make_rows(tokenizer: Any, num_texts: int) -> list[Row]:
    """Tokens and module of docstrings from the modules that have most, in a fixed mixed order."""
    found = [(doc.name.split(".")[0], doc.text) for doc in load_docstrings()]
    names = [name for name, _ in Counter(name for name, _ in found).most_common(NUM_MODULES)]
    texts = [(name, text) for name, text in found if name in names]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [texts[place] for place in order[:num_texts]]
    tokens = tokenizer([text for _, text in chosen], truncation=True, max_length=MAX_LENGTH)
    return [
        {"input_ids": ids, "labels": names.index(name)}
        for ids, (name, _) in zip(tokens["input_ids"], chosen, strict=True)
    ]


def pad_to_longest(pad_token_id: int) -> Callable[[list[Row]], Batch]:
    """What most tokenizers' collators do: each batch has its own length."""

    def collate(rows: list[Row]) -> Batch:
        longest = max(len(row["input_ids"]) for row in rows)
        return BucketCollator([longest], pad_token_id=pad_token_id)(rows)

    return collate


def naive_data(rows: list[Row], batch_size: int, pad_token_id: int) -> Iterable[Batch]:
    """Random batches of any length; the last one is smaller."""
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=True,
        collate_fn=pad_to_longest(pad_token_id),
        generator=torch.Generator().manual_seed(1),
    )


def bucketed_data(
    rows: list[Row], batch_size: int, pad_token_id: int, num_buckets: int
) -> Iterable[Batch]:
    """Random batches of a few lengths, all of one size."""
    lengths = [len(row["input_ids"]) for row in rows]
    buckets = choose_buckets(lengths, num_buckets)
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=BucketBatchSampler(lengths, buckets, batch_size, shuffle=True, seed=1),
        collate_fn=BucketCollator(buckets, pad_token_id=pad_token_id),
    )


def fit(name: str, cls: type[Naive], data: Iterable[Batch], epochs: int, folder: Path) -> Run:
    """Train from the same weights as every other run, under a monitor of its own."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=MAX_LENGTH,
        num_labels=NUM_MODULES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    module = cls(BertForSequenceClassification(config))
    monitor = CompileMonitor(dirpath=folder / name, host_reads=True)
    masks = [batch["attention_mask"] for batch in data]  # of one epoch
    padding = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    trainer = L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        max_epochs=epochs,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    started = time.perf_counter()
    trainer.fit(module, data)
    return Run(
        name=name,
        facts=monitor.facts,
        losses=module.losses,
        padding=padding,
        seconds=time.perf_counter() - started,
    )


def mean(values: list[float]) -> float:
    """The mean of some losses."""
    return sum(values) / len(values)


def print_comparison(console: Console, runs: list[Run]) -> None:
    """What each run did, side by side."""
    table = Table(title="The same fine-tuning, twice")
    table.add_column("what")
    for run in runs:
        table.add_column(run.name, justify="right")
    late = [run.facts["after_warmup"] for run in runs]
    total = [run.facts["total"] for run in runs]
    rows: dict[str, list[str]] = {
        "training steps": [str(len(run.losses)) for run in runs],
        "padding": [f"{run.padding:.0%}" for run in runs],
        "compilations": [str(counts["compilations"]) for counts in total],
        "compilations after the warm-up": [str(counts["compilations"]) for counts in late],
        "host reads after the warm-up": [str(counts["host_reads"]) for counts in late],
        "loss, first 20 steps": [f"{mean(run.losses[:20]):.3f}" for run in runs],
        "loss, last 20 steps": [f"{mean(run.losses[-20:]):.3f}" for run in runs],
        "seconds": [f"{run.seconds:.1f}" for run in runs],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


def write_comparison(folder: Path, runs: list[Run]) -> None:
    """Both timelines as one picture, and a page with both reports side by side."""
    (folder / "timelines.png").write_bytes(png_of([(run.name, run.facts) for run in runs]))
    frames = "".join(
        f'<iframe src="{run.name}/compile_monitor.html" title="{run.name}"></iframe>'
        for run in runs
    )
    (folder / "index.html").write_text(
        "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Audit</title>"
        "<style>body{margin:0;display:flex}iframe{border:0;width:50%;height:100vh}"
        f"iframe+iframe{{border-left:1px solid #ccc}}</style>{frames}</html>"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--num-texts", type=int, default=1601, help="docstrings to train on")
    parser.add_argument("--batch-size", type=int, default=8, help="docstrings in a batch")
    parser.add_argument("--buckets", type=int, default=4, help="text lengths, one graph each")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the docstrings")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/audit"), help="folder for the reports"
    )
    arguments = parser.parse_args()
    for name in ("num_texts", "batch_size", "buckets", "epochs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return arguments


def main() -> None:
    """Train twice, compare."""
    arguments = parse_arguments()
    console = Console()
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    rows = make_rows(tokenizer, arguments.num_texts)
    pad, size = tokenizer.pad_token_id, arguments.batch_size
    folder = arguments.output
    runs = [
        fit("naive", Naive, naive_data(rows, size, pad), arguments.epochs, folder),
        fit(
            "bucketed",
            Bucketed,
            bucketed_data(rows, size, pad, arguments.buckets),
            arguments.epochs,
            folder,
        ),
    ]
    print_comparison(console, runs)
    write_comparison(folder, runs)
    console.print(
        f"Both reports: {folder / 'index.html'}, both timelines: timelines.png beside it."
    )


if __name__ == "__main__":
    main()
