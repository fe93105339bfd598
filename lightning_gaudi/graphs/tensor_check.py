"""One question to many tensors, asked in C++: are you as those were?

PyTorch's compiler has such a check for its own guards, ``TensorGuards``. It compares Python type,
dispatch keys, dtype, device, ``requires_grad``, shape and strides, at about 50 ns a tensor where
Python takes 500. It is private, so it is used here and nowhere else, only after it has proved on
a few tensors that it tells them apart, and whoever calls `tensor_check` can do without. It keeps no
reference to the tensors, weak or strong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TensorCheck = Callable[..., bool]


def tensor_check(tensors: Sequence[Tensor]) -> TensorCheck | None:
    """A check for tensors like these.

    Args:
        tensors: At least one.

    Returns:
        A function of as many tensors. True proves that they have the same types, shapes, strides,
        dtypes and devices, and that no two are the same object. False may have other reasons as
        well, such as `requires_grad`, inference mode or autocast. None where PyTorch does not
        offer it.
    """
    return _make(tensors) if _is_trustworthy() else None


def _make(tensors: Sequence[Tensor]) -> TensorCheck | None:
    guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    make = getattr(guards, "TensorGuards", None)
    if make is None:
        return None
    try:
        check: TensorCheck = make(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
        ).check
    except (TypeError, RuntimeError):  # another signature than the one we know
        return None
    return check


@lru_cache(maxsize=1)
def _is_trustworthy() -> bool:
    """Whether the check tells apart what it must."""
    one, two = torch.zeros(2, 3), torch.zeros(4)
    check, same = _make([one, two]), _make([one, one.clone()])
    if check is None or same is None:
        return False
    others = [
        (two, one),
        (torch.zeros(3, 2).t(), two),
        (torch.zeros(2, 6)[:, ::2], two),
        (one, torch.zeros(5)),
        (one, torch.zeros(4, 1)),
        (one.double(), two),
        (one, two.int()),
        (one, torch.zeros(4, device="meta")),
    ]
    try:
        return (
            check(one.clone(), two.clone())
            and same(one, one.clone())
            and not same(one, one)
            and not any(check(*pair) for pair in others)
        )
    except (TypeError, RuntimeError):
        return False
