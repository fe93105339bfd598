"""Replay against op by op over random sequences of calls.

    python tests/graphs/fuzz.py --calls 100000 --seed 0

Prints how many calls ran, and how fast. Where replay differs, it prints the seed and the shortest
sequence that it found to differ as well, and exits with 1.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("LIGHTNING_GAUDI_EMULATOR", "1")
os.environ.setdefault("PT_HPU_LAZY_MODE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import gc

import torch
from graphs.sequences import Sequence, num_calls, random_sequence, run

import lightning_gaudi  # noqa: F401 - installs the emulated HPU
from lightning_gaudi.runtime import loading


def failure_of(sequence: Sequence) -> BaseException | None:
    """What goes wrong in a sequence, if anything does."""
    try:
        run(sequence)
    except Exception as error:
        return error
    return None


def shrink(sequence: Sequence) -> Sequence:
    """Leave steps out as long as it still fails."""
    size = max(1, len(sequence.steps) // 2)
    while size:
        start = 0
        while start < len(sequence.steps):
            steps = sequence.steps[:start] + sequence.steps[start + size :]
            shorter = replace(sequence, steps=steps)
            if steps and failure_of(shorter) is not None:
                sequence = shorter
            else:
                start += size
        size //= 2
    return sequence


def main() -> None:
    """Run until there have been so many calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000, help="calls to make")
    parser.add_argument("--seed", type=int, default=0, help="of the first sequence")
    arguments = parser.parse_args()

    loading.load("lazy")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # each capture collects garbage first; what imports left needs no visit
    calls, seed, totals = 0, arguments.seed, collections.Counter[str]()
    started = time.perf_counter()
    while calls < arguments.calls:
        sequence = random_sequence(random.Random(seed))
        try:
            graphed = run(sequence)
        except Exception as error:
            print(f"seed {seed} differs: {type(error).__name__}: {error}")
            shortest = shrink(sequence)
            print(f"{shortest}\n{failure_of(shortest)!r}")
            sys.exit(1)
        for name in ("captures", "replays", "eager_calls", "padded_calls", "evictions"):
            totals[name] += getattr(graphed.stats, name)
        calls += num_calls(sequence)
        seed += 1
    seconds = time.perf_counter() - started
    print(
        f"{calls} calls in {seed - arguments.seed} sequences from seed {arguments.seed}, all as op "
        f"by op; {calls / seconds:.0f} calls per second. "
        + ", ".join(f"{number} {name}" for name, number in totals.items())
    )


if __name__ == "__main__":
    main()
