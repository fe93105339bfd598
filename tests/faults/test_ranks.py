"""One of two ranks is lost: the other's error names it and says why, long before the timeout.

On the emulated HPU a collective fails as soon as the other end is closed, which a card may not do:
what a rank does that waits for ever is in `test_jobs`.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.jobs import processes_of, run_ranks, values
from faults.runs import TIMEOUT_S, fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need.*"),
]
LOST = "died: its connection ended without a word. It was killed, perhaps for memory"


def run(folder: Path, *args: Any) -> list[Any]:
    outcomes = run_ranks(folder, fit, str(folder / "files"), *args)
    assert processes_of(folder) == []
    for outcome in outcomes:
        assert outcome.seconds < TIMEOUT_S / 2
    return outcomes


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "files").iterdir())


@pytest.mark.parametrize("where", ["backward", "collective"])
def test_a_rank_is_killed(tmp_path: Path, where: str) -> None:
    first, second = run(tmp_path, where)
    assert second.exit_code == -signal.SIGKILL
    assert first.exit_code == 1
    assert f"rank 1 ({_host()}, process " in first.error
    assert LOST in first.error
    assert files(tmp_path) == ["step=2.ckpt", "step=4.ckpt"]


def test_the_main_rank_is_killed_while_it_writes_a_checkpoint(tmp_path: Path) -> None:
    first, second = run(tmp_path, "writing", 0, 4)
    assert first.exit_code == -signal.SIGKILL
    assert f"The run has ended because rank 0 ({_host()}, process " in second.error
    assert LOST in second.error
    # Nothing half-written is left, whatever its name.
    assert files(tmp_path) == ["step=2.ckpt"]
    assert torch.load(tmp_path / "files" / "step=2.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_raises_while_the_other_waits(tmp_path: Path, rank: int) -> None:
    outcomes = run(tmp_path, "raise", rank)
    failed, other = outcomes[rank], outcomes[1 - rank]
    assert failed.error.strip() == "ValueError: a bad row"
    assert f"The run has ended because rank {rank} ({_host()}, process " in other.error
    assert "failed: ValueError: a bad row." in other.error


@pytest.mark.parametrize(
    ("how", "expected"), [("exit", "failed: SystemExit: 3"), ("leave", LOST)], ids=["exit", "leave"]
)
def test_a_rank_leaves_early(tmp_path: Path, how: str, expected: str) -> None:
    first, _ = run(tmp_path, how)
    assert f"The run has ended because rank 1 ({_host()}, process " in first.error
    assert expected in first.error


def test_a_checkpoint_of_the_exception_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder = str(tmp_path / "files")
    outcomes = run_ranks(tmp_path, _fit_saving_on_exception, folder)
    assert "a bad row" in outcomes[0].error
    assert "a bad row" in outcomes[1].error
    assert max(outcome.seconds for outcome in outcomes) < TIMEOUT_S / 2
    assert files(tmp_path) == ["step=2.ckpt", "step=4.ckpt", "step=5.ckpt"]
    torch.load(tmp_path / "files" / "step=5.ckpt", weights_only=True)


def _fit_saving_on_exception(folder: str) -> None:
    fit(folder, "raise", on_exception=True)


def _resume(folder: str, path: str) -> dict[str, torch.Tensor]:
    return fit(folder, ckpt_path=path)


def test_the_last_whole_checkpoint_goes_on_to_the_weights_of_an_unbroken_run(
    tmp_path: Path,
) -> None:
    unbroken = values(run_ranks(tmp_path, fit, str(tmp_path / "unbroken")))
    run(tmp_path, "backward")
    path = tmp_path / "files" / files(tmp_path)[-1]
    assert path.name == "step=4.ckpt"  # in the middle of the second epoch
    resumed = values(run_ranks(tmp_path, _resume, str(tmp_path / "more"), str(path)))
    for rank in (0, 1):
        for name, value in unbroken[rank].items():
            torch.testing.assert_close(resumed[rank][name], value, rtol=1e-6, atol=1e-7)
    states = torch.load(path, weights_only=True)["gaudi_random_states"]
    assert states["world_size"] == 2
    assert sorted(states["ranks"]) == [0, 1]
    assert [states["ranks"][rank]["orders"][0]["num_batches"] for rank in (0, 1)] == [1, 1]


def test_one_card_killed_while_writing_goes_on_bit_for_bit(tmp_path: Path) -> None:
    [unbroken] = values(run_ranks(tmp_path, _one, str(tmp_path / "unbroken"), size=1))
    [killed] = run_ranks(tmp_path, _one, str(tmp_path / "files"), "writing", size=1)
    assert killed.exit_code == -signal.SIGKILL
    assert files(tmp_path) == ["step=2.ckpt", "step=4.ckpt"]
    path = str(tmp_path / "files" / "step=4.ckpt")
    [resumed] = values(run_ranks(tmp_path, _one, str(tmp_path / "files"), "", path, size=1))
    for name, value in unbroken.items():
        assert torch.equal(resumed[name], value), name


def _one(folder: str, wrong: str = "", path: str | None = None) -> dict[str, torch.Tensor]:
    return fit(folder, wrong, rank=0, step=6, ckpt_path=path, devices=1)


def _host() -> str:
    import socket

    return socket.gethostname()
