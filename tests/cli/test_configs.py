"""The configs in examples/configs through ``lightning-gaudi``, with a tiny model for theirs.

Fit, test and predict; what is predicted is what stock Transformers predicts for the same texts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import yaml

from lightning_gaudi.cli import main
from lightning_gaudi.modules import TransformersModule

CONFIGS = Path(__file__).parent.parent.parent / "examples" / "configs"
NAMES = ["asyncio", "email", "importlib", "logging", "multiprocessing", "turtle", "unittest", "xml"]
WORDS = ["read", "write", "a", "file", "of", "text", "to", "the", "turtle", "loop", *NAMES]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TINY = {
    "model_type": "bert",
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
    )
] + [pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # LightningCLI and jsonargparse


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the configs read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    data = tmp_path / "runs" / "docstrings"
    data.mkdir(parents=True)
    (data / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    )
    tokenizer = tf.BertTokenizer(str(data / "vocab.txt"))
    tokenizer.save_pretrained(data / "minilm")
    torch.manual_seed(2)
    config = {name: value for name, value in TINY.items() if name != "model_type"}
    tf.BertModel(tf.BertConfig(**config)).save_pretrained(data / "minilm")
    draw = np.random.default_rng(0)
    for split, count in (("train", 40), ("validate", 11), ("test", 13)):
        rows = []
        for i in range(count):
            words = draw.choice(WORDS[:10], size=draw.integers(1, 8)).tolist()
            name = NAMES[i % len(NAMES)]
            rows.append(json.dumps({"text": " ".join([*words, name]), "label": name}))
        (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def stock_inputs(folder: Path) -> dict[str, torch.Tensor]:
    """The texts that are predicted, as the library's tokenizer gives them."""
    lines = (folder / "runs/docstrings/test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = tf.AutoTokenizer.from_pretrained(folder / "runs/docstrings/minilm")
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def run(command: str, config: str, *options: str) -> None:
    main(
        [
            command,
            "--config",
            str(CONFIGS / config),
            "--trainer.enable_progress_bar=false",
            *options,
        ]
    )


def test_classify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "classify.yaml", "--model.init_args.learning_rate=0.02")
    best = folder / "runs/classify/checkpoints/best.ckpt"
    run("test", "classify.yaml", "--ckpt_path", str(best))
    run("predict", "classify.yaml", "--ckpt_path", str(best))
    text = capsys.readouterr().out
    assert "test/accuracy" in text
    assert "HPU graphs" in text

    module = TransformersModule.load_from_checkpoint(best)
    assert module.label_names == NAMES
    module.save_pretrained(folder / "export")
    stock = tf.AutoModelForSequenceClassification.from_pretrained(folder / "export").eval()
    with torch.no_grad():
        logits = stock(**stock_inputs(folder)).logits
    lines = (folder / "runs/classify/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["row"] for row in rows] == list(range(13))
    found = torch.tensor([row["probabilities"] for row in rows])
    torch.testing.assert_close(found, logits.softmax(-1), **CLOSE)
    assert [row["label"] for row in rows] == [
        stock.config.id2label[i] for i in logits.argmax(-1).tolist()
    ]


def test_embed(folder: Path) -> None:
    run("predict", "embed.yaml")
    stock = tf.AutoModel.from_pretrained(folder / "runs/docstrings/minilm").eval()
    inputs = stock_inputs(folder)
    with torch.no_grad():
        hidden = stock(**inputs).last_hidden_state
    weights = inputs["attention_mask"][:, :, None].float()
    expected = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    with np.load(folder / "runs/embed/embeddings.npz") as found:
        torch.testing.assert_close(torch.from_numpy(found["embeddings"]), expected, **CLOSE)
        assert found["row"].tolist() == list(range(13))


def test_a_model_from_its_config_alone(folder: Path) -> None:
    """Nothing to load: ``model`` is the config, as a dict. A second run replaces config.yaml."""
    config: dict[str, Any] = {
        "seed_everything": 0,
        "trainer": {
            "max_epochs": 1,
            "logger": False,
            "devices": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "lightning_gaudi.HPUGraphCallback"}],
        },
        "model": {
            "class_path": "lightning_gaudi.modules.TransformersModule",
            "init_args": {"model": TINY, "label_names": NAMES, "warmup_steps": 2},
        },
        "data": {
            "class_path": "lightning_gaudi.data.TextDataModule",
            "init_args": {
                "tokenizer": "runs/docstrings/minilm",
                "train": "runs/docstrings/train.jsonl",
                "validate": "runs/docstrings/validate.jsonl",
                "batch_size": 4,
            },
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "tiny.yaml"])
    main(["validate", "--config", "tiny.yaml"])


def test_a_wrong_task_is_told_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("predict", "embed.yaml", "--model.init_args.task=embed")
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "feature-extraction" in said
    assert "embed" in said


@pytest.mark.slow
@pytest.mark.parametrize("config", ["classify.yaml", "embed.yaml"])
def test_short_names_in_a_process_that_has_imported_nothing(folder: Path, config: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "lightning_gaudi.cli", "predict"]
    command += ["--config", str(CONFIGS / config), "--print_config"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    for name in ("modules.TransformersModule", "data.TextDataModule", "HPUGraphCallback"):
        assert f"class_path: lightning_gaudi.{name}" in result.stdout
