"""Checks of the device itself: copies, arithmetic, the recipe cache, random numbers, memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightning_gaudi.runtime import device, environment, loading, metrics, random, step
from lightning_gaudi.selftest.checking import Figures, expect, expect_close, hpu, settle


def device_and_mode(figures: Figures) -> None:
    """The software is loaded in the mode that was asked for."""
    figures["name"] = device.name()
    figures["cards"] = device.count()
    figures["torch"] = torch.__version__
    figures["lazy"] = loading.is_lazy()
    wanted = environment.lazy_mode() == "1"
    expect(loading.is_lazy() == wanted, f"lazy is {loading.is_lazy()}, expected {wanted}")
    tensor = torch.ones(3, device=hpu())
    expect(str(tensor.device) == "hpu:0", f"a tensor lies on {tensor.device}, expected hpu:0")
    expect(tensor.sum().item() == 3.0, f"ones(3).sum() is {tensor.sum().item()}, expected 3.0")


def copies(figures: Figures) -> None:
    """Each dtype comes out as it went in."""
    dtypes = (torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool)
    for dtype in dtypes:
        host = torch.arange(24).reshape(4, 6).to(dtype)
        for name, tensor in {
            "whole": host,
            "transposed": host.t(),
            "strided": host[:, ::2],
        }.items():
            back = tensor.to(hpu()).cpu()
            expect(back.dtype == dtype, f"{dtype}: came back as {back.dtype}")
            expect(torch.equal(back, tensor), f"{dtype}, {name}: other values came back")
    figures["dtypes"] = [str(dtype) for dtype in dtypes]


def arithmetic(figures: Figures) -> None:
    """Ops against the CPU's."""
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    on_left, on_right = left.to(hpu()), right.to(hpu())
    expect_close(figures, "add", on_left + on_right, left + right, 1e-6)
    expect_close(
        figures, "gelu", torch.nn.functional.gelu(on_left), torch.nn.functional.gelu(left), 1e-3
    )
    expect_close(figures, "softmax", on_left.softmax(-1), left.softmax(-1), 1e-3)
    expect_close(figures, "matmul", on_left @ on_right, left @ right, 2e-2)


def _chain(rows: int) -> torch.Tensor:
    x = torch.ones(rows, 5).to(hpu())
    return (x.mul(2.0).add(x).relu() - x.sigmoid()).cpu()


def one_compilation_then_a_hit(figures: Figures) -> None:
    """Copy in, several ops, one copy out: one compilation; again: one hit."""
    settle()
    before = metrics.counters()
    _chain(13)
    first = metrics.counters() - before
    before = metrics.counters()
    _chain(13)
    again = metrics.counters() - before
    figures["first"] = {"compilations": first.compilations, "hits": first.cache_hits}
    figures["again"] = {"compilations": again.compilations, "hits": again.cache_hits}
    # A recipe cache on disk may know the first one already.
    has_disk_cache = environment.recipe_cache() is not None
    expect(
        first.compilations == 1 or has_disk_cache,
        f"the first time compiled {first.compilations} graphs, expected 1",
    )
    expect(again.compilations == 0, f"the second time compiled {again.compilations}, expected 0")
    expect(
        again.cache_hits in (None, 1), f"the second time had {again.cache_hits} hits, expected 1"
    )


def _graphs_of(rows: int, *, marks: bool) -> int:
    settle()
    before = metrics.counters()
    x = torch.ones(rows, 3).to(hpu())
    y = x.mul(3.0).sub(x)
    if marks:
        step.mark_step()
    y.exp().add(y).cpu()
    made = metrics.counters() - before
    return made.compilations + (made.cache_hits or 0)


def mark_step_breaks_the_graph(figures: Figures) -> None:
    """The same ops with a mark in between are one graph more."""
    without, with_mark = _graphs_of(17, marks=False), _graphs_of(19, marks=True)
    figures["graphs"] = {"without a mark": without, "with one": with_mark}
    expect(with_mark == without + 1, f"{without} graphs without a mark and {with_mark} with one")


def a_new_shape_compiles(figures: Figures) -> None:
    """Other rows, another recipe."""
    _chain(21)
    before = metrics.counters()
    _chain(22)
    made = metrics.counters() - before
    figures["compilations"] = made.compilations
    expect(
        made.compilations == 1 or environment.recipe_cache() is not None,
        f"a new shape compiled {made.compilations} graphs, expected 1",
    )


def seeds(figures: Figures) -> None:
    """Random numbers on the device."""
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(torch.randn(100, device=hpu()).cpu())
    expect(torch.equal(drawn[0], drawn[1]), "the same seed gave other numbers")
    expect(not torch.equal(drawn[0], drawn[2]), "another seed gave the same numbers")
    state = random.get_state()
    first = torch.rand(8, device=hpu()).cpu()
    random.set_state(state)
    second = torch.rand(8, device=hpu()).cpu()
    expect(torch.equal(first, second), "the state that was put back gave other numbers")
    torch.manual_seed(5)
    figures["equal to the CPU's"] = bool(torch.equal(torch.randn(100), drawn[0]))
    figures["mean"], figures["std"] = float(drawn[0].mean()), float(drawn[0].std())


def autocast(figures: Figures) -> None:
    """Dtypes under autocast."""
    x = torch.randn(4, 4).to(hpu())
    ops: dict[str, tuple[Callable[[], torch.Tensor], torch.dtype]] = {
        "matmul": (lambda: x @ x, torch.bfloat16),
        "linear": (lambda: torch.nn.functional.linear(x, x), torch.bfloat16),
        "exp": (lambda: x.exp(), torch.float32),
        "mse_loss": (lambda: torch.nn.functional.mse_loss(x, x), torch.float32),
    }
    found = {}
    with torch.autocast("hpu", dtype=torch.bfloat16):
        for name, (op, _) in ops.items():
            found[name] = op().dtype
    figures["dtypes"] = {name: str(dtype) for name, dtype in found.items()}
    expect((x @ x).dtype == torch.float32, "autocast is still on after its block")
    for name, (_, dtype) in ops.items():
        expect(found[name] == dtype, f"{name} gave {found[name]}, expected {dtype}")


def memory_figures(figures: Figures) -> None:
    """A tensor of 64 MiB comes and goes."""
    size = 64 * 2**20
    settle()
    before = device.memory_stats()
    tensor = torch.zeros(size // 4, device=hpu())
    settle()
    during = device.memory_stats()
    expect(tensor.numel() == size // 4, f"{tensor.numel()} elements, expected {size // 4}")
    del tensor
    settle()
    after = device.memory_stats()
    figures["limit"] = during["Limit"]
    figures["in use"] = [before["InUse"], during["InUse"], after["InUse"]]
    grown, left = during["InUse"] - before["InUse"], after["InUse"] - before["InUse"]
    expect(grown >= size, f"64 MiB more in use grew InUse by {grown} bytes")
    expect(left < size, f"after the tensor's end InUse is still {left} bytes higher")


def streams_and_events(figures: Figures) -> None:
    """Events around work, and work on another stream."""
    module = loading.module("torch.hpu")
    begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
    x = torch.randn(256, 256).to(hpu())
    begin.record()
    y = x
    for _ in range(10):
        y = torch.tanh(y @ x)
    end.record()
    end.synchronize()
    elapsed_ms = begin.elapsed_time(end)
    figures["10 products of 256x256, ms"] = elapsed_ms
    expect(elapsed_ms >= 0, f"the time between two events is {elapsed_ms} ms")
    expect(bool(end.query()), "an event that was waited for is not done")
    stream = module.Stream()
    with module.stream(stream):
        z = x * 2
    module.current_stream().wait_stream(stream)
    expect(torch.equal(z.cpu(), x.cpu() * 2), "an op on another stream gave other values")
