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
from pathlib import Path

from docstrings import load_docstrings
from sentence_search import find_model

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


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/docstrings"))
    parser.add_argument("--num-texts", type=int, default=100, help="the most of each module")
    given = parser.parse_args()
    if given.num_texts < 10:
        parser.error(f"--num-texts must be 10 or more, but it is {given.num_texts}")

    given.out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(find_model(), given.out / "minilm", dirs_exist_ok=True)
    draw = random.Random(0)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validate": [], "test": []}
    found = [(doc.name.split(".")[0], doc.text) for doc in load_docstrings()]
    for name in MODULES:
        rows = [{"text": text, "label": name} for module, text in found if module == name]
        rows = draw.sample(rows, min(len(rows), given.num_texts))
        train, validate = round(0.7 * len(rows)), round(0.8 * len(rows))
        splits["train"] += rows[:train]
        splits["validate"] += rows[train:validate]
        splits["test"] += rows[validate:]
    for split, rows in splits.items():
        path = given.out / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        print(f"{path}: {len(rows)} texts")
    print(f"{given.out / 'minilm'}: the model")


if __name__ == "__main__":
    main()
