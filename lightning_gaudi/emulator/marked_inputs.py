"""Inputs of an HPU graph that are bound by position at each replay (``replayV3``).

A step holds plain tensors on the memory that was there at the capture. To bind an input, every
such tensor on its storage is moved to the storage of the tensor that is given, so that reads and
writes in place reach that one; afterwards it lets go of it.

The bridge binds what a graph reads under the identity of a marked tensor (1.19.0, ``HPUGraph.cpp``
and ``lazy_executor.cpp``). A view, which is read through its base, and a tensor that is marked for
the second time are not bound: what is given in their place is ignored. What then would come out
wrong raises here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_gaudi.emulator.capture import Program
from lightning_gaudi.emulator.errors import GraphCaptureError
from lightning_gaudi.emulator.memory import Block
from lightning_gaudi.emulator.tensor import HPUTensor, block_of, unwrap

# A plain tensor of a step, and how it lies in its storage: offset, shape and strides.
_Alias = tuple[Tensor, int, torch.Size, tuple[int, ...]]


class MarkedInputs:
    """The inputs that the user marked during a capture.

    Args:
        tensors: The captured tensors, in the order in which replays give theirs.

    Attributes:
        matched: Places of the tensors that are bound at a replay; empty until `seal`.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.matched: set[int] = set()
        self._captured = [unwrap(tensor) for tensor in tensors]
        self._shapes = [tensor.shape for tensor in tensors]
        self._strides = [tensor.stride() for tensor in self._captured]
        self._blocks = [block_of(t) if type(t) is HPUTensor else None for t in tensors]
        self._storages = [_storage_of(tensor) for tensor in self._captured]
        self._aliases: dict[int, list[_Alias]] = {}
        self._unbound: list[int] = []
        self._written: set[int] = set()
        self._outputs: set[int] = set()

    def seal(self, program: Program) -> None:
        """Find out what the captured program does with the tensors.

        The program no longer counts the memory of those that are bound.
        """
        by_storage: dict[int, list[Tensor]] = {}
        for tensor in (*program.tensors(), *self._captured):
            by_storage.setdefault(_storage_of(tensor), []).append(tensor)
        bound: set[Block] = set()
        num_marks = [self._storages.count(storage) for storage in self._storages]
        for place, (tensor, block) in enumerate(zip(self._captured, self._blocks, strict=True)):
            if block is None or len(by_storage[self._storages[place]]) == num_marks[place]:
                continue
            if block in bound or not _fills_storage(tensor):
                self._unbound.append(place)
                continue
            self.matched.add(place)
            bound.add(block)
            if block in program.written:
                self._written.add(place)
            self._aliases[place] = [
                (alias, int(alias.storage_offset()), alias.size(), alias.stride())
                for alias in by_storage[self._storages[place]]
            ]
        program.blocks -= bound
        program.written -= bound
        self._blocks.clear()

    def note_outputs(self, outputs: Iterable[Tensor]) -> None:
        """Take note of the bound tensors in whose memory an output lies."""
        storages = {_storage_of(unwrap(output)) for output in outputs}
        self._outputs = {place for place in self.matched if self._storages[place] in storages}

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Check what a replay is given.

        Raises:
            GraphCaptureError: A card would refuse it or answer wrongly.
        """
        if len(tensors) != len(self._captured):
            raise GraphCaptureError(
                f"replayV3: {len(self._captured)} inputs were marked, but {len(tensors)} are "
                "given. They are bound by position: a card fails on too few, ignores the rest."
            )
        for place, given in enumerate(tensors):
            if given.shape != self._shapes[place]:
                raise GraphCaptureError(
                    f"replayV3: input {place} was captured with shape {list(self._shapes[place])}, "
                    f"but {list(given.shape)} is given. A graph serves one shape; capture another."
                )
            dtype = self._captured[place].dtype
            if given.dtype != dtype:
                raise GraphCaptureError(
                    f"replayV3: input {place} was captured as {dtype}, but {given.dtype} is given. "
                    f"A card compares sizes only, and would take its bytes for {dtype} (CARD.md "
                    "3). Convert it, or keep a graph for each dtype."
                )
            if place in self.matched and type(given) is not HPUTensor:
                raise GraphCaptureError(
                    f"replayV3: input {place} is on {given.device}, but the graph reads it on the "
                    "HPU. Move it there first."
                )
            if place in self._outputs and _storage_of(unwrap(given)) != self._storages[place]:
                raise GraphCaptureError(
                    f"replayV3: an output lies in the memory of captured input {place}, and "
                    "another tensor is given for it: a card would leave that output as it was. "
                    "Return a clone from the captured forward, or pass the captured tensor."
                )

    def bind(self, tensors: Sequence[Tensor]) -> None:
        """Make the program's steps read and write the given tensors, which `check` has passed.

        Raises:
            GraphCaptureError: A card would answer wrongly.
        """
        for place in self.matched:
            self._move(place, self._readable(place, unwrap(tensors[place])).untyped_storage())
        for place in self._unbound:
            if not _has_same_bytes(self._captured[place], unwrap(tensors[place])):
                self.release()
                raise GraphCaptureError(
                    f"replayV3: input {place} was a view, or another name for an input before it, "
                    "when it was marked, and a card does not bind those: it reads the captured "
                    "memory, where other values lie than in the tensor that is given. Mark "
                    "contiguous tensors of their own (CARD.md 3), or copy into the captured one."
                )

    def release(self) -> None:
        """Let go of the tensors that `bind` took."""
        for place in self.matched:
            self._move(place, torch.UntypedStorage(0))  # type: ignore[no-untyped-call]

    def _move(self, place: int, storage: torch.UntypedStorage) -> None:
        is_empty = storage.nbytes() == 0
        with torch.inference_mode():
            for alias, offset, shape, stride in self._aliases[place]:
                if is_empty:
                    alias.set_(storage, 0, (0,), (1,))
                else:
                    alias.set_(storage, offset, shape, stride)

    def _readable(self, place: int, given: Tensor) -> Tensor:
        """The given tensor laid out as the captured one was: itself, or a copy."""
        if given.stride() == self._strides[place] and _fills_storage(given):
            return given
        if place in self._written:
            self.release()
            raise GraphCaptureError(
                f"replayV3: the graph writes to input {place} in place, and a view is given for "
                "it: a card writes to a copy of that, which is lost. Pass a contiguous tensor of "
                "its own (CARD.md 3)."
            )
        like = torch.empty_strided(self._shapes[place], self._strides[place], dtype=given.dtype)
        return like.copy_(given)


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _fills_storage(tensor: Tensor) -> bool:
    """Whether the tensor is all that lies in its storage, as one that an op has made does."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _has_same_bytes(first: Tensor, second: Tensor) -> bool:
    """Whether two plain tensors of one shape and dtype are equal; NaN equals itself."""
    return torch.equal(
        first.reshape(-1).contiguous().view(torch.uint8),
        second.reshape(-1).contiguous().view(torch.uint8),
    )
