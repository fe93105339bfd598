"""Write the files that the configs in examples/configs/ read.

    python examples/docstring_files.py

They go to runs/docstrings: texts with the module that they come from in train.jsonl, validate.jsonl
and test.jsonl, and the model all-MiniLM-L6-v2 in minilm.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from docstrings import load_docstrings
from sentence_search import find_model

Rows = list[dict[str, str]]

# As in classify.yaml.
MODULES = (
    "asyncio",
    "email",
    "importlib",
    "logging",
    "multiprocessing",
    "turtle",
    "unittest",
    "xml",
)


def split_docstrings(modules: Sequence[str], num_texts: int | None) -> dict[str, Rows]:
    """Docstrings of some modules with the module as label.

    Args:
        modules: Top-level modules of the standard library.
        num_texts: The most docstrings of each module; None for all.

    Returns:
        Rows of ``text`` and ``label`` by split: 70, 10 and 20 % of each module's docstrings, in a
        random order that is the same every time.
    """
    draw = random.Random(0)
    splits: dict[str, Rows] = {"train": [], "validate": [], "test": []}
    found = [(docstring.name.split(".")[0], docstring.text) for docstring in load_docstrings()]
    for name in modules:
        rows = [{"text": text, "label": name} for module, text in found if module == name]
        draw.shuffle(rows)
        rows = rows[:num_texts]
        train, validate = round(0.7 * len(rows)), round(0.8 * len(rows))
        splits["train"] += rows[:train]
        splits["validate"] += rows[train:validate]
        splits["test"] += rows[validate:]
    return splits


def write_rows(rows: Rows, path: Path) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/docstrings"))
    parser.add_argument("--num-texts", type=int, default=100, help="the most of each module")
    given = parser.parse_args()
    if given.num_texts < 10:
        parser.error(f"--num-texts must be 10 or more, but it is {given.num_texts}")

    for split, rows in split_docstrings(MODULES, given.num_texts).items():
        path = given.out / f"{split}.jsonl"
        write_rows(rows, path)
        print(f"{path}: {len(rows)} texts")
    shutil.copytree(find_model(), given.out / "minilm", dirs_exist_ok=True)
    print(f"{given.out / 'minilm'}: the model")


if __name__ == "__main__":
    main()
