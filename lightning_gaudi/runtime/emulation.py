"""What ``lightning-gaudi emulate`` tells the Python that it starts, and the ranks that this starts.

It goes through the environment, because Lightning starts further ranks as ``python SCRIPT``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from lightning_gaudi.runtime import environment

EMULATE = "LIGHTNING_GAUDI_EMULATE"


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """The options of ``lightning-gaudi emulate``.

    Attributes:
        report: The folder for the report's files; None for none.
        max_compilations: How many compilations are allowed after the warm-up; None for any number.
        max_host_reads: How many host reads are; None for any number.
        process_id: Of the process that runs the script; ranks have others.
    """

    report: str | None = None
    max_compilations: int | None = None
    max_host_reads: int | None = None
    process_id: int = 0

    def variables(self, *, devices: int | None, strict: bool) -> dict[str, str]:
        """The environment of the process that runs the script.

        Args:
            devices: How many cards to emulate; None leaves it as it is.
            strict: Whether the emulator is strict.
        """
        variables = {environment.EMULATOR: "1", EMULATE: json.dumps(asdict(self))}
        if devices is not None:
            variables["LIGHTNING_GAUDI_EMULATOR_DEVICES"] = str(devices)
        if strict:
            variables["LIGHTNING_GAUDI_EMULATOR_STRICT"] = "1"
        return variables


def current_emulation() -> Emulation | None:
    """What this process was told; None outside of ``lightning-gaudi emulate``."""
    text = os.environ.get(EMULATE)
    return None if not text else Emulation(**json.loads(text))


def is_own_process(emulation: Emulation) -> bool:
    """Whether this is the process that runs the script, and no rank or worker of it."""
    return emulation.process_id == os.getpid()


def own_process_id() -> int:
    """This process's id, which it keeps when it starts Python anew."""
    return os.getpid()
