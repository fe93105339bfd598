"""``lightning-gaudi selftest``: the contract, on whatever HPU there is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from lightning_gaudi.cli.command import Command, add_mode
from lightning_gaudi.cli.parser import Parser

_DEFAULT_FILE = "selftest.json"


def _add_arguments(parser: Parser) -> None:
    add_mode(parser)
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(_DEFAULT_FILE),
        metavar="FILE",
        help="where the report goes (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="the most important checks only")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these checks only; see --list"
    )
    parser.add_argument("--list", action="store_true", help="list the checks, and run none")
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="a process for each check that captures a graph, as on a card, also when emulated",
    )


def _run(given: argparse.Namespace, parser: Parser) -> int:
    # Here, since help needs none of it.
    from rich.console import Console

    from lightning_gaudi.doctor.checks import check_all
    from lightning_gaudi.runtime.facts import gather_facts
    from lightning_gaudi.selftest import report as reports
    from lightning_gaudi.selftest.catalogue import CATALOGUE
    from lightning_gaudi.selftest.runner import choose, run_checks

    if given.list:
        for check in CATALOGUE:
            kind = "question" if check.is_question else "check"
            print(f"{check.name:<40} {kind:<9} {check.title}")
        return 0
    unknown = sorted(set(given.only) - {check.name for check in CATALOGUE})
    if unknown:
        parser.error(f"argument --only: there is no check {unknown[0]!r}; see --list")
    if not given.json.absolute().parent.is_dir():
        parser.error(f"argument --json: there is no folder {str(given.json.absolute().parent)!r}")
    mode: Literal["lazy", "eager"] = given.mode or "lazy"
    console = Console(highlight=False)
    facts = gather_facts(load=False)
    where = "the emulated HPU" if facts.is_emulator_requested else "this machine's HPU"
    console.print(f"Selftest on {where}, {mode} mode.\n")
    results = run_checks(
        choose(mode=mode, quick=given.quick, names=given.only),
        mode=mode,
        isolates=given.isolate or not facts.is_emulator_requested,
        on_result=lambda result: reports.print_result(console, result),
    )
    report = reports.make_report(facts, check_all(facts, mode), results, mode=mode)
    reports.write_report(report, given.json)
    reports.print_end(console, report, given.json)
    return 0 if report["has_passed"] else 1


SELFTEST = Command(
    name="selftest",
    group="check",
    summary="run the contract on whatever HPU there is; write a report to send back",
    description=(
        "Run what this package promises on the HPU that there is, in minutes, and write one JSON\n"
        "report: each check with its figures, each question that only a card can answer, and what\n"
        "doctor finds. Checks that may end the process have one of their own, with a time limit.\n"
        "On the emulated HPU it passes, and says that it was emulated."
    ),
    examples=(
        "lightning-gaudi selftest --json my-gaudi.json",
        "LIGHTNING_GAUDI_EMULATOR=1 lightning-gaudi selftest --quick",
        "lightning-gaudi selftest --only replay_equals_eager times",
    ),
    exit_codes=(("0", "all checks passed, or were skipped with a reason"), ("1", "one failed")),
    add_arguments=_add_arguments,
    run=_run,
)
