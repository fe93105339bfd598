"""``python -m lightning_gaudi.cli.emulating``: what ``lightning-gaudi emulate`` starts.

It runs a script as ``python SCRIPT`` does, under the eyes of `script_monitor`.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType

from lightning_gaudi.cli.emulate import EXIT_OVER_BUDGET
from lightning_gaudi.cli.script_monitor import start_watch
from lightning_gaudi.runtime.emulation import current_emulation

_EXIT_INTERRUPTED = 130
_HINT = (
    "lightning-gaudi emulate: the emulated HPU is no GPU, and neither is a Gaudi: use "
    "accelerator='auto' or 'hpu' in the Trainer, and the device 'hpu' in place of 'cuda'."
)


def main(arguments: Sequence[str]) -> int:
    """Run a script and report on it.

    Args:
        arguments: The script and its own arguments; before them ``-m`` where it is a module.

    Returns:
        The exit code: the script's, or that of a budget that is exceeded.
    """
    emulation = current_emulation()
    assert emulation is not None, "started by hand; use lightning-gaudi emulate"
    watch = start_watch(emulation)
    is_module = arguments[0] == "-m"
    script, *own = arguments[is_module:]
    sys.argv = [script, *own]
    code, stopped_by = 0, None
    try:
        _run(script, is_module=is_module)
    except SystemExit as stop:
        code = _code_of(stop)
        stopped_by = "SystemExit" if code else None
    except KeyboardInterrupt as error:
        _print_error(error)
        code, stopped_by = _EXIT_INTERRUPTED, type(error).__name__
    except BaseException as error:
        _print_error(error)
        code, stopped_by = 1, type(error).__name__
    sys.stdout.flush()
    excesses = watch.finish(stopped_by)
    for excess in excesses:
        print(f"lightning-gaudi emulate: {excess}", file=sys.stderr)
    return EXIT_OVER_BUDGET if excesses and not code else code


def _run(script: str, *, is_module: bool) -> None:
    """Run the script as the process's main module."""
    if is_module:
        sys.path[0] = str(Path.cwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
        return
    path = Path(script)
    if path.is_dir() or path.suffix in (".zip", ".pyz"):
        runpy.run_path(script, run_name="__main__")
        return
    sys.path[0] = str(path.resolve().parent)
    # A module of its own that stays, so that workers find the script's classes in it, and what
    # runs at exit its globals. Without a spec, Lightning starts further ranks as ``python SCRIPT``.
    module = ModuleType("__main__")
    module.__file__ = script
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    exec(compile(path.read_bytes(), script, "exec"), module.__dict__)


def _code_of(stop: SystemExit) -> int:
    """The exit code, as Python has it."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def _print_error(error: BaseException) -> None:
    """Print an error as Python does, without the lines of this file."""
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename in (__file__, runpy.__file__):
        place = place.tb_next
    traceback.print_exception(type(error), error, place)
    text = str(error).lower()
    if "cuda" in text or "gpu" in text:
        print(_HINT, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
