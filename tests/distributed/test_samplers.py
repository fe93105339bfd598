"""Which rows each rank is given, and that predictions of all ranks make one whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import training
from distributed.jobs import run_ranks, values
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from training import trainer

from lightning_gaudi import PredictionOrder
from lightning_gaudi.data import BucketBatchSampler

pytestmark = training.IGNORED_WARNINGS

ROWS = 7


class Rows(L.LightningModule):
    """Notes the rows of each batch; a row's prediction is its square times the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: dict[str, list[list[int]]] = {}

    def note(self, stage: str, batch: Tensor) -> Tensor:
        self.seen.setdefault(stage, []).append(batch.tolist())
        return (self.weight * batch).sum()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.note("fit", batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("validate", batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("test", batch)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.note("predict", batch)
        return self.weight * batch * batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


class Pairs:
    """A batch sampler of the user's own, which knows nothing of ranks."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        numbers = list(self.numbers)
        return iter([numbers[i : i + 2] for i in range(0, len(numbers), 2)])

    def __len__(self) -> int:
        return (len(self.numbers) + 1) // 2


class Writer(BasePredictionWriter):
    """Notes what Lightning hands over for an epoch."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, rows: Any) -> None:
        self.written = (torch.cat(predictions).tolist(), [*rows[0]])


def run_stages(loader: Any, devices: int = 2, **settings: Any) -> dict[str, Any]:
    module = Rows()
    run = trainer(devices=devices, max_epochs=1, **settings)
    run.fit(module, loader, loader)
    run.test(module, loader, verbose=False)
    return module.seen


def on_two_ranks() -> dict[str, Any]:
    dataset = range(ROWS)
    plain = DataLoader(dataset, batch_size=2)  # type: ignore[arg-type]
    found = {"injected": run_stages(plain)}
    found["not_injected"] = run_stages(plain, use_distributed_sampler=False)
    own = DistributedSampler(dataset, 2, torch.distributed.get_rank(), shuffle=False)  # type: ignore[arg-type]
    found["own"] = run_stages(DataLoader(dataset, batch_size=2, sampler=own))  # type: ignore[arg-type]
    pairs = DataLoader(dataset, batch_sampler=Pairs(range(ROWS)))  # type: ignore[arg-type]
    found["pairs"] = run_stages(pairs, use_distributed_sampler=False)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for name, given in (("buckets", {}), ("buckets_told", {"rank": rank, "world_size": size})):
        sampler = BucketBatchSampler([1] * ROWS, [1], 2, **given)
        found[name] = run_stages(DataLoader(dataset, batch_sampler=sampler))  # type: ignore[arg-type]
    found["predicted"] = {name: predict(name, plain) for name in ("plain", "ordered")}
    return found


def predict(name: str, loader: Any, devices: int = 2) -> Any:
    module, writer = Rows(), Writer()
    callbacks = [writer] if name == "plain" else [PredictionOrder()]
    result = trainer(devices=devices, callbacks=callbacks).predict(module, loader)
    if name == "ordered":
        return torch.stack([*result]).tolist()
    return {"seen": module.seen["predict"], "written": writer.written}


def test_rows_of_each_rank(tmp_path: Path) -> None:
    ranks = values(run_ranks(tmp_path, on_two_ranks))
    every = [[0, 1], [2, 3], [4, 5], [6]]
    for rank, found in enumerate(ranks):
        # Stock Lightning's samplers: evaluation in order, the last row filled up from the start.
        own = [[0, 2], [4, 6]] if rank == 0 else [[1, 3], [5, 0]]
        assert found["injected"]["validate"] == found["injected"]["test"] == own
        assert found["own"] == {"fit": own, "validate": own, "test": own}
        for name in ("not_injected", "pairs"):
            assert found[name] == {"fit": every, "validate": every, "test": every}, name
        assert found["buckets"] == found["buckets_told"]
    trained = [row for found in ranks for batch in found["injected"]["fit"] for row in batch]
    assert len(trained) == ROWS + 1
    assert set(trained) == set(range(ROWS))
    for stage in ("fit", "validate", "test"):
        rows = [row for found in ranks for batch in found["buckets"][stage] for row in batch]
        assert set(rows) == set(range(ROWS))
        # Equal steps on both, so that no rank waits for ever.
        assert len({len(found["buckets"][stage]) for found in ranks}) == 1


def test_predictions_make_one_whole(tmp_path: Path) -> None:
    ranks = [found["predicted"] for found in values(run_ranks(tmp_path, on_two_ranks))]
    loader = DataLoader(range(ROWS), batch_size=2)  # type: ignore[arg-type]
    on_one_card = predict("ordered", loader, devices=1)
    assert on_one_card == [float(row * row) for row in range(ROWS)]
    for rank, found in enumerate(ranks):
        assert found["ordered"] == on_one_card
        # A writer of stock Lightning's is told the rows of its rank. Prediction fills none up.
        own = [[0, 2], [4, 6]] if rank == 0 else [[1, 3], [5]]
        squares = [float(row * row) for batch in own for row in batch]
        assert found["plain"] == {"seen": own, "written": (squares, own)}
