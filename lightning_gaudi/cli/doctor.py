"""``lightning-gaudi doctor``: what is right and wrong with this machine, with each fix."""

from __future__ import annotations

import argparse
import json

from lightning_gaudi.cli.command import Command, add_mode
from lightning_gaudi.cli.parser import Parser


def _add_arguments(parser: Parser) -> None:
    add_mode(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--no-load",
        action="store_true",
        help="do not load the Gaudi software to see if it comes up",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long loading may take (default: %(default)g)",
    )


def _run(given: argparse.Namespace, parser: Parser) -> int:
    # Here, since help needs none of it.
    from lightning_gaudi.doctor.checks import check_all
    from lightning_gaudi.doctor.findings import is_usable
    from lightning_gaudi.doctor.rendering import as_json, print_findings
    from lightning_gaudi.runtime.facts import gather_facts

    if given.limit <= 0:
        parser.error(f"argument --limit: must be above 0, but it is {given.limit:g}")
    facts = gather_facts(load=not given.no_load, load_limit_s=given.limit)
    findings = check_all(facts, given.mode or "lazy")
    if given.json:
        print(json.dumps(as_json(facts, findings), indent=2))
    else:
        print_findings(findings)
    return 0 if is_usable(findings) else 1


DOCTOR = Command(
    name="doctor",
    group="check",
    summary="look at software, driver, cards, mode and environment; say what to fix",
    description=(
        "Look at the Gaudi software, the driver, the cards, torch, Lightning, the execution mode\n"
        "and the environment variables that matter. Each finding is ok, a note, a warning or a\n"
        "fault, and comes with the command that mends it. Nothing is loaded in this process; a\n"
        "second one loads the Gaudi software, within a time limit and without taking a card.\n\n"
        "--json prints {version, is_usable, findings: [{check, level, title, found, expected,\n"
        "fix}], facts}."
    ),
    examples=(
        "lightning-gaudi doctor",
        "lightning-gaudi doctor --mode eager",
        "lightning-gaudi doctor --json --no-load",
    ),
    exit_codes=(("0", "the HPU is usable"), ("1", "there is a fault")),
    add_arguments=_add_arguments,
    run=_run,
)
