"""In processes of their own: the config in ``examples/configs``, two cards, compile mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from modules.generation.models import (
    WORDS,
    batch_of,
    ids_of,
    make_model,
    make_prompts,
    make_tokenizer,
    stock_tokens,
)

from lightning_gaudi.modules.generation import TextGenerationModule

TESTS = Path(__file__).parents[2]
CONFIG = TESTS.parent / "examples" / "configs" / "generate.yaml"


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


# Lightning starts this script once more for the second rank.
TWO_CARDS = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import lightning as L
from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.callbacks import PredictionOrder
from lightning_gaudi.data import TextDataModule
from lightning_gaudi.modules.generation import TextGenerationModule
from modules.generation.models import make_model, make_tokenizer

found = {}
for name, options in {"greedy": {}, "sampled": {"do_sample": True}}.items():
    data = TextDataModule(
        make_tokenizer(), predict=f"{sys.argv[1]}/prompts.txt", objective="causal-lm",
        label_column=None, num_buckets=3, batch_size=3,
    )
    run = L.Trainer(
        accelerator="hpu", strategy=GaudiStrategy(), devices=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[HPUGraphCallback(), PredictionOrder()],
    )
    rows = run.predict(TextGenerationModule(make_model(), max_new_tokens=8, **options), data)
    found[name] = [row["token_ids"] for row in rows]
with open(f"{sys.argv[1]}/rank{os.environ.get('LOCAL_RANK', 0)}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_two_cards(tmp_path):
    """Ragged prompts in three buckets: each once and in order, sampled ones as on one device."""
    model, prompts = make_model(), make_prompts((5, 12, 3, 9, 7, 11, 2, 1, 14, 6, 1))
    texts = [" ".join(WORDS[token] for token in prompt) for prompt in prompts]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    script = tmp_path / "two_cards.py"
    script.write_text(TWO_CARDS)
    environment = os.environ | {
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}",
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    sampling = TextGenerationModule(model, max_new_tokens=8, do_sample=True)
    expected = {
        "greedy": stock_tokens(model, prompts, 8),
        "sampled": sampling.predict_step(batch_of(prompts))["token_ids"],
    }
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_compiled_once_each_where_there_are_no_graphs(mode, run_python):
    """Also a counter of calls inside a target must not make each call another one."""
    code = f"""
        import sys
        sys.path.insert(0, {str(TESTS)!r})
        import warnings
        import torch
        from modules.generation.models import batch_of, make_model, make_prompts, stock_tokens
        from modules.generation.runs import rows_of, trainer
        from lightning_gaudi import GaudiStrategy, HPUGraphCallback
        from lightning_gaudi.modules.generation import TextGenerationModule
        model, prompts = make_model("mistral"), make_prompts((5, 12, 3, 9))
        expected = stock_tokens(model, prompts, 4)
        module = TextGenerationModule(model, max_new_tokens=4, buckets=[16])
        graphs = HPUGraphCallback()
        loader = torch.utils.data.DataLoader([batch_of(prompts)] * 2, batch_size=None)
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*many workers.*")
        found = trainer(graphs, strategy=GaudiStrategy(mode={mode!r})).predict(module, loader)
        assert rows_of(found) == expected * 2
        print("counts", graphs.stats.captures, graphs.stats.replays, graphs.stats.eager_calls)
    """
    assert "counts 2 6 0" in run_python(code, PT_HPU_LAZY_MODE="0").stdout
