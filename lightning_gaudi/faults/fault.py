"""What has happened to a rank, in words."""

from __future__ import annotations

import contextlib
import signal
import traceback
from dataclasses import asdict, dataclass
from typing import Any

_LONGEST_REASON = 2000


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a run ends.

    Attributes:
        rank: Whose fault it is.
        host: Its machine.
        pid: Its process there.
        why: What it did: "died: ...", "failed: ...".
        besides: What else is known that may have to do with it.
    """

    rank: int
    host: str
    pid: int
    why: str
    besides: str = ""

    def __str__(self) -> str:
        besides = f" Besides, {self.besides}." if self.besides else ""
        return f"rank {self.rank} ({self.host}, process {self.pid}) {self.why}.{besides}"

    def as_message(self) -> dict[str, Any]:
        """As it is sent to other ranks."""
        return asdict(self)


def reason_of_exit(code: int | None) -> str:
    """Say in words how a process has ended.

    Args:
        code: As ``subprocess.Popen.returncode``; None where nobody knows.
    """
    if code is None:
        return (
            "its connection ended without a word. It was killed, perhaps for memory, or its "
            "machine is lost"
        )
    if code < 0:
        name = str(-code)
        with contextlib.suppress(ValueError):
            name = f"{-code} ({signal.Signals(-code).name})"
        return f"it was killed by signal {name}"
    return f"it ended with exit code {code}"


def reason_of_exception(error: BaseException) -> str:
    """Say in a line or a few what was raised."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return text[:_LONGEST_REASON]


def silence(seconds: float) -> str:
    """Say how long a process has said nothing."""
    return f"silent since {seconds:.0f} s: it is stopped, or hangs"


def add_to_message(error: BaseException, text: str) -> None:
    """Add to what an exception says, once, without changing what it is.

    Args:
        error: The exception. An error of one text gets a longer one; another a note, where this
            Python has notes (3.11).
        text: What to add; nothing where it is empty.
    """
    if not text or text in str(error) or text in getattr(error, "__notes__", ()):
        return
    if isinstance(error, RuntimeError) and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error}\n{text}",)
    elif hasattr(error, "add_note"):
        error.add_note(text)
