"""The config in ``examples/configs``, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modules.generation.models import WORDS, ids_of, make_model, make_tokenizer, stock_tokens

CONFIG = Path(__file__).parents[3] / "examples" / "configs" / "generate.yaml"


@pytest.mark.slow
def test_predict_by_config(tmp_path, run_python):
    model = make_model()
    model.save_pretrained(tmp_path / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    texts = ["w5 w9 w4", "w20 w3 w11 w8 w7", "w6", "w7 " * 20, "w9 w8"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    config = CONFIG.read_text().replace("runs/smollm2", "tiny")
    config = config.replace("examples/configs/prompts.txt", "prompts.txt")
    (tmp_path / "config.yaml").write_text(config)
    arguments = ("predict", "--config", "config.yaml")
    code = "import sys; from lightning_gaudi.cli import main; main(sys.argv[1:])"
    result = run_python(code, args=arguments)
    lines = (tmp_path / "runs" / "generate" / "texts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    expected = stock_tokens(model, [ids_of(text) for text in texts], 24)
    assert [row["token_ids"] for row in rows] == expected
    words = [[WORDS[token] for token in row if token > 2] for row in expected]
    assert [row["text"] for row in rows] == [" ".join(row) for row in words]
    assert "prefill" in result.stdout
