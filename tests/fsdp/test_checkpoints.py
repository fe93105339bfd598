"""Checkpoints of sharded modules: files and folders, from one card to many and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import training
from distributed.jobs import run_ranks, values
from fsdp.runs import classifier, loader, make_trainer, whole
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.distributed.tensor import DTensor
from training import Classifier, mlp

from lightning_gaudi import GaudiFSDPStrategy
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.optimization import parameter_groups
from lightning_gaudi.sharding import folders, states

pytestmark = [
    *training.IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:The checkpoint is of a run with .* processes"),
]

KINDS = ("full", "sharded")


def module() -> Classifier:
    """With two groups of parameters, in another order than the module's own."""
    made = classifier()
    made._optimizer = lambda _: torch.optim.AdamW(
        parameter_groups(made, 0.3), 0.01, eps=1e-3, amsgrad=True
    )
    return made


def start(size: int, kind: str, max_epochs: int = 1, **settings: Any) -> L.Trainer:
    fsdp = {"state_dict_type": kind} if kind else None
    return make_trainer(size, fsdp, max_epochs=max_epochs, **settings)


def state(net: Classifier, run: L.Trainer) -> Any:
    optimizer = run.optimizers[0].state_dict()
    return whole(net.state_dict()), whole(optimizer["state"]), optimizer["param_groups"]


def fit(size: int, kind: str, path: str = "", *, saves: str = "", epochs: int = 2) -> Any:
    """Fit up to an epoch, from a checkpoint or from the start, and write one at the end."""
    net = module()
    run = start(size, kind, epochs)
    run.fit(net, loader(run), ckpt_path=path or None)
    if saves:
        run.save_checkpoint(saves)
    return state(net, run)


def save_and_resume(folder: str, size: int) -> dict[str, Any]:
    """Each kind, written after an epoch and resumed under each kind."""
    found = {"unbroken": fit(size, "full")}
    for kind in KINDS:
        path = f"{folder}/{kind}.ckpt"
        found[f"{kind} saved"] = fit(size, kind, saves=path, epochs=1)
        for resumed in KINDS:
            found[f"{kind} as {resumed}"] = fit(size, resumed, path)
    found["of one card"] = fit(size, "sharded", f"{folder}/one.ckpt")
    return found


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    one_card = fit(1, "", saves=str(tmp_path / "one.ckpt"), epochs=1)
    unbroken = fit(1, "")
    ranks = values(run_ranks(tmp_path, save_and_resume, str(tmp_path), 2))
    for found in ranks:
        for name in ("full as full", "full as sharded", "sharded as full", "sharded as sharded"):
            assert_same(found[name], found["unbroken"])
        assert_same(found["of one card"], unbroken, 1e-5)
        assert_same(found["unbroken"], unbroken, 1e-5)
        assert_same(found["full saved"], one_card, 1e-5)

    # A file of FSDP is one that a single card might have written.
    content = torch.load(tmp_path / "full.ckpt", weights_only=True)
    reference = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert content.keys() == reference.keys()
    for name in ("state_dict", "optimizer_states"):
        assert_same(content[name], reference[name], 1e-5)
    assert all(type(value) is torch.Tensor for value in content["state_dict"].values())
    for path in (tmp_path / "full.ckpt", tmp_path / "sharded.ckpt"):
        for kind in KINDS:  # on one card, in both kinds
            assert_same(fit(1, kind, str(path)), unbroken, 1e-5)
    assert_same(fit(1, "", str(tmp_path / "full.ckpt")), unbroken, 1e-5)

    # Stock Lightning on the CPU goes on from it.
    net = module()
    run = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(net, loader(run), ckpt_path=tmp_path / "full.ckpt")
    assert_same(state(net, run), unbroken, 1e-5)

    # Lightning's own tool makes one file of them.
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    weights = _load_distributed_checkpoint(tmp_path / "sharded.ckpt")["state_dict"]
    assert_same(dict(weights), dict(content["state_dict"]))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"full.ckpt", "sharded.ckpt", "one.ckpt"}


def load_in_three(path: str) -> Any:
    """The weights and optimizer state that a folder gives three cards, before any step."""
    net = module()
    run = start(3, "sharded", 1)
    run.fit(net, loader(run), ckpt_path=path)  # at its end already
    return state(net, run)


@pytest.mark.slow
def test_another_number_of_cards(tmp_path: Path) -> None:
    path = str(tmp_path / "parts.ckpt")
    saved = values(run_ranks(tmp_path, _save_two, path))
    for found in values(run_ranks(tmp_path, load_in_three, path, size=3)):
        assert_same(found, saved[0])


def _save_two(path: str) -> Any:
    return fit(2, "sharded", saves=path, epochs=1)


def save_badly(folder: str) -> list[Any]:
    """A first checkpoint, and then one whose writing fails in one rank, then in the main one."""
    net = module()
    run = start(2, "sharded")
    run.fit(net, loader(run))
    path = Path(folder, "parts.ckpt")
    run.save_checkpoint(path)
    before = {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()}
    errors = []
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            if run.global_rank == rank:
                patch.setattr(os, "fsync", _full_disk)
            try:
                run.save_checkpoint(path)
            except BaseException as error:
                errors.append(f"{type(error).__name__}: {error}")
    after = {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()}
    run.strategy.barrier()
    run.save_checkpoint(path)  # and the next one is written
    names = sorted(entry.name for entry in Path(folder).iterdir() if "ckpt" in entry.name)
    return [errors, before, after, names]


def _full_disk(handle: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    for errors, before, after, names in values(run_ranks(tmp_path, save_badly, str(tmp_path))):
        assert len(errors) == 2
        assert all("No space left on device" in error for error in errors)
        assert before == after
        assert names == ["parts.ckpt"]


class Worse(Classifier):
    """Validates worse with each epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float(self.current_epoch), sync_dist=True)


def keep_best(folder: str, kind: str) -> Any:
    torch.manual_seed(0)
    net = Worse(mlp())
    saver = ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_last=True)
    run = start(
        2,
        kind,
        9,
        enable_checkpointing=True,
        callbacks=[saver, EarlyStopping("val_loss", patience=2)],
    )
    data = loader(run, is_text=False)
    run.fit(net, data, data)
    best = Path(saver.best_model_path)
    at_end = whole(net.state_dict())
    run.test(net, data, ckpt_path="best", verbose=False)
    return best.name, best.is_dir(), run.current_epoch, at_end, whole(net.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_model_checkpoint_and_early_stopping(tmp_path: Path, kind: str) -> None:
    for rank in values(run_ranks(tmp_path, keep_best, str(tmp_path), kind)):
        name, is_folder, epochs, at_end, of_best = rank
        assert (name, is_folder, epochs) == ("epoch=0.ckpt", kind == "sharded", 3)
        assert not torch.equal(at_end["network.0.weight"], of_best["network.0.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0.ckpt", "last.ckpt"]
    if kind == "full":
        weights = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"]
        assert_same(dict(weights), dict(of_best))


def change_kind(folder: str) -> Any:
    """Over a file a folder, and over a folder a file."""
    path = Path(folder, "last.ckpt")
    kinds = []
    for kind in ("full", "sharded", "full"):
        net = classifier(mlp)
        run = start(2, kind)
        run.fit(net, loader(run, is_text=False))
        run.save_checkpoint(path)
        kinds.append((path.is_file(), folders.is_folder(path)))
    other = Path(folder, "mine")
    other.mkdir(exist_ok=True)
    with pytest.raises(IsADirectoryError, match="mine is a folder and no checkpoint: it is not"):
        run.save_checkpoint(other)
    return kinds


@pytest.mark.slow
def test_one_kind_replaces_the_other(tmp_path: Path) -> None:
    for kinds in values(run_ranks(tmp_path, change_kind, str(tmp_path))):
        assert kinds == [(True, False), (False, True), (True, False)]
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    net = classifier(mlp)
    run = start(1, "sharded")
    (tmp_path / "ckpt").mkdir()
    with pytest.raises(
        ConfigurationError, match=r"ckpt is a folder, but .* no meta\.pt and no \.metadata\. Give"
    ):
        run.fit(net, loader(run, is_text=False), ckpt_path=tmp_path / "ckpt")
    (tmp_path / "ckpt" / folders.META_FILE).touch()
    with pytest.raises(ConfigurationError, match=r"it has no \.metadata\. Give"):
        folders.check_folder(tmp_path / "ckpt")


def test_a_file_that_cannot_be_written_leaves_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.mkdir()
    with pytest.raises(OSError, match="full"), folders.replaced_by_file(path, is_main=True):
        assert not path.exists()
        raise OSError("full")
    with folders.replaced_by_file(path, is_main=False):
        assert path.is_dir()
    with folders.replaced_by_file(path, is_main=True):
        path.touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
    assert path.is_file()


def test_gathered_tensors_are_copies_and_stay_tied() -> None:
    weight, other = torch.ones(2, requires_grad=True), torch.ones(2, device="hpu")
    state = {"a": weight, "b": [weight, (other,)], "step": 3, "c": torch.ones(2)}
    found = states.Gatherer(is_kept=True)(state)
    assert found["a"] is found["b"][0]
    assert found["a"].data_ptr() != weight.data_ptr()
    assert not found["a"].requires_grad
    assert found["b"][1][0].device.type == "cpu"
    assert found["step"] == 3
    assert_same(found["c"], torch.ones(2))
    assert states.Gatherer(is_kept=False)(state) == {
        "a": None,
        "b": [None, (None,)],
        "step": 3,
        "c": None,
    }


def test_storage_options_are_refused(tmp_path: Path) -> None:
    for kind in KINDS:
        run = start(1, kind)
        run.fit(classifier(mlp), loader(run, is_text=False))
        with pytest.raises(TypeError, match="storage_options"):
            run.save_checkpoint(tmp_path / "a.ckpt", storage_options={})


def test_parts_on_one_card_are_plain_tensors(tmp_path: Path) -> None:
    run = start(1, "sharded")
    net = classifier(mlp)
    run.fit(net, loader(run, is_text=False))
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert isinstance(run.strategy, GaudiFSDPStrategy)
    assert folders.is_folder(tmp_path / "a.ckpt")
    loaded = run.strategy.load_checkpoint(tmp_path / "a.ckpt")
    assert not any(isinstance(value, DTensor) for value in loaded["state_dict"].values())
    assert_same(whole(loaded["state_dict"]), whole(net.state_dict()))
