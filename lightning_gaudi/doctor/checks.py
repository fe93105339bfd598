"""All checks, in the order in which a person reads them."""

from __future__ import annotations

from functools import partial

from lightning_gaudi.doctor import machine, software, variables
from lightning_gaudi.doctor.findings import Finding
from lightning_gaudi.doctor.variables import Mode
from lightning_gaudi.runtime.facts import Facts


def check_all(facts: Facts, mode: Mode = "lazy") -> list[Finding]:
    """Judge a machine.

    Args:
        facts: What is known of it.
        mode: The execution mode that is wanted.
    """
    checks = (
        software.check_python,
        software.check_software,
        machine.check_driver,
        machine.check_cards,
        software.check_torch,
        software.check_lightning,
        software.check_predecessors,
        software.check_optional,
        variables.check_emulator,
        partial(variables.check_mode, mode=mode),
        variables.check_autoload,
        machine.check_visible_cards,
        variables.check_module_id,
        variables.check_recipe_cache,
        variables.check_place_on_cpu,
        variables.check_op_lists,
        variables.check_spelling,
        machine.check_loading,
    )
    return [finding for check in checks for finding in check(facts)]
