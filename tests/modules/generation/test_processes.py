"""In processes of their own: the config in ``examples/configs``, and compile mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modules.generation.models import WORDS, ids_of, make_model, make_tokenizer, stock_tokens

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
