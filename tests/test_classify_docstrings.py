"""The example that classifies docstrings, run small: its files, figures and predictions."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn  # noqa: F401  (it sets environment variables: before a test, not in one)
import torch
import transformers as tf
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ["asyncio", "distutils", "tkinter"]  # those with most docstrings
SMALL = ("--num-modules", "3", "--num-texts", "12", "--epochs", "1", "--batch-size", "8")
MAX_LENGTH = 96


def stock_predictions(folder: Path, texts: list[str]) -> torch.Tensor:
    """Probabilities by the exported model, as stock Transformers gives them, text by text."""
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    assert model.config.id2label == dict(enumerate(NAMES))
    tokenizer = tf.AutoTokenizer.from_pretrained(folder / "model")
    rows = []
    with torch.no_grad():
        for text in texts:
            given = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            rows.append(model(**given).logits[0].softmax(-1))
    return torch.stack(rows)


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_the_example_runs_small(tmp_path: Path) -> None:
    script = str(EXAMPLES / "classify_docstrings.py")
    result = subprocess.run(
        [sys.executable, script, *SMALL, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    output = result.stdout
    assert "Docstrings of 3 modules: 24 to train, 6 to validate, 6 to test." in output
    splits = {name: rows_of(tmp_path / "data" / f"{name}.jsonl") for name in ("train", "test")}
    assert [len(splits[name]) for name in ("train", "test")] == [24, 6]
    assert not {row["text"] for row in splits["train"]} & {row["text"] for row in splits["test"]}

    # The figures of the table and of the log are those of the exported model.
    found = stock_predictions(tmp_path, [row["text"] for row in splits["test"]]).argmax(-1)
    wanted = torch.tensor([NAMES.index(row["label"]) for row in splits["test"]])
    accuracy = (found == wanted).float().mean().item()
    baseline, tuned = re.findall(r"│ (?:logistic|MiniLM fine).*?│ +(\d\.\d+) │", output)
    assert tuned == f"{accuracy:.3f}"
    assert 0.5 < float(baseline) <= 1
    logs = tmp_path.glob("logs/version_*/metrics.csv")
    with max(logs, key=lambda path: int(path.parent.name[8:])).open() as file:
        lines = list(csv.DictReader(file))
    assert len([line for line in lines if line["val/accuracy"]]) == 1
    (tested,) = (line["test/accuracy"] for line in lines if line["test/accuracy"])
    assert float(tested) == pytest.approx(accuracy)

    # Two predictions of embeddings; then validation, test and two predictions of one callback.
    captures = [int(number) for number in re.findall(r"│ model +│ +(\d+) │", output)]
    assert len(captures) == 6
    assert min(captures[:2]) > 0
    assert sorted(set(captures[2:])) == captures[2:]  # in each of the stages

    sentences = [row["text"] for row in rows_of(tmp_path / "data" / "predict.jsonl")]
    expected = stock_predictions(tmp_path, sentences)
    printed = re.findall(r"^  (\d\.\d\d)  (\w+) +(.+)$", output, flags=re.MULTILINE)
    assert [text for _, _, text in printed] == sentences
    assert [name for _, name, _ in printed] == [NAMES[i] for i in expected.argmax(-1).tolist()]
    for (probability, _, _), row in zip(printed, expected, strict=True):
        assert float(probability) == pytest.approx(row.max().item(), abs=0.0051)

    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (960, 840)
        picture.load()
        assert len(picture.convert("L").getcolors()) > 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--num-modules", "1"), "--num-modules must be 2 or more, but it is 1"),
        (("--num-texts", "9"), "--num-texts must be 10 or more, but it is 9"),
        (("--epochs", "0"), "--epochs must be 1 or more, but it is 0"),
        (("--batch-size", "-2"), "--batch-size must be 1 or more, but it is -2"),
        (("--num-modules", "9999"), "--num-modules is 9999, but only "),
        (("--epochs", "two"), "argument --epochs: invalid int value: 'two'"),
    ],
    ids=["one-module", "few-texts", "no-epoch", "batch-size", "many-modules", "no-number"],
)
def test_what_the_example_refuses(
    given: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from classify_docstrings import main

    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["classify_docstrings.py", *given, "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
