"""The hook by which padding answers a call whose key has no graph.

`GraphedForward` asks it after the key was looked up and not found, and before anything is captured,
so calls that have a graph never pay for it. It may answer with another call, a longer one that
has a graph, and with what is to be done with that call's result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_gaudi.graphs.captured import CapturedGraph
from lightning_gaudi.graphs.key import Key, constants_in, inputs_in


class KnownGraph(NamedTuple):
    """A graph that is there for calls of the same structure and constants, in the same modes.

    Attributes:
        shapes: The shapes of its input tensors, in the order of `PaddingQuestion.inputs`.
        dtypes: Their dtypes.
        writes_in_place: Whether its forward writes to inputs, parameters or buffers: a padded call
            would write padding too, and the forward must not be run once more to compare.
        draws_random: Whether its forward draws random numbers, of which a padded call draws more.
        output_shapes: The shapes of its results' tensors.
    """

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    writes_in_place: bool
    draws_random: bool
    output_shapes: tuple[torch.Size, ...]


@dataclass(frozen=True, kw_only=True)
class PaddingQuestion:
    """A call that has no graph.

    Attributes:
        args: Its positional arguments, as given.
        kwargs: Its keyword arguments, as given.
        inputs: The device tensors among them in order, each object once.
        family: Tells calls of other structure, constants or modes apart.
        graphs: The graphs of such calls; maybe none.
        run_eagerly: Runs this very call op by op, uncounted; to compare with.
        call: Calls the graphed callable with other arguments, which are not padded.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[Tensor]
    family: Hashable
    graphs: Sequence[KnownGraph]
    run_eagerly: Callable[[], Any]
    call: Callable[..., Any]


class PaddedCall(NamedTuple):
    """What is called instead.

    Attributes:
        args: Positional arguments. The call should have a graph; if not, one is captured.
        kwargs: Keyword arguments.
        finish: Makes the result that the caller gets of the padded call's result, whose tensors
            are the caller's own (or the graph's, without ``clone_outputs``). It may compare, warn,
            and answer with something else.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    finish: Callable[[Any], Any]


class Padding(Protocol):
    """Answers calls whose key has no graph."""

    def __call__(self, question: PaddingQuestion) -> PaddedCall | None:
        """Another call to replay in place of this one; None to capture this one."""


def family_of(key: Key) -> Hashable:
    """What calls have in common that differ in their input tensors only."""
    return key[0], constants_in(key[1])


def known_graphs(graphs: Iterable[CapturedGraph], key: Key) -> list[KnownGraph]:
    """Those of some graphs that are for calls of a key's family."""
    family = family_of(key)
    known: list[KnownGraph] = []
    for captured in graphs:
        if family_of(captured.key) == family:
            inputs = inputs_in(captured.key[1])
            shapes, dtypes = (tuple(entry[i] for entry in inputs) for i in (0, 1))
            known.append(
                KnownGraph(
                    shapes,
                    dtypes,
                    captured.writes_in_place,
                    captured.draws_random,
                    tuple(tensor.shape for tensor in captured.output_tensors),
                )
            )
    return known
