"""What a refused capture must put back: buffers that the forward wrote to, and random states.

A forward that is refused half-way has already run in part. Running it once more, op by op, must
start from where it started: with the buffers and the random numbers of before. Parameters are not
copied, for that would double the model's memory; a forward that writes to them cannot be undone.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.runtime import random as device_random


class HostRandomness:
    """The states of Python's and NumPy's own random numbers, which no dispatch mode can see.

    Generators that the user made (``random.Random()``, ``numpy.random.default_rng()``) are not
    among them.
    """

    def __init__(self) -> None:
        self._states = _host_states()

    def changed(self) -> str | None:
        """Which library has drawn since; None if none has."""
        for name, state in _host_states().items():
            if not _is_same(state, self._states.get(name, state)):
                return name
        return None

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self._states["random"])
        if "numpy.random" in self._states:
            sys.modules["numpy"].random.set_state(self._states["numpy.random"])


class Snapshot:
    """Buffers and random states as they are now.

    Args:
        weights: Parameters and buffers; the buffers are cloned, and the clones are held.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.host_randomness = HostRandomness()
        self._buffers = [
            (tensor, tensor.detach().clone())
            for tensor in weights
            if not isinstance(tensor, nn.Parameter)
        ]
        self._device_state = device_random.get_state()

    def holds(self, storage: int) -> bool:
        """Whether the memory at this storage's address can be put back."""
        return any(tensor.untyped_storage()._cdata == storage for tensor, _ in self._buffers)

    def restore(self, written: set[int]) -> None:
        """Put everything back. Not inside a capture.

        Args:
            written: Addresses of the storages that were written to; no other buffer is touched.
        """
        with torch.no_grad():
            for tensor, before in self._buffers:
                if tensor.untyped_storage()._cdata in written:
                    tensor.copy_(before)
        self.host_randomness.restore()
        device_random.set_state(self._device_state)


def _host_states() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate()}
    numpy = sys.modules.get("numpy")
    if hasattr(numpy, "random"):
        states["numpy.random"] = numpy.random.get_state()  # type: ignore[union-attr]
    return states


def _is_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    # NumPy's state holds an array, whose == is an array.
    return all(
        a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b
        for a, b in zip(one, other, strict=True)
    )
