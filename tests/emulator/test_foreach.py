"""The short way through ``_foreach_copy_`` keeps the same books as the long one."""

from __future__ import annotations

import pytest
import torch

from lightning_gaudi import emulator
from lightning_gaudi.emulator import accounting, foreach


def tensors(count=3):
    shapes = [(2, 3), (4,), (), (5, 1)]
    return [torch.randn(shapes[i % 4]).to("hpu") for i in range(count)]


def books_of(run):
    """What the pending graph holds after a run, and where its tensors say that they are."""
    accounting.flush("test")
    targets, sources, after = run()
    graph = accounting.pending
    result = (
        list(graph.ops),
        list(graph.inputs),
        graph.num_compute,
        [(t._node[0] is graph, t._node[1]) for t in (*targets, *sources)],
        [t._block.writer is graph for t in targets],
        [t.cpu() for t in (*targets, *sources, *after)],
    )
    accounting.flush("test")
    return result


def same_books(one, other):
    assert one[:5] == other[:5]
    assert all(torch.equal(a, b) for a, b in zip(one[5], other[5], strict=True))


def scenario(how):
    torch.manual_seed(3)
    targets, sources = tensors(), tensors()
    after = []
    if how == "later in a graph":
        after.append(sources[0] + 1)  # other tensors of the graph, and one of these
    elif how == "another op in the graph":
        after.append(torch.ones(2, device="hpu") * 2)
    elif how == "a tensor twice":
        sources[1] = sources[0] = torch.randn(4).to("hpu")
        targets[0] = torch.randn(4).to("hpu")
    elif how == "transposed":
        targets[0] = torch.randn(3, 2).to("hpu").t()
    torch._foreach_copy_(targets, sources)
    after.append(targets[0] * 2)
    return targets, sources, after


@pytest.mark.parametrize(
    "how",
    ["plain", "later in a graph", "another op in the graph", "a tensor twice", "transposed"],
)
def test_the_same_books(monkeypatch, how):
    ours = books_of(lambda: scenario(how))
    monkeypatch.setattr(foreach, "copy_all", lambda *args: False)
    same_books(ours, books_of(lambda: scenario(how)))


def compilations_of_a_copy(targets, sources):
    accounting.flush("test")  # in a graph with these tensors the short way is not taken
    with emulator.record() as events:
        torch._foreach_copy_(targets, sources)
        accounting.flush("test")
    return sum(event.kind == "compile" for event in events)


def test_other_shapes_are_seen_though_the_first_tensor_is_the_same():
    targets = [torch.randn(2, 7).to("hpu"), torch.randn(4).to("hpu")]
    sources = [torch.randn(2, 7).to("hpu"), torch.randn(4).to("hpu")]
    assert compilations_of_a_copy(targets, sources) == 1
    assert compilations_of_a_copy(targets, sources) == 0
    targets[0].t_()
    sources[0] = torch.randn(7, 2).to("hpu")
    assert compilations_of_a_copy(targets, sources) == 1
    targets[1] = torch.zeros(4, dtype=torch.float64, device="hpu")
    assert compilations_of_a_copy(targets, sources) == 1
    assert torch.equal(targets[0].cpu(), sources[0].cpu())
    assert torch.equal(targets[1].cpu(), sources[1].cpu().double())


def test_without_the_compilers_check(monkeypatch):
    monkeypatch.setattr(foreach, "_check_for", lambda tensors: None)
    foreach._known.clear()
    ours = books_of(lambda: scenario("plain"))
    assert not foreach._known
    monkeypatch.setattr(foreach, "copy_all", lambda *args: False)
    same_books(ours, books_of(lambda: scenario("plain")))


def test_shapes_that_do_not_fit_raise_and_leave_no_trace():
    accounting.flush("test")
    with pytest.raises(RuntimeError, match="must match"):
        torch._foreach_copy_(tensors(2), [t.reshape(-1)[:1].expand(7) for t in tensors(2)])
    accounting.flush("test")
    targets, sources = tensors(), tensors()
    torch._foreach_copy_(targets, sources)
    assert torch.equal(targets[0].cpu(), sources[0].cpu())


def test_what_it_remembers_is_bounded():
    foreach._known.clear()
    kept = [tensors(2) for _ in range(foreach._MAX_KNOWN + 3)]
    for targets in kept:
        torch._foreach_copy_(targets[:1], [torch.randn(2, 3).to("hpu")])
        accounting.flush("test")
    assert 0 < len(foreach._known) <= foreach._MAX_KNOWN
