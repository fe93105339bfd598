"""``lightning-gaudi plan DATA``: which buckets to use, and what they will cost."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_gaudi.cli.command import Command
from lightning_gaudi.cli.parser import Parser
from lightning_gaudi.errors import ConfigurationError

# `lightning_gaudi.data.plan.DEFAULT_MAX_PADDING`; a test compares them. Written here once more,
# since importing that module imports Lightning, which help need not wait for.
DEFAULT_MAX_PADDING = 0.12


def add_plan_arguments(parser: Parser) -> None:
    """Add the options of ``plan``."""
    parser.add_argument("data", metavar="DATA", help="a .jsonl, .csv or .txt file")
    parser.add_argument("--tokenizer", required=True, help="folder of a Transformers tokenizer")
    parser.add_argument("--batch-size", type=int, required=True, help="rows in a batch of a card")
    parser.add_argument("--text-column", default="text", help="column with the text")
    parser.add_argument("--text-pair-column", help="column with the second text of a pair")
    parser.add_argument(
        "--max-length",
        type=int,
        help="tokens that a text is cut to (default: the tokenizer's own limit)",
    )
    parser.add_argument("--max-buckets", type=int, default=32, help="the most buckets to consider")
    parser.add_argument(
        "--max-padding",
        type=float,
        default=DEFAULT_MAX_PADDING,
        help="part of all tokens that may be padding, 0 to 1; the fewest such buckets are "
        "recommended (default: %(default)s)",
    )
    parser.add_argument(
        "--multiple-of", type=int, default=1, help="what each bucket must be a multiple of"
    )
    parser.add_argument("--plot", metavar="PNG", type=Path, help="write a plot there")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the forecasts there")


def run_plan_command(given: argparse.Namespace, parser: Parser) -> None:
    """Read the data, print the forecasts and what to use.

    Args:
        given: The options.
        parser: Ends the process where an option or the data cannot be used.
    """
    from lightning_gaudi.cli.plan_report import run_plan

    try:
        run_plan(given)
    except (ConfigurationError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


PLAN = Command(
    name="plan",
    group="look ahead",
    summary="recommend buckets for a text data set, and forecast captures, padding and memory",
    description=(
        "Read the texts of a data set and say, for every number of buckets, how many graphs would "
        "be captured, how much of the work would be padding, and what the graphs' inputs would "
        "take. Needs no card and no model."
    ),
    examples=("lightning-gaudi plan texts.jsonl --tokenizer my-tokenizer --batch-size 32",),
    add_arguments=add_plan_arguments,
    run=run_plan_command,
    needs_package=True,
)
