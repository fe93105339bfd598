"""Take the tensors out of a nested structure and put others in their places (``TensorPacker``)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class TensorPacker:
    """Splits tuples, lists and dictionaries into their tensors and the rest.

    Args:
        is_out_pack: Kept, and otherwise ignored.
        verbose: Whether values that stay as they are, and so are constants of a graph, are printed.
    """

    class Index:
        """Stands in the rest for tensor number `value`."""

        def __init__(self, value: int) -> None:
            self.value = value

        def __repr__(self) -> str:
            return f"#{self.value}"

    def __init__(self, is_out_pack: bool = False, verbose: bool = False) -> None:
        self._is_out_pack = is_out_pack
        self._verbose = verbose

    def pack(self, outs: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The tensors in order, and the structure with an `Index` for each."""
        tensors: list[Tensor] = []
        rest = self._pack(outs, tensors)
        return tuple(tensors), rest

    def _pack(self, value: Any, tensors: list[Tensor]) -> Any:
        if torch.is_tensor(value):
            tensors.append(value)
            return self.Index(len(tensors) - 1)
        if isinstance(value, tuple):
            return tuple([self._pack(item, tensors) for item in value])
        if isinstance(value, dict):
            rest = copy.copy(value)
            for key in value:
                rest[key] = self._pack(value[key], tensors)
            return rest
        if isinstance(value, list):
            return [self._pack(item, tensors) for item in value]
        if self._verbose:
            print(f"[WARNING] Variable of type {type(value)} will not be dynamic")
        return value

    def unpack(self, tensors: Any, metadata: Any) -> Any:
        """The structure that `pack` gave as its second result, with these tensors in it."""
        if isinstance(metadata, self.Index):
            return tensors[metadata.value]
        if isinstance(metadata, tuple):
            return tuple([self.unpack(tensors, item) for item in metadata])
        if isinstance(metadata, dict):
            data = copy.copy(metadata)
            for key in metadata:
                data[key] = self.unpack(tensors, metadata[key])
            return data
        if isinstance(metadata, list):
            return [self.unpack(tensors, item) for item in metadata]
        return metadata
