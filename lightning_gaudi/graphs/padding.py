"""Partial batches: padded to a batch size that has a graph, and their results sliced.

The last batch of a data set has fewer rows than the others, and would cost a capture of its own.
Instead its last row is repeated until it has as many rows as a captured batch (a row of zeros, all
masked, could give NaN: CARD.md 7); the graph runs, and the result's first rows are the answer.

That is right only where rows do not depend on each other, and nobody says whether they do. So:

- Which dimension is the batch is read off two calls, the captured one and this one: all inputs that
  differ must differ in dimension 0 only, and all from the same number of rows to the same. An input
  that is the same in both but as long as either batch makes that doubtful: nothing is padded.
- Every result must have the batch dimension. A mean loss has not, and gets a graph of its own.
- A forward that writes in place would write the padding too, and one that draws random numbers
  would draw more of them: neither is ever padded.
- The first padded result for each two batch sizes is compared with the unpadded call run op by op,
  and must be the same, bit for bit, whatever rows the padding repeats. If not, padding is given up
  for such calls, with a warning. The answer to such a first call is the one op by op.

Kernels may add up in another order for another number of rows, so a padded result may differ from
op by op in the last bits. How much is taken for that: `TOLERANCES` times the largest magnitude in
the result. Rows that mix only for values which the first batch did not have are not noticed.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gaudi.graphs.padded_call import KnownGraph, PaddedCall, PaddingQuestion
from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten, rebuild

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
"""Largest difference that another order of adding may make, relative to the largest magnitude: a
few units in the last place of the 16-bit types, into which each layer rounds, and a hundred of
float32, where sums over thousands of products differ by that. Mixing rows makes far more."""


class Fit(NamedTuple):
    """How a call fits a captured one.

    Attributes:
        rows: Rows of the call.
        captured_rows: Rows of the captured call.
        batched: Places of the inputs that have them in dimension 0.
    """

    rows: int
    captured_rows: int
    batched: tuple[int, ...]


# The padded tensors by their ids, each with the one that it stands for.
_Originals = dict[int, tuple[Tensor, Tensor]]


def find_fit(inputs: Sequence[Tensor], graphs: Sequence[KnownGraph]) -> Fit | None:
    """The smallest captured batch that a call can be padded to; None if there is none.

    Args:
        inputs: The device tensors of the call.
        graphs: Graphs of calls that differ from it in their device tensors only.
    """
    if len({tensor.untyped_storage()._cdata for tensor in inputs}) < len(inputs):
        return None  # padded copies would not share memory as these do
    fits = [fit for graph in graphs if (fit := _fit(inputs, graph)) is not None]
    return min(fits, key=lambda fit: fit.captured_rows, default=None)


def _fit(inputs: Sequence[Tensor], graph: KnownGraph) -> Fit | None:
    if graph.writes_in_place or graph.draws_random or len(inputs) != len(graph.shapes):
        return None
    batched: list[int] = []
    sizes: set[tuple[int, int]] = set()
    for place, (tensor, shape, dtype) in enumerate(
        zip(inputs, graph.shapes, graph.dtypes, strict=True)
    ):
        if tensor.dtype != dtype or tensor.dim() != len(shape) or tensor.shape[1:] != shape[1:]:
            return None
        if tensor.shape != shape:
            batched.append(place)
            sizes.add((tensor.shape[0], shape[0]))
    if len(sizes) != 1:
        return None
    ((rows, captured_rows),) = sizes
    if not 0 < rows < captured_rows:
        return None
    for place, tensor in enumerate(inputs):
        if place not in batched and tensor.dim() and tensor.shape[0] in (rows, captured_rows):
            return None
    if not graph.output_shapes:
        return None
    if any(not shape or shape[0] != captured_rows for shape in graph.output_shapes):
        return None
    return Fit(rows, captured_rows, tuple(batched))


def pad(tensor: Tensor, fit: Fit, *, unevenly: bool = False) -> Tensor:
    """A copy with as many rows as were captured.

    Args:
        tensor: Of shape (fit.rows, ...).
        fit: The two numbers of rows.
        unevenly: Whether the padding is other rows than the last one, some more often than others
            so that means over the rows change too.

    Returns:
        A new tensor of shape (fit.captured_rows, ...).
    """
    missing = fit.captured_rows - fit.rows
    with torch.no_grad():
        if not unevenly:
            return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
        again = torch.cat([tensor[:1], tensor])[:missing]
        first = tensor[:1].expand(missing - again.shape[0], *tensor.shape[1:])
        return torch.cat([tensor, again, first])


def differs(result: Any, expected: Any, low_precision: torch.dtype | None = None) -> str | None:
    """Whether a padded and sliced result differs from the one op by op by more than rounding.

    Args:
        result: The padded call's, sliced.
        expected: The unpadded call's.
        low_precision: A dtype in which part of it was computed, as under autocast.

    Returns:
        How it differs, in words; None if it does not.
    """
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    if flatten(result, ours) != flatten(expected, theirs):
        return "the results have other parts or other constants"
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return (
                f"a result has shape {tuple(one.shape)} and {one.dtype}, run op by op "
                f"{tuple(other.shape)} and {other.dtype}"
            )
        if torch.equal(one, other):
            continue
        if not one.is_floating_point():
            return "whole numbers or truth values differ"
        tolerance = max(TOLERANCES.get(d, 0.0) for d in (one.dtype, low_precision or one.dtype))
        a, b = one.double(), other.double()
        known = torch.isfinite(b)
        largest = b[known].abs().max().item() if known.any() else 0.0
        if not torch.allclose(a, b, rtol=0.0, atol=tolerance * largest, equal_nan=True):
            difference = (a - b)[known].abs().max().item() if known.any() else float("nan")
            return f"values differ by up to {difference:.1e}, the largest being {largest:.1e}"
    return None


class BatchPadding:
    """Answers calls that have no graph by one with more rows that has one.

    Args:
        name: What messages call the callable.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._checked: set[tuple[Hashable, Fit]] = set()
        self._given_up: set[Hashable] = set()

    def __call__(self, question: PaddingQuestion) -> PaddedCall | None:
        """The padded call to replay, or None to capture this one."""
        if question.family in self._given_up:
            return None
        fit = find_fit(question.inputs, question.graphs)
        if fit is None:
            return None
        originals: _Originals = {}
        args, kwargs = _padded(question, fit, originals)

        def finish(result: Any) -> Any:
            if (question.family, fit) in self._checked:
                return _slice(result, fit, originals)
            return self._check(question, fit, result, originals)

        return PaddedCall(args, kwargs, finish)

    def _check(
        self, question: PaddingQuestion, fit: Fit, result: Any, originals: _Originals
    ) -> Any:
        """Compare the first padded result; returns the one op by op."""
        ours = _slice(result, fit, originals)  # copied: the next replay may overwrite the result
        expected = question.run_eagerly()
        difference = _difference(ours, expected)
        # A single row needs no more: whatever comes, its padding is copies of it.
        if difference is None and fit.rows > 1:
            if _rows_are_equal(question.inputs, fit):
                return expected  # this says nothing about other batches
            others: _Originals = {}
            args, kwargs = _padded(question, fit, others, unevenly=True)
            if not _is_identical(ours, _slice(question.call(*args, **kwargs), fit, others)):
                difference = "its rows depend on what it was padded with"
        if difference is not None:
            self._given_up.add(question.family)
            warnings.warn(
                f"{self._name}: a batch of {fit.rows} rows was padded to {fit.captured_rows}, and "
                f"{difference}. Such calls are padded no more: each batch size gets a graph of its "
                "own. pad_batch=False says so from the start.",
                stacklevel=5,
            )
        else:
            self._checked.add((question.family, fit))
        return expected


def _padded(
    question: PaddingQuestion, fit: Fit, originals: _Originals, *, unevenly: bool = False
) -> tuple[Any, Any]:
    """The padded arguments; `originals` gets the tensor that each padded one stands for, by id."""
    by_id = {id(tensor): tensor for tensor in question.inputs}
    for place in fit.batched:
        tensor = question.inputs[place]
        padded = pad(tensor, fit, unevenly=unevenly)
        by_id[id(tensor)] = padded
        originals[id(padded)] = (padded, tensor)
    found: list[Tensor] = []
    call = (question.args, question.kwargs)
    flatten(call, found)
    args, kwargs = rebuild(call, iter([by_id.get(id(tensor), tensor) for tensor in found]))
    return args, kwargs


def _slice(result: Any, fit: Fit, originals: _Originals) -> Any:
    """The result with the first rows of each tensor, copied; an argument is given back as such."""
    found: list[Tensor] = []
    flatten(result, found)
    sliced: dict[int, Tensor] = {}
    for tensor in found:
        if id(tensor) not in sliced:
            if id(tensor) in originals:
                sliced[id(tensor)] = originals[id(tensor)][1]
            else:
                # Copied, because a view would keep, and a file would get, all the rows.
                sliced[id(tensor)] = tensor[: fit.rows].clone()
    return rebuild(result, iter([sliced[id(tensor)] for tensor in found]))


def _difference(ours: Any, expected: Any) -> str | None:
    autocast = torch.get_autocast_dtype("hpu") if torch.is_autocast_enabled("hpu") else None
    try:
        return differs(ours, expected, autocast)
    except UnsupportedValueError as error:
        return f"the result holds {error.what}"


def _rows_are_equal(inputs: Sequence[Tensor], fit: Fit) -> bool:
    """Whether all rows of the batch are the same."""
    return all(
        torch.equal(inputs[place], inputs[place][:1].expand_as(inputs[place]))
        for place in fit.batched
    )


def _is_identical(ours: Any, theirs: Any) -> bool:
    """Whether two results have the same bits; NaN equals NaN."""
    one: list[Tensor] = []
    other: list[Tensor] = []
    return flatten(ours, one) == flatten(theirs, other) and all(
        torch.equal(a, b)
        or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
        for a, b in zip(one, other, strict=True)
    )
