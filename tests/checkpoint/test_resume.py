"""A fit that was broken off ends with the weights of an unbroken one, bit for bit on one card.

The dataloader without a state of its own must be known to Lightning as one that can go on: its
warning of an order that is lost is an error here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.resumed import EPOCHS, NUM_BATCHES, Noisy, assert_same_end, fit
from torch.utils.data import DataLoader

from lightning_gaudi.data.exact_resume import KEY

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be.*"),
    pytest.mark.filterwarnings("ignore:.*`configure_callbacks`.*"),
]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"optimizer": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)}, id="momentum"),
        pytest.param({"validation": DataLoader(Noisy(), 4)}, id="validation"),
        pytest.param(
            {"validation": DataLoader(Noisy(), 4), "val_check_interval": 2}, id="validation inside"
        ),
        pytest.param({"limit_train_batches": 4}, id="part of an epoch"),
    ],
)
def test_resume_against_an_unbroken_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    unbroken = fit(tmp_path, **settings)
    checkpoints = sorted(tmp_path.iterdir())
    steps = settings.get("limit_train_batches", NUM_BATCHES)
    assert len(checkpoints) >= steps * EPOCHS
    names = {"step=1", f"step={steps + 1}", "end-epoch=0", "end-epoch=1"}
    if "validation" not in settings:
        # Lightning passes over a validation that was to follow the step, and what it would draw.
        names |= {f"step={steps}", f"step={steps + 2}"}
    for path in checkpoints:
        if path.stem not in names:
            continue
        resumed = fit(ckpt_path=path, seed=7, **settings)
        assert resumed.seen, path
        assert_same_end(resumed, unbroken)


def test_accumulation(tmp_path: Path) -> None:
    unbroken = fit(tmp_path, accumulate_grad_batches=2)
    for step in (1, 2, 4, 5):
        path = tmp_path / f"step={step}.ckpt"
        assert_same_end(fit(ckpt_path=path, seed=7, accumulate_grad_batches=2), unbroken)


def test_a_dataloader_with_a_generator_of_its_own(tmp_path: Path) -> None:
    def settings() -> dict[str, Any]:
        return {"generator": torch.Generator().manual_seed(3)}

    unbroken = fit(tmp_path, loader_settings=settings())
    for name in ("step=2", "step=7", "end-epoch=1"):
        path = tmp_path / f"{name}.ckpt"
        assert_same_end(fit(ckpt_path=path, seed=7, loader_settings=settings()), unbroken)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_workers_that_draw_nothing(tmp_path: Path) -> None:
    settings = {"num_workers": 1, "multiprocessing_context": "fork"}
    unbroken = fit(tmp_path, loader_settings=settings)
    for name in ("step=2", "end-epoch=0", "step=8"):
        path = tmp_path / f"{name}.ckpt"
        assert_same_end(fit(ckpt_path=path, seed=7, loader_settings=settings), unbroken)


def test_a_resumed_run_can_be_resumed(tmp_path: Path) -> None:
    unbroken = fit(tmp_path / "first")
    (tmp_path / "first" / "step=2.ckpt").rename(tmp_path / "begin.ckpt")
    for path in (tmp_path / "first").iterdir():
        path.unlink()
    fit(tmp_path / "first", tmp_path / "begin.ckpt", seed=7)
    for name in ("step=3", "step=4", "step=11"):
        path = tmp_path / "first" / f"{name}.ckpt"
        assert_same_end(fit(ckpt_path=path, seed=8), unbroken)
        # Stock Lightning refuses a state of a dataloader that has none there.
        loop = torch.load(path, weights_only=True)["loops"]["fit_loop"]["state_dict"]
        assert "combined_loader" not in loop


def test_stock_lightning_on_the_cpu_goes_on_from_our_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path)
    path = tmp_path / "step=5.ckpt"
    net = fit(ckpt_path=path, accelerator="cpu", strategy="auto")
    assert len(net.seen) == NUM_BATCHES * EPOCHS - 5
    content = torch.load(path, weights_only=True)
    assert content[KEY]["world_size"] == 1
    assert sorted(content[KEY]["ranks"][0]) == ["hpu", "numpy", "orders", "python", "torch"]


def test_ours_goes_on_from_a_checkpoint_of_stock_lightning(tmp_path: Path) -> None:
    fit(tmp_path, accelerator="cpu", strategy="auto")
    net = fit(ckpt_path=tmp_path / "step=5.ckpt")
    assert len(net.seen) == NUM_BATCHES * EPOCHS - 5
    with pytest.warns(UserWarning, match="not resumable"):  # its order is nowhere to be found
        fit(ckpt_path=tmp_path / "step=7.ckpt")


def test_only_a_fit_takes_the_random_numbers(tmp_path: Path) -> None:
    from training import trainer

    net = fit(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.hpu.get_rng_state()  # type: ignore[attr-defined]
    data = Noisy(is_noisy=False)
    batches = DataLoader(data, 4, generator=torch.Generator())  # draws from no other
    for name in ("validate", "test", "predict"):
        getattr(trainer(), name)(net, batches, ckpt_path=tmp_path / "step=5.ckpt")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.hpu.get_rng_state(), before[1])  # type: ignore[attr-defined]


def test_a_fit_after_a_validation_of_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    from checkpoint.resumed import Net, loader
    from training import trainer

    net = fit(tmp_path)
    nets = []
    for with_validation in (False, True):
        run = trainer(max_epochs=1)
        if with_validation:
            batches = DataLoader(Noisy(is_noisy=False), 4, generator=torch.Generator())
            run.validate(net, batches, ckpt_path=tmp_path / "step=5.ckpt", verbose=False)
        nets.append(Net())
        torch.manual_seed(5)
        run.fit(nets[-1], loader(generator=torch.Generator().manual_seed(2)))
    assert nets[0].begun_with == nets[1].begun_with


def test_weights_alone_hold_no_random_numbers(tmp_path: Path) -> None:
    from training import features, trainer

    run = trainer()
    net = fit()
    run.fit(net, features())
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    run.save_checkpoint(tmp_path / "all.ckpt")
    assert KEY not in torch.load(tmp_path / "weights.ckpt", weights_only=True)
    assert KEY in torch.load(tmp_path / "all.ckpt", weights_only=True)


def test_a_checkpoint_of_another_world_size(tmp_path: Path) -> None:
    fit(tmp_path)
    content = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    content[KEY]["world_size"] = 2
    content[KEY]["ranks"][1] = content[KEY]["ranks"][0]
    torch.save(content, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match="of a run with 2 processes, and this one has 1"):
        net = fit(ckpt_path=tmp_path / "two.ckpt")
    assert len(net.seen) == NUM_BATCHES * EPOCHS - 5
