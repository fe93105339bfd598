"""Time of a checkpoint by HPUCheckpointIO, against plain ``torch.save`` of the same state.

    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_checkpoint.py --help

The state is a Transformer's weights with the two moments of AdamW on the emulated HPU, 240 MB, as a
Trainer would save it. Plain ``torch.save`` writes to the file itself, once as it is and once with
the file on the disk (fsync) before the clock stops; ours always has it there. Asynchronously, the
training loop is blocked until it may go on, which is what is timed; then the file is waited for.
What is written is read back and compared. Figures are of this machine's disk and memory, of which
the emulated device's is a part: a copy to the host is a copy in memory here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_checkpoint.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures checkpoints of the emulated HPU in lazy mode. Run it as: {USAGE}")

import statistics
import time

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from measure import Row, report
from torch import nn

from lightning_gaudi import HPUCheckpointIO
from lightning_gaudi.runtime import loading

_MB = 1e6


def state(num_layers: int, width: int) -> dict[str, Any]:
    """A checkpoint like a Trainer's: weights and AdamW's moments, on the device."""
    loading.load("lazy")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 8, dim_feedforward=4 * width, batch_first=True)
    module = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False).to("hpu")
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 0,
        "global_step": 1,
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }


def num_bytes(checkpoint: Any) -> int:
    """Bytes of all tensors in a checkpoint."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.numel() * checkpoint.itemsize
    if isinstance(checkpoint, dict):
        return sum(map(num_bytes, checkpoint.values()))
    return sum(map(num_bytes, checkpoint)) if isinstance(checkpoint, (list, tuple)) else 0


def plain(checkpoint: dict[str, Any], path: Path, *, synced: bool) -> None:
    """``torch.save``, and perhaps the file on the disk."""
    torch.save(checkpoint, path)
    if synced:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def median_times(runs: list[Callable[[], object]], after: Callable[[], None], rounds: int) -> Any:
    """Seconds of each, in turns, with what follows each call outside of its time."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            after()
            if number:  # the first round makes the files
                found.append(elapsed)
    return [statistics.median(found) for found in times]


def run(num_layers: int, width: int, rounds: int, folder: Path) -> list[Row]:
    """Save in all ways, in turns.

    Raises:
        RuntimeError: What was written is not what was to be saved.
    """
    checkpoint = state(num_layers, width)
    megabytes = num_bytes(checkpoint) / _MB
    direct, background = HPUCheckpointIO(), HPUCheckpointIO(asynchronous=True)
    stock = TorchCheckpointIO()

    def settle() -> None:
        background.teardown()
        os.sync()  # so that nobody pays for what another has left to the system

    names = ("plain", "synced", "stock", "ours", "background")
    paths = {name: folder / f"{name}.ckpt" for name in names}
    plain_s, synced_s, stock_s, ours_s, blocked_s = median_times(
        [
            lambda: plain(checkpoint, paths["plain"], synced=False),
            lambda: plain(checkpoint, paths["synced"], synced=True),
            lambda: stock.save_checkpoint(checkpoint, paths["stock"]),
            lambda: direct.save_checkpoint(checkpoint, paths["ours"]),
            lambda: background.save_checkpoint(checkpoint, paths["background"]),
        ],
        settle,
        rounds,
    )
    expected = torch.load(paths["plain"], weights_only=True)
    for name in ("ours", "background"):
        found = torch.load(paths[name], weights_only=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    size = f"{megabytes:.0f} MB"
    return [
        Row(
            what=f"HPUCheckpointIO, {size} on the disk",
            against="torch.save and fsync",
            measured=ours_s / synced_s,
            unit="times its time",
            detail=f"{ours_s * 1e3:.0f} and {synced_s * 1e3:.0f} ms",
        ),
        Row(
            what=f"HPUCheckpointIO, {size} on the disk",
            against="torch.save, left to the system to write",
            measured=ours_s / plain_s,
            unit="times its time",
            detail=f"{ours_s * 1e3:.0f} and {plain_s * 1e3:.0f} ms",
        ),
        Row(
            what=f"HPUCheckpointIO, {size} on the disk",
            against="stock Lightning's TorchCheckpointIO, left to the system to write",
            measured=ours_s / stock_s,
            unit="times its time",
            detail=f"{ours_s * 1e3:.0f} and {stock_s * 1e3:.0f} ms",
        ),
        Row(
            what=f"training blocked by HPUCheckpointIO(asynchronous=True), {size}",
            against="torch.save and fsync",
            measured=blocked_s / synced_s,
            unit="of its time",
            detail=f"{blocked_s * 1e3:.0f} and {synced_s * 1e3:.0f} ms",
        ),
    ]


def main() -> None:
    """Parse the command line, save and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        rows = run(given.layers, given.width, given.rounds, Path(folder))
    if not report("Checkpoints", rows, given.json):
        sys.exit(1)


if __name__ == "__main__":
    main()
