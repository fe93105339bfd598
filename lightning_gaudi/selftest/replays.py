"""Checks of capture and replay through `GraphedForward`. Lazy mode only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.errors import CaptureError, HostReadError
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.runtime import capture
from lightning_gaudi.selftest.checking import Figures, expect, expect_close, hpu, settle

# Op by op and as one graph a card may round differently.
_TOLERANCE = 1e-2


def _net(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 4))


def _pair(**settings: Any) -> tuple[nn.Module, nn.Module, GraphedForward]:
    """A module on the CPU, the same on the device, and the latter's replay."""
    on_host = _net().eval()
    on_device = copy.deepcopy(on_host).to(hpu()).eval()
    return on_host, on_device, GraphedForward(on_device, **settings)


def _call(graphed: Callable[..., Any], x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = graphed(x.to(hpu())).cpu()
    return result


def _counts(figures: Figures, graphed: GraphedForward) -> None:
    stats = graphed.stats
    figures["stats"] = {
        "captures": stats.captures,
        "replays": stats.replays,
        "eager_calls": stats.eager_calls,
        "padded_calls": stats.padded_calls,
        "evictions": stats.evictions,
    }


def replay_equals_eager(figures: Figures) -> None:
    """Capture and replays, against the CPU and against the device op by op."""
    on_host, on_device, graphed = _pair()
    for number in range(4):
        x = torch.randn(6, 8)
        with torch.no_grad():
            eager = _call(on_device, x)
            result = _call(graphed, x)
            expect_close(figures, f"call {number} against eager", result, eager, _TOLERANCE)
            expect_close(figures, f"call {number} against the CPU", result, on_host(x), 2e-2)
    _counts(figures, graphed)
    found = (graphed.stats.captures, graphed.stats.replays)
    expect(found == (1, 3), f"captures and replays are {found}, expected (1, 3)")


def replay_sees_weights_updated_in_place(figures: Figures) -> None:
    """SGD between replays."""
    on_host, on_device, graphed = _pair()
    x = torch.randn(6, 8)
    before = _call(graphed, x)
    for module, device_ in ((on_host, "cpu"), (on_device, hpu())):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        module(x.to(device_)).square().mean().backward()
        optimizer.step()
    settle()
    after = _call(graphed, x)
    expect(not torch.equal(before, after), "the replay still computes with the old weights")
    expect_close(figures, "after the step", after, on_host(x), 2e-2)
    expect(graphed.stats.captures == 1, f"{graphed.stats.captures} captures, expected 1")


def replaced_weights_are_captured_anew(figures: Figures) -> None:
    """Other parameter objects: the old graph must not be used."""
    _, on_device, graphed = _pair()
    x = torch.randn(6, 8)
    _call(graphed, x)
    other = _net().eval()
    state = {name: value.to(hpu()) for name, value in other.state_dict().items()}
    on_device.load_state_dict(state, assign=True)
    with torch.no_grad():
        expect_close(figures, "with new weights", _call(graphed, x), other(x), 2e-2)
    expect(graphed.stats.captures == 2, f"{graphed.stats.captures} captures, expected 2")


def outputs_are_the_callers_own(figures: Figures) -> None:
    """Results of earlier calls after later ones."""
    _, _, graphed = _pair()
    inputs = [torch.randn(6, 8) for _ in range(4)]
    with torch.no_grad():
        results = [graphed(x.to(hpu())) for x in inputs]
        again = [_call(graphed, x) for x in inputs]
    for number, (kept, fresh) in enumerate(zip(results, again, strict=True)):
        expect_close(figures, f"result {number}", kept, fresh, 0.0)


def dtype_is_part_of_the_key(figures: Figures) -> None:
    """The same shape in two dtypes."""
    graphed = GraphedForward(lambda x: x * 3 + 1)
    for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.float32):
        x = torch.arange(12).reshape(3, 4).to(dtype)
        result = _call(graphed, x)
        expect(result.dtype == dtype, f"{dtype} gave {result.dtype}")
        expect(torch.equal(result, x * 3 + 1), f"{dtype}: other values")
    _counts(figures, graphed)
    expect(graphed.stats.captures == 3, f"{graphed.stats.captures} captures, expected 3")


def a_partial_batch_is_padded(figures: Figures) -> None:
    """The last batch of a loader."""
    on_host, _, graphed = _pair()
    for rows in (6, 6, 2, 5):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            expect_close(figures, f"{rows} rows", _call(graphed, x), on_host(x), 2e-2)
    _counts(figures, graphed)
    found = (graphed.stats.captures, graphed.stats.padded_calls)
    expect(found == (1, 2), f"captures and padded calls are {found}, expected (1, 2)")


def a_host_read_is_found(figures: Figures) -> None:
    """``.item()`` in a forward is refused; what follows works."""

    def forward(x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x

    try:
        _call(GraphedForward(forward), torch.ones(3, 8))
    except HostReadError as error:
        figures["message"] = str(error)
    else:
        raise AssertionError("a forward that reads a value on the host was captured")
    on_host, _, graphed = _pair()
    for _ in range(2):
        x = torch.randn(6, 8)
        with torch.no_grad():
            expect_close(figures, "a capture after it", _call(graphed, x), on_host(x), 2e-2)


def an_exception_ends_the_capture(figures: Figures) -> None:
    """An error in a forward."""

    def forward(x: Tensor) -> Tensor:
        y = x * 2
        raise ZeroDivisionError(f"of the user, at {tuple(y.shape)}")

    try:
        _call(GraphedForward(forward), torch.ones(3, 8))
    except ZeroDivisionError as error:
        figures["error"] = str(error)
    else:
        raise AssertionError("the user's exception did not come out")
    expect(not capture.is_capturing(), "the capture is still open")
    replay_equals_eager(figures)


def eviction(figures: Figures) -> None:
    """More shapes than graphs."""
    on_host, _, graphed = _pair(max_graphs=2, pad_batch=False)
    kept = []
    for rows in (3, 4, 5, 3, 4, 5, 5):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            kept.append((graphed(x.to(hpu())), on_host(x)))
    for number, (result, expected) in enumerate(kept):
        expect_close(figures, f"call {number}", result, expected, 2e-2)
    _counts(figures, graphed)
    found = (graphed.stats.captures, graphed.stats.evictions)
    expect(found == (6, 4), f"captures and evictions are {found}, expected (6, 4)")


def without_the_tensor_cache(figures: Figures) -> None:
    """``replayV3``, views included."""
    on_host, _, graphed = _pair(disable_tensor_cache=True)
    base = torch.randn(8, 6)
    inputs = [torch.randn(6, 8), torch.randn(6, 8), base.t()]
    for number, x in enumerate(inputs):
        with torch.no_grad():
            expect_close(figures, f"call {number}", _call(graphed, x), on_host(x), 2e-2)
    _counts(figures, graphed)


def replay_draws_anew(figures: Figures) -> None:
    """Dropout in a captured forward."""
    graphed = GraphedForward(lambda x: nn.functional.dropout(x, 0.5, training=True))
    x = torch.ones(16, 16)
    _call(graphed, x)
    first, second = _call(graphed, x), _call(graphed, x)
    expect(not torch.equal(first, second), "two replays drew the same numbers")
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(_call(graphed, x))
    figures["dropped"] = [float((r == 0).float().mean()) for r in (first, second, *drawn)]
    figures["the same after the same seed"] = bool(torch.equal(drawn[0], drawn[1]))
    expect(torch.equal(drawn[0], drawn[1]), "the same seed gave other numbers at a replay")
    _counts(figures, graphed)


def random_calls(figures: Figures) -> None:
    """A seeded sequence of calls in many shapes, dtypes and modes, with weight updates between."""
    generator = torch.Generator().manual_seed(7)

    def pick(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    _, on_device, graphed = _pair(max_graphs=3)
    largest = 0.0
    for number in range(60):
        kind = pick(8)
        if kind == 0:
            with torch.no_grad():
                for parameter in on_device.parameters():
                    parameter.mul_(1.01)
            settle()
        elif kind == 1:
            on_device.train(not on_device.training)
        elif kind == 2:
            other = {n: v.clone() for n, v in on_device.state_dict().items()}
            on_device.load_state_dict(other, assign=True)
        x = torch.randn((2, 3, 5)[pick(3)], 8, generator=generator)
        expected = _call(on_device.forward, x)
        actual = _call(graphed, x)
        notes: Figures = {}
        expect_close(notes, f"call {number}", actual, expected, _TOLERANCE)
        largest = max(largest, *notes.values())
    figures["largest difference"] = largest
    _counts(figures, graphed)


def graph_memory(figures: Figures) -> None:
    """Bytes in use before and after a capture of a forward with large intermediates."""
    net = nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)]).to(hpu()).eval()
    x = torch.randn(256, 512)
    for name, disable in (("kept", False), ("without the tensor cache", True)):
        graphed = GraphedForward(net, disable_tensor_cache=disable)
        settle()
        before = capture.bytes_in_use()
        _call(graphed, x)
        _call(graphed, x)
        settle()
        figures[name] = capture.bytes_in_use() - before
        graphed.clear()
        settle()
        figures[f"{name}, after clear"] = capture.bytes_in_use() - before
    expect(
        figures["without the tensor cache"] <= figures["kept"],
        f"the graph without the tensor cache keeps more: {figures}",
    )
    try:
        GraphedForward(net, max_graphs=0)
    except (CaptureError, ValueError) as error:
        figures["max_graphs=0"] = str(error)
