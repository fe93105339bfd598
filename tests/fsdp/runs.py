"""Runs under FSDP that the tests share: modules, each rank's rows, and whole weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from training import Classifier, TinyTransformer, trainer

from lightning_gaudi import GaudiFSDPStrategy, GaudiStrategy

ROWS = 8


def batches(num: int = 6, *, is_text: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Batches of token ids, or of 4 features, with 3 classes."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(11, (ROWS, 5), generator=generator)
            if is_text
            else torch.randn(ROWS, 4, generator=generator),
            torch.randint(3, (ROWS,), generator=generator),
        )
        for _ in range(num)
    ]


def loader(run: L.Trainer, *, is_text: bool = True) -> DataLoader[Any]:
    """This rank's rows of each batch."""
    own = [
        tuple(tensor.chunk(run.world_size)[run.global_rank] for tensor in batch)
        for batch in batches(is_text=is_text)
    ]
    return DataLoader(own, batch_size=None)  # type: ignore[arg-type]


def make_trainer(size: int, fsdp: dict[str, Any] | None = None, **settings: Any) -> L.Trainer:
    """A quiet trainer: on one card by `GaudiStrategy`, on several by FSDP; in lazy mode."""
    if size == 1 and fsdp is None:
        strategy: Any = GaudiStrategy()
    else:
        strategy = GaudiFSDPStrategy(**({"mode": "lazy"} | (fsdp or {})))
    return trainer(strategy=strategy, devices=size, use_distributed_sampler=False, **settings)


def classifier(
    network: Callable[[], nn.Module] = TinyTransformer, optimizer: Any = None
) -> Classifier:
    """A module with the same weights in every process."""
    torch.manual_seed(0)
    return Classifier(network(), optimizer)


def whole(value: Any) -> Any:
    """Whole tensors on the host; all ranks must ask."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value
