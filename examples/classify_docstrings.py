"""Fine-tune MiniLM to tell which module of the standard library a docstring comes from.

    LIGHTNING_GAUDI_EMULATOR=1 python examples/classify_docstrings.py

Trains with `GaudiStrategy`, validates every epoch and tests with graph replay, draws the confusion
matrix, classifies a few sentences and writes the model as Transformers loads it. Beside it stands a
logistic regression on the embeddings of the model as it was. On a Gaudi machine:
``lightning-gaudi run examples/classify_docstrings.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning as L
import numpy as np
import torch
from docstring_files import Rows, split_docstrings, write_rows
from docstrings import load_docstrings
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sentence_search import find_model
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import confusion_matrix

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.callbacks import PredictionOrder
from lightning_gaudi.data import TextDataModule
from lightning_gaudi.modules import TransformersModule

MAX_LENGTH = 96  # tokens; most docstrings say what they are about at their start
FEWEST_TEXTS = 10  # of a module: 7 to train, 1 to validate, 2 to test
SENTENCES = (
    "Open a connection to a server and send a GET request.",
    "Return the number of significant digits after rounding.",
    "Move the pen forward by the given distance.",
    "Format the record and write it to the stream.",
    "Wait until the coroutine is done or the timeout expires.",
)


def find_modules(number: int) -> list[str]:
    """The modules of the standard library with most docstrings, sorted.

    There may be fewer than ``number`` that have enough to be split.
    """
    counts = Counter(docstring.name.split(".")[0] for docstring in load_docstrings())
    return sorted(name for name, count in counts.most_common(number) if count >= FEWEST_TEXTS)


def make_trainer(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A Trainer on one HPU."""
    return L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        callbacks=callbacks,
        logger=CSVLogger(folder, name="logs"),
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        **options,
    )


def score_of_embeddings(paths: dict[str, Path], splits: dict[str, Rows], folder: Path) -> float:
    """Test accuracy of logistic regression on frozen MiniLM embeddings.

    Its regularization is chosen by cross-validation on the training rows.
    """
    encoder = TransformersModule(str(find_model()), task="feature-extraction", normalize=True)
    embeddings = {}
    for split in ("train", "test"):
        data = TextDataModule(
            str(find_model()), predict=paths[split], label_column=None, max_length=MAX_LENGTH
        )
        trainer = make_trainer(folder, [HPUGraphCallback(), PredictionOrder()])
        rows = trainer.predict(encoder, data) or []
        embeddings[split] = torch.stack([row["embeddings"] for row in rows]).numpy()
    labels = {split: [row["label"] for row in splits[split]] for split in ("train", "test")}
    regression = LogisticRegressionCV(
        Cs=[0.3, 1, 3, 10, 30, 100],
        cv=4,
        scoring="accuracy",
        max_iter=2000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    regression.fit(embeddings["train"], labels["train"])
    return float(regression.score(embeddings["test"], labels["test"]))


def draw_confusion(true: list[int], predicted: list[int], names: list[str], path: Path) -> None:
    """Write the confusion matrix as a PNG; a row for each module, its docstrings as fractions."""
    counts = confusion_matrix(true, predicted, labels=range(len(names)))
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted module", ylabel="module of the docstring")
    for row, column in np.argwhere(counts):
        shade = "white" if fractions[row, column] > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade)
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} test docstrings are right")
    figure.colorbar(image, label="fraction of the module's docstrings", shrink=0.8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Parse the command line, train, evaluate, compare and predict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-modules", type=int, default=12, help="labels to tell apart")
    parser.add_argument("--num-texts", type=int, help="the most docstrings of a module")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--no-graphs", action="store_true", help="evaluate without graph replay")
    parser.add_argument(
        "--check", action="store_true", help="fail unless it beats logistic regression"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/classify_docstrings"))
    given = parser.parse_args()
    least = {"num_modules": 2, "num_texts": FEWEST_TEXTS, "epochs": 1, "batch_size": 1}
    for name, fewest in least.items():
        value = getattr(given, name)
        if value is not None and value < fewest:
            parser.error(f"--{name.replace('_', '-')} must be {fewest} or more, but it is {value}")
    names = find_modules(given.num_modules)
    if len(names) < given.num_modules:
        parser.error(
            f"--num-modules is {given.num_modules}, but only {len(names)} modules have "
            f"{FEWEST_TEXTS} docstrings or more"
        )

    L.seed_everything(0, verbose=False)
    console = Console()
    splits = split_docstrings(names, given.num_texts)
    paths = {name: given.out / "data" / f"{name}.jsonl" for name in [*splits, "predict"]}
    for name, rows in [*splits.items(), ("predict", [{"text": text} for text in SENTENCES])]:
        write_rows(rows, paths[name])
    sizes = ", ".join(f"{len(rows)} to {split}" for split, rows in splits.items())
    console.print(f"Docstrings of {len(names)} modules: {sizes}.")

    baseline = score_of_embeddings(paths, splits, given.out)

    data = TextDataModule(
        str(find_model()), **paths, max_length=MAX_LENGTH, batch_size=given.batch_size
    )
    module = TransformersModule(
        str(find_model()),
        label_names=names,
        learning_rate=given.learning_rate,
        warmup_steps=0.1,
        tokenizer=str(find_model()),
    )
    graphs = [] if given.no_graphs else [HPUGraphCallback()]
    trainer = make_trainer(given.out, [*graphs, PredictionOrder()], max_epochs=given.epochs)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    (scores,) = trainer.test(module, data, verbose=False)

    tested = TextDataModule(
        str(find_model()), predict=paths["test"], label_names=names, max_length=MAX_LENGTH
    )
    predicted = [int(row["labels"]) for row in trainer.predict(module, tested) or []]
    true = [names.index(row["label"]) for row in splits["test"]]
    draw_confusion(true, predicted, names, given.out / "confusion.png")

    table = Table(title="Accuracy on held-out docstrings")
    table.add_column("what")
    table.add_column("accuracy", justify="right")
    table.add_row("logistic regression on frozen MiniLM embeddings", f"{baseline:.3f}")
    table.add_row(
        f"MiniLM fine-tuned in {seconds:.0f} s, epochs: {given.epochs}",
        f"{scores['test/accuracy']:.3f}",
    )
    console.print(table)

    for text, row in zip(SENTENCES, trainer.predict(module, data) or [], strict=True):
        probability, label = row["probabilities"].max(-1)
        console.print(
            f"  {probability.item():.2f}  {names[int(label)]:16} {text}",
            highlight=False,
            soft_wrap=True,
        )
    module.save_pretrained(given.out / "model")
    console.print(
        f"Confusion matrix: {given.out / 'confusion.png'}\nCurves: {trainer.log_dir}\n"
        f"Model: {given.out / 'model'}",
        soft_wrap=True,
    )
    if given.check and scores["test/accuracy"] <= baseline:
        sys.exit("Fine-tuning did not beat logistic regression.")


if __name__ == "__main__":
    main()
