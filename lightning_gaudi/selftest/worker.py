"""``python -m lightning_gaudi.selftest.worker NAME...``: runs checks one after another.

What it has to say goes to standard output, a JSON object a line behind a mark; between them may
stand whatever libraries print.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

MARK = "lightning-gaudi-selftest:"


def main(names: Sequence[str]) -> None:
    """Run checks.

    Args:
        names: Of the catalogue.
    """
    warnings.simplefilter("ignore")
    import torch

    from lightning_gaudi.runtime import environment, loading
    from lightning_gaudi.selftest.catalogue import find
    from lightning_gaudi.selftest.checking import Figures, SkippedError

    torch.set_num_threads(1)
    # Each capture collects garbage first; what imports have left needs no visit.
    gc.collect()
    gc.freeze()
    for name in names:
        check = find(name)
        _say({"begin": name})
        figures: Figures = {}
        result: dict[str, Any] = {"name": name, "figures": figures}
        begin = time.perf_counter()
        try:
            if name not in ("two_cards", "default_mode"):  # which leave the card to others
                loading.load("lazy" if environment.lazy_mode() == "1" else "eager")
            torch.manual_seed(0)
            function = getattr(importlib.import_module(f"{__package__}.{check.module}"), name)
            answer = function(figures)
            result["status"] = "passed"
            if check.is_question:
                result |= {"status": "answered", "answer": answer}
        except SkippedError as error:
            result |= {"status": "skipped", "reason": str(error)}
        except BaseException as error:
            result |= {
                "status": "failed",
                "reason": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
        result["seconds"] = round(time.perf_counter() - begin, 3)
        _say({"end": result})


def _say(message: dict[str, Any]) -> None:
    print(f"\n{MARK}{json.dumps(message, default=str)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
