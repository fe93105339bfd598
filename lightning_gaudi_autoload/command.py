"""The console script ``lightning-gaudi``: starts without importing Lightning or torch.

Importing any module of `lightning_gaudi` imports Lightning, and torch, which on a Gaudi machine may
load the Gaudi software in a mode that nobody chose. Help, completion and `doctor` need none of it,
and the other commands start Python anew with the mode set. So this process gets a package
`lightning_gaudi` whose ``__init__.py`` has not run.
"""

from __future__ import annotations

import importlib.util
import sys

_PACKAGE = "lightning_gaudi"


def main() -> None:
    """Run the console script.

    Raises:
        SystemExit: With the command's exit code.
    """
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(_PACKAGE)
        assert spec is not None, (
            f"{_PACKAGE} is not importable, but its console script is installed"
        )
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    from lightning_gaudi.cli.main import main as run

    run(is_light=True)


if __name__ == "__main__":
    main()
