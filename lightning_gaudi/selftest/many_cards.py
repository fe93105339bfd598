"""The check of two cards. Run as a module it is what each of the two ranks does."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lightning_gaudi.runtime import device, environment
from lightning_gaudi.runtime.process import kill_python, open_python
from lightning_gaudi.selftest.checking import Figures, SkippedError, expect, expect_close
from lightning_gaudi.selftest.lightning_runs import Classifier, loader, trainer

_LIMIT_S = 240.0


def two_cards(figures: Figures) -> None:
    """Two cards with batches of 4 against the CPU with batches of 8, of the same rows."""
    number = device.count()
    figures["cards"] = number
    if number < 2:
        raise SkippedError(f"it needs 2 cards, and there is {number}")
    with tempfile.TemporaryDirectory() as folder:
        # In another process: this one may have taken a card.
        process = open_python(
            ["-W", "ignore", "-m", "lightning_gaudi.selftest.many_cards", folder],
            lazy=environment.lazy_mode() == "1",
        )
        try:
            output, _ = process.communicate(timeout=_LIMIT_S)
        finally:
            kill_python(process)
        expect(
            process.returncode == 0,
            f"the run ended with code {process.returncode}:\n{output[-2000:]}",
        )
        states = [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]
    reference = Classifier()
    trainer("cpu").fit(reference, loader())
    for name, value in reference.state_dict().items():
        expect_close(figures, f"{name}, rank 0 and 1", states[1][name], states[0][name], 0.0)
        expect_close(figures, name, states[0][name], value, 2e-2)


def _main(folder: str) -> None:
    run = trainer(devices=2, use_distributed_sampler=False)
    module = Classifier()
    run.fit(module, _Halves(loader()))
    torch.save(
        {name: value.cpu() for name, value in module.state_dict().items()},
        Path(folder) / f"rank{run.global_rank}.pt",
    )


class _Halves:
    """Each batch of a loader in two halves, of which a rank takes its own."""

    def __init__(self, whole: DataLoader[object]) -> None:
        self._batches = list(whole)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self):  # type: ignore[no-untyped-def]
        rank = torch.distributed.get_rank()
        for x, labels in self._batches:
            half = len(x) // 2
            rows = slice(rank * half, (rank + 1) * half)
            yield [x[rows], labels[rows]]


if __name__ == "__main__":
    _main(sys.argv[1])
