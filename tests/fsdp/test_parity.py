"""Two cards that share a module's parameters equal one card, which has all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import run_ranks, values
from fsdp.runs import batches, classifier, loader, make_trainer, whole
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from training import Classifier, TiedGRU, mlp

from lightning_gaudi.modules.optimization import parameter_groups

pytestmark = training.IGNORED_WARNINGS


def tied() -> nn.Module:
    return nn.Sequential(TiedGRU(), nn.Flatten(), nn.Linear(5 * 11, 3))


class Nested(nn.Module):
    """Blocks in a block, an odd number of rows, weights used outside their module's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5)) for _ in "abc")
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0, 1.0, 0.5]))
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens).mean(1)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden)) * self.scale
        return hidden @ self.head.weight.T + self.head.bias


class ByHand(Classifier):
    """Manual optimization: two losses and two steps in a training step, one after the other."""

    def __init__(self) -> None:
        super().__init__(training.TinyTransformer())
        self.second = nn.Linear(3, 3)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        for optimizer in (first, second):
            logits = self.second(self.network(batch[0]))
            loss = nn.functional.cross_entropy(logits, batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.losses.append(loss.item())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.network.parameters(), 0.1),
            torch.optim.Adam(self.second.parameters(), 0.01),
        ]


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    # The bias of attention's keys has no gradient but rounding, which Adam makes a step of.
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, eps=1e-3),
}
WITH_SGD = ("plain", "clip", "accumulate")
# name: (network, FSDP's settings, the Trainer's settings, tolerance)
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], float]] = {
    "plain": (training.TinyTransformer, {}, {}, 1e-5),
    "clip": (training.TinyTransformer, {}, {"gradient_clip_val": 0.05}, 1e-5),
    "clip_value": (
        training.TinyTransformer,
        {},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        1e-5,
    ),
    "accumulate": (
        training.TinyTransformer,
        {"reshard_after_forward": False},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
        1e-5,
    ),
    "tied": (tied, {}, {"gradient_clip_val": 0.5}, 1e-5),
    "nested": (Nested, {"activation_checkpointing": True}, {}, 1e-5),
    "policy": (
        Nested,
        {
            "auto_wrap_policy": ["network.blocks.*", "Embedding"],
            "activation_checkpointing": {nn.Embedding},
        },
        {},
        1e-5,
    ),
    "bf16-mixed": (training.TinyTransformer, {}, {"precision": "bf16-mixed"}, 2e-2),
    "bf16-true": (training.TinyTransformer, {}, {"precision": "bf16-true"}, 5e-2),
    "bf16-gathered": (
        training.TinyTransformer,
        {
            "mixed_precision": MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        },
        {"precision": "bf16-mixed"},
        5e-2,
    ),
}


ALL = [(name, "adamw") for name in CASES] + [(name, "sgd") for name in WITH_SGD]


def fit(name: str, optimizer: str, size: int) -> tuple[list[float], Any]:
    network, fsdp, settings, _ = CASES[name]
    module = classifier(network, OPTIMIZERS[optimizer])
    run = make_trainer(size, fsdp if size > 1 else None, **settings)
    run.fit(module, loader(run))
    if size > 1:
        assert isinstance(module, FSDPModule)
        assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
        assert all(parameter.device.type == "hpu" for parameter in module.parameters())
    return module.losses, whole(module.state_dict())


def fit_all(size: int) -> list[Any]:
    return [fit(name, optimizer, size) for name, optimizer in ALL]


def assert_equal(ranks: list[Any], expected: Any, tolerance: float) -> None:
    (losses, state), (other_losses, other_state) = ranks
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    assert losses != other_losses
    mean = [(a + b) / 2 for a, b in zip(losses, other_losses, strict=True)]
    assert mean == pytest.approx(expected[0], abs=tolerance)
    assert list(state) == list(expected[1])
    torch.testing.assert_close(state, expected[1], atol=tolerance, rtol=tolerance)


@pytest.mark.slow
def test_fit(tmp_path: Path) -> None:
    found = values(run_ranks(tmp_path, fit_all, 2))
    for number, (name, optimizer) in enumerate(ALL):
        assert_equal([of[number] for of in found], fit(name, optimizer, 1), CASES[name][3])


def fit_by_hand(size: int) -> Any:
    torch.manual_seed(0)
    module = ByHand()
    run = make_trainer(size)
    run.fit(module, loader(run))
    return module.losses, whole(module.state_dict())


def fit_in_groups(size: int) -> Any:
    module = classifier(optimizer=None)
    module._optimizer = lambda _: torch.optim.AdamW(parameter_groups(module, 0.3), 0.01, eps=1e-3)
    run = make_trainer(size)
    run.fit(module, loader(run))
    return module.losses, whole(module.state_dict())


def fit_features(size: int) -> Any:
    """No blocks but two Linears, of 8 and of 3 rows."""
    module = classifier(mlp)
    run = make_trainer(size, gradient_clip_val=0.1)
    run.fit(module, loader(run, is_text=False))
    return module.losses, whole(module.state_dict())


def other_fits(size: int) -> list[Any]:
    return [function(size) for function in (fit_by_hand, fit_in_groups, fit_features)]


@pytest.mark.slow
def test_other_fits(tmp_path: Path) -> None:
    found = values(run_ranks(tmp_path, other_fits, 2))
    for number, expected in enumerate(other_fits(1)):
        assert_equal([of[number] for of in found], expected, 1e-5)


def predict(size: int) -> Any:
    module = classifier(optimizer=OPTIMIZERS["sgd"])
    run = make_trainer(size, max_epochs=1)
    first = run.predict(module, loader(run))  # before anything was trained
    run.fit(module, loader(run), loader(run))
    metrics = run.validate(module, loader(run), verbose=False)
    assert run.test(module, loader(run), verbose=False)[0]["test_loss"] > 0
    after = run.predict(module, loader(run))
    if size > 1:  # nothing stays gathered where no backward follows
        assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    run = make_trainer(size, max_epochs=1)
    run.fit(module, loader(run))  # goes on with the same module, and a new strategy
    return first, after, metrics[0]["val_loss"], module.losses, whole(module.state_dict())


@pytest.mark.slow
def test_all_stages_and_a_second_fit(tmp_path: Path) -> None:
    (first, after, loss, losses, state), other = values(run_ranks(tmp_path, predict, 2))
    expected = predict(1)
    for own, others, whole_batch in (
        (first, other[0], expected[0]),
        (after, other[1], expected[1]),
    ):
        rows = [torch.cat(pair) for pair in zip(own, others, strict=True)]
        torch.testing.assert_close(rows, whole_batch, atol=1e-5, rtol=1e-5)
    assert (loss + other[2]) / 2 == pytest.approx(expected[2], abs=1e-5)
    assert len(losses) == 2 * len(batches())
    assert_equal([(losses, state), other[3:]], expected[3:], 1e-5)
