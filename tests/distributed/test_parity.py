"""Two cards with half of each batch equal one card with all of it, in fit and in predict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import run_ranks, values
from torch import Tensor
from torch.utils.data import DataLoader
from training import Classifier, mlp, trainer

from lightning_gaudi import GaudiStrategy

pytestmark = training.IGNORED_WARNINGS

ROWS = 8
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"gradient_clip_val": 0.05},
    "clip_value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulate": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
    "bf16-mixed": {"precision": "bf16-mixed"},
}
CASES = [(optimizer, name) for name in SETTINGS for optimizer in OPTIMIZERS]


def batches(num: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(ROWS, 4, generator=generator),
            torch.randint(3, (ROWS,), generator=generator),
        )
        for _ in range(num)
    ]


def loader(rank: int, size: int) -> DataLoader[Any]:
    """This rank's rows of each batch."""
    own = [tuple(tensor.chunk(size)[rank] for tensor in batch) for batch in batches()]
    return DataLoader(own, batch_size=None)  # type: ignore[arg-type]


def fit(optimizer: str, name: str, size: int, **ddp: Any) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(0)
    module = Classifier(mlp(), OPTIMIZERS[optimizer])
    run = trainer(
        strategy=GaudiStrategy(**ddp),
        devices=size,
        use_distributed_sampler=False,
        **SETTINGS[name],
    )
    run.fit(module, loader(run.global_rank, size))
    return module.losses, {name: value.cpu() for name, value in module.state_dict().items()}


def fit_all(cases: list[tuple[str, str]], size: int, **ddp: Any) -> list[Any]:
    return [fit(*case, size, **ddp) for case in cases]


def assert_parity(ranks: list[Any], expected: Any, tolerance: float) -> None:
    (losses, state), (other_losses, other_state) = ranks
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    assert losses != other_losses
    mean = [(a + b) / 2 for a, b in zip(losses, other_losses, strict=True)]
    assert mean == pytest.approx(expected[0], abs=tolerance)
    torch.testing.assert_close(state, expected[1], atol=tolerance, rtol=tolerance)


def test_fit(tmp_path: Path) -> None:
    found = values(run_ranks(tmp_path, fit_all, CASES, 2))
    for number, case in enumerate(CASES):
        tolerance = 5e-2 if case[1] == "bf16-mixed" else 1e-5
        assert_parity([of_rank[number] for of_rank in found], fit(*case, 1), tolerance)


@pytest.mark.parametrize(
    "ddp",
    [{"static_graph": True}, {"gradient_as_bucket_view": False, "bucket_cap_mb": 1e-5}],
    ids=["static_graph", "small_buckets"],
)
def test_settings_of_ddp(tmp_path: Path, ddp: dict[str, Any]) -> None:
    cases = [("adam", "accumulate")]
    found = values(run_ranks(tmp_path, partial(fit_all, cases, 2, **ddp)))
    assert_parity([of_rank[0] for of_rank in found], fit(*cases[0], 1), 1e-5)
