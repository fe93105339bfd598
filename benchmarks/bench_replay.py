"""What one replayed call of a `GraphedForward` costs the host.

    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_replay.py --help

Each figure is held against ``wrap_in_hpu_graph`` of the emulated ``habana_frameworks``, which is
written to the SDK's own algorithm, on the same emulated tensors in the same run. Ours clones its
outputs, checks everything that its key and the watch of the weights promise, and the wrapper does
neither. The emulator's own cost for each op is in both figures. Nothing here says how fast a card
is. Before a pair is timed, both are compared with the forward run op by op.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_replay.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures replay on the emulated HPU in lazy mode. Run it as: {USAGE}")

import torch
from habana_frameworks.torch.hpu import wrap_in_hpu_graph
from measure import Row, in_turns, report
from torch import Tensor, nn

from lightning_gaudi.graphs import GraphedForward

WRAPPER = "the SDK's wrapper, emulated"
# Of this thread's own time, so that other programs on the machine do not count.
_HOW_OFTEN: dict[str, Any] = {"rounds": 101, "calls": 10, "clock": time.thread_time}
TARGETS = {8: 0.5, 32: 0.33}
Inputs = tuple[Tensor, ...]


class Summing(nn.Module):
    """Little to compute, so that the call is what is measured.

    Args:
        num_weights: How many parameters it has, each in a submodule of its own; it reads one.
    """

    def __init__(self, num_weights: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(num_weights))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Of all tensors two are read."""
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        return tensors[0] * weight[0] + tensors[-1]


def make_pair(num_weights: int = 1, **options: Any) -> tuple[nn.Module, GraphedForward, nn.Module]:
    """A module, its replay, and a twin in the SDK's wrapper."""
    torch.manual_seed(0)
    module = Summing(num_weights).to("hpu").eval()
    wrapped = Summing(num_weights).to("hpu").eval()
    wrapped.load_state_dict(module.state_dict())
    sdk_options = {k: v for k, v in options.items() if k == "disable_tensor_cache"}
    graphed = GraphedForward(module, max_graphs=1000, pad_batch=False, **options)
    return module, graphed, wrap_in_hpu_graph(wrapped, **sdk_options)


def inputs_of(number: int, rows: int = 4) -> Inputs:
    """Random tensors on the device."""
    return tuple(torch.randn(rows, 4).to("hpu") for _ in range(number))


def time_pair(
    module: nn.Module, graphed: GraphedForward, wrapped: nn.Module, inputs: Inputs
) -> tuple[float, float]:
    """Microseconds of one replayed call of each.

    Raises:
        AssertionError: One of them computes something else than op by op, or does not replay.
    """
    expected = module(*inputs).cpu()
    for _ in range(2):
        assert torch.equal(graphed(*inputs).cpu(), expected)
        assert torch.equal(wrapped(*inputs).cpu(), expected)
    captures = graphed.stats.captures
    # The attribute is called, as by a module's own call, which adds the same to both.
    ours, theirs = in_turns(
        [lambda: graphed(*inputs), lambda: wrapped.forward(*inputs)], **_HOW_OFTEN
    )
    assert graphed.stats.captures == captures
    return ours * 1e6, theirs * 1e6


def ratio_row(what: str, ours: float, theirs: float, target: float | None = None) -> Row:
    """One figure: our time over the wrapper's."""
    return Row(
        what=what,
        against=WRAPPER,
        measured=ours / theirs,
        unit="of its time",
        target=target,
        detail=f"{ours:.1f} us against {theirs:.1f} us",
    )


def bench_inputs() -> list[Row]:
    """Calls with 2 to 128 input tensors."""
    rows = []
    for number in (2, 8, 32, 128):
        times = time_pair(*make_pair(), inputs_of(number))
        rows.append(ratio_row(f"replay, {number} input tensors", *times, TARGETS.get(number)))
    return rows


def bench_bound() -> list[Row]:
    """The same where graphs read the caller's tensors where they are."""
    return [
        ratio_row(
            f"replay with disable_tensor_cache, {number} input tensors",
            *time_pair(*make_pair(disable_tensor_cache=True), inputs_of(number)),
        )
        for number in (2, 8, 32, 128)
    ]


def bench_graphs() -> list[Row]:
    """Flat in the number of graphs: always the same kind of call, and all kinds by turns."""
    runs: list[Callable[[], object]] = []
    for number in (1, 16, 256):
        _, graphed, _ = make_pair()
        kinds = [inputs_of(8, rows=rows) for rows in range(1, number + 1)]
        for inputs in kinds:
            graphed(*inputs)
        assert graphed.num_graphs == number
        turns = itertools.cycle(kinds)
        runs.append(lambda graphed=graphed, same=kinds[0]: graphed(*same))  # type: ignore[misc]
        runs.append(lambda graphed=graphed, turns=turns: graphed(*next(turns)))  # type: ignore[misc]
    times = [seconds * 1e6 for seconds in in_turns(runs, **_HOW_OFTEN)]
    hows = ("one kind of call", "all kinds by turns")
    return [
        Row(
            what=f"replay of 8 input tensors, {number} graphs kept, {how}",
            against="the same with 1 graph",
            measured=times[2 * place + turn] / times[0],
            unit="of its time",
            detail=f"{times[2 * place + turn]:.1f} us against {times[0]:.1f} us",
        )
        for place, number in ((1, 16), (2, 256))
        for turn, how in enumerate(hows)
    ]


def bench_weights() -> list[Row]:
    """A module with many weights, all of which are watched."""
    rows = []
    for number in (1, 128, 512):
        ours, theirs = time_pair(*make_pair(num_weights=number), inputs_of(8))
        rows.append(ratio_row(f"replay of 8 input tensors, {number} weights watched", ours, theirs))
    return rows


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "inputs": bench_inputs,
    "bound": bench_bound,
    "graphs": bench_graphs,
    "weights": bench_weights,
}


def main() -> int:
    """Run the benchmarks; the exit status is 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", help=f"a comma-separated choice of {', '.join(BENCHMARKS)}")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = [row for name in names for row in BENCHMARKS[name]()]
    return 0 if report("One replayed call on the host", rows, arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
