"""``lightning-gaudi emulate SCRIPT``: run a script on the emulated HPU, and report on it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lightning_gaudi.cli.command import Command, add_mode
from lightning_gaudi.cli.parser import Parser
from lightning_gaudi.cli.run import add_script, check_script
from lightning_gaudi.runtime.emulation import Emulation, own_process_id
from lightning_gaudi.runtime.process import start_python

EXIT_OVER_BUDGET = 3


def _number_from(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of {least} or more, but it is {text!r}"
            )
        return int(text)

    return parse


def _add_arguments(parser: Parser) -> None:
    add_mode(parser)
    parser.add_argument(
        "--devices", type=_number_from(1), metavar="N", help="how many cards to emulate (1)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="int64 and float64 narrow to 32 bits, an op without a kernel raises, freed memory "
        "is filled with NaN",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write the report there: HTML, PNG and JSON"
    )
    parser.add_argument(
        "--max-compilations",
        type=_number_from(0),
        metavar="N",
        help="fail where there are more after the warm-up",
    )
    parser.add_argument(
        "--max-host-reads",
        type=_number_from(0),
        metavar="N",
        help="fail where there are more after the warm-up",
    )
    add_script(parser)


def _run(given: argparse.Namespace, parser: Parser) -> None:
    check_script(given, parser)
    if given.report is not None and given.report.exists() and not given.report.is_dir():
        parser.error(f"argument --report: {str(given.report)!r} is not a folder")
    emulation = Emulation(
        report=None if given.report is None else str(given.report.absolute()),
        max_compilations=given.max_compilations,
        max_host_reads=given.max_host_reads,
        process_id=own_process_id(),  # which the new Python keeps
    )
    module = ["-m"] if given.is_module else []
    start_python(
        ["-m", "lightning_gaudi.cli.emulating", *module, given.script, *given.arguments],
        lazy=(given.mode or "lazy") == "lazy",
        variables=emulation.variables(devices=given.devices, strict=given.strict),
    )


EMULATE = Command(
    name="emulate",
    group="run",
    summary="run a script on the emulated HPU; ends with what a Gaudi would recompile",
    description=(
        "Run any Python script on the emulated HPU: Lightning scripts as they are, whose Trainer\n"
        "says accelerator='auto' or 'hpu' or nothing, and scripts that use the device 'hpu'\n"
        "themselves. At the end, also of a script that fails, a report says what was compiled,\n"
        "read by the host and run on the CPU, on which lines and why. A script that asks for a\n"
        "GPU fails as it would on a Gaudi. Options stand before SCRIPT."
    ),
    examples=(
        "lightning-gaudi emulate train.py --epochs 1",
        "lightning-gaudi emulate --report report --max-compilations 0 train.py",
        "lightning-gaudi emulate --devices 2 --strict train.py",
    ),
    exit_codes=(
        ("N", "the script's own; 130 after Ctrl-C"),
        (str(EXIT_OVER_BUDGET), "the script worked, but a budget is exceeded"),
    ),
    add_arguments=_add_arguments,
    run=_run,
)
