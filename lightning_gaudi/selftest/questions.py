"""Questions that only a card can answer. Each returns its answer, which nobody judges.

They use the Gaudi software's primitives as they are, without our guards, since what happens then is
what is asked. On a card some may end the process; that is an answer too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.runtime import capture, device, facts, loading, metrics
from lightning_gaudi.selftest.checking import Figures, hpu, settle


def default_mode(figures: Figures) -> dict[str, Any]:
    """Load the software in another process without the variable."""
    found = facts.try_loading(100.0, without_mode=True)
    return {"is_lazy": found.is_lazy, "error": found.error, "seconds": found.seconds}


def mark_step_result(figures: Figures) -> str:
    """The value of ``htcore.mark_step()``."""
    return repr(loading.module("torch.core").mark_step())


def int64_and_float64(figures: Figures) -> dict[str, str]:
    """Numbers that 32 bits cannot hold."""
    answers = {}
    for name, number in {"2**40": 2**40, "1 + 2**-40": 1 + 2.0**-40}.items():
        for step, function in {"copied": _same, "added to": _add_one}.items():
            answers[f"{name}, {step}"] = _outcome(
                partial(_there_and_back, torch.tensor([number]), function)
            )
    answers["dtypes"] = _outcome(
        lambda: [
            str(torch.zeros(1, dtype=dtype, device=hpu()).dtype)
            for dtype in (torch.int64, torch.float64)
        ]
    )
    return answers


def statistics(figures: Figures) -> dict[str, Any]:
    """Memory statistics and metrics, word for word."""
    torch.ones(8).to(hpu()).add(1).cpu()
    module = loading.module("torch.hpu.metrics")
    names = ("graph_compilation", "cpu_fallback", "memory_defragmentation", "recipe_cache")
    found = {name: module.metric_global(name) for name in names}
    return {
        "memory_stats": device.memory_stats(),
        **{name: None if m is None else repr(m.stats()) for name, m in found.items()},
    }


def item_in_a_capture(figures: Figures) -> dict[str, str]:
    """Whether it raises, and what a replay makes of the value."""
    x = torch.ones(4).to(hpu())
    out: list[Tensor] = []

    def forward() -> None:
        out.append(x * x.sum().item())

    answers, graph = _captured(forward)
    if graph is not None:
        x.fill_(2.0)
        settle()
        answers["replay"] = _outcome(graph.replay)
        answers["result; 16 is right, 8 is frozen"] = _outcome(lambda: out[0].cpu().tolist())
    return answers


def cpu_op_in_a_capture(figures: Figures) -> dict[str, str]:
    """An op that the card has no kernel for (hpu_ops.tsv)."""
    x = torch.ones(4, 4).to(hpu())
    return _captured(lambda: torch.linalg.eigvalsh(x))[0]


def capture_in_a_capture(figures: Figures) -> dict[str, str]:
    """A second ``capture_begin`` before the first one's end."""
    x = torch.ones(4).to(hpu())
    other = capture.new_graph()

    def forward() -> None:
        x.add(1)
        other.capture_begin()
        x.add(2)
        other.capture_end()

    return _captured(forward)[0]


def replay_in_a_capture(figures: Figures) -> dict[str, str]:
    """A finished graph is replayed while another is captured."""
    x = torch.ones(4).to(hpu())
    answers, graph = _captured(lambda: x.add(1))
    if graph is None:
        return answers
    return _captured(graph.replay)[0]


def addresses_of_outputs(figures: Figures) -> dict[str, Any]:
    """``data_ptr`` of an output before and after synchronous replays."""
    x = torch.ones(256).to(hpu())
    out: list[Tensor] = []
    answers, graph = _captured(lambda: out.append(x * 2))
    if graph is None:
        return answers
    addresses = []
    for _ in range(3):
        graph.replay()
        settle()
        with suppress(Exception):
            addresses.append(out[0].data_ptr())
    return {**answers, "stays the same": len(set(addresses)) == 1, "asked": len(addresses)}


def refill_under_inference_mode(figures: Figures) -> dict[str, str]:
    """Static inputs of both kinds, filled inside and outside of inference mode."""
    answers = {}
    for made in (True, False):
        for filled in (True, False):
            with torch.inference_mode(made):
                static = torch.zeros(4).to(hpu())
            with torch.inference_mode(filled):
                source = torch.ones(4).to(hpu())
                key = f"made inside: {made}, filled inside: {filled}"
                answers[key] = _outcome(partial(_refill, static, source))
    return answers


def times(figures: Figures) -> dict[str, float]:
    """Medians, in microseconds; the compilation in seconds."""
    net = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)]).to(hpu())
    x = torch.randn(64, 256).to(hpu())
    begin = time.perf_counter()
    with torch.no_grad():
        net(x).cpu()
    first_s = time.perf_counter() - begin
    out: list[Tensor] = []
    _, graph = _captured(lambda: out.append(net(x)))

    def eager() -> None:
        with torch.no_grad():
            net(x)
        settle()

    answers = {"first forward with its compilations, s": first_s}
    answers["forward of 8 layers and a wait"] = _median_us(eager)
    if graph is not None:
        answers["replay of it and a wait"] = _median_us(partial(_replay_and_wait, graph))
        answers["replay, the host's part"] = _median_us(lambda: graph.replay(asynchronous=True))
    answers["one add, the host's part"] = _median_us(lambda: x.add(1.0))
    settle()
    answers["compilations so far"] = float(metrics.counters().compilations)
    return answers


def _there_and_back(host: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
    return function(host.to(hpu())).cpu().tolist()


def _refill(static: Tensor, source: Tensor) -> Any:
    return static.copy_(source).cpu().tolist()


def _replay_and_wait(graph: capture.Graph) -> None:
    graph.replay()
    settle()


def _same(x: Tensor) -> Tensor:
    return x


def _add_one(x: Tensor) -> Tensor:
    return x + 1


def _captured(forward: Callable[[], Any]) -> tuple[dict[str, str], capture.Graph | None]:
    """Capture something without a guard; what came of it, and the graph where that worked."""
    settle()
    gc.collect()
    graph = capture.new_graph()
    try:
        with torch.no_grad(), capture.capture(graph):
            forward()
    except Exception as error:
        return {"raises": f"{type(error).__name__}: {error}"}, None
    return {"raises": "nothing"}, graph


def _outcome(function: Callable[[], Any]) -> str:
    try:
        return repr(function())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _median_us(function: Callable[[], Any], repeats: int = 30) -> float:
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[repeats // 2] * 1e6
