"""Whole jobs that go wrong, as Lightning's launcher and torchrun start them.

The job ends with an exit code that is not 0, names the rank and what became of it, and leaves no
process behind.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from distributed.jobs import processes_of
from faults.scripts import DIE, train

pytestmark = pytest.mark.slow


def at(rank: int, step: int, action: str) -> str:
    """The script's module, doing something in a training step of a rank."""
    return f"""
class Net(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.at({rank}, {step}): {action}
        return loss
"""


# The rank that is left is in a collective for ever, and its last checkpoint takes long to write.
NEVER_ENDS = f"""
class Net(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.at(1, 5):
            time.sleep(1)
            {DIE}
        if self.at(0, 5):
            threading.Event().wait()
        return loss

from lightning_gaudi.checkpoint import io
plain_write = io._write

def slow_write(copy, path):
    if "step=4" in str(path):
        time.sleep(10)
    plain_write(copy, path)

io._write = slow_write
"""


def assert_nothing_left(folder: Path) -> None:
    end = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(folder) == []


@pytest.mark.parametrize("how", ["launcher", "torchrun"])
def test_a_rank_is_killed_in_its_backward(tmp_path: Path, how: str) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    code, text = train(
        tmp_path,
        at(1, 5, f"loss.register_hook(lambda _: {DIE})"),
        launcher=launcher if how == "torchrun" else (),
    )
    assert code not in (0, -9), text
    assert "The run has ended because rank 1 (" in text
    if how == "launcher":  # that has started the process, and so knows
        assert "died: it was killed by signal 9 (SIGKILL)." in text
    else:
        assert "died: its connection ended without a word" in text
    assert (tmp_path / "step=4.ckpt").exists()
    assert_nothing_left(tmp_path)


def test_the_main_process_is_killed(tmp_path: Path) -> None:
    code, text = train(tmp_path, at(0, 5, DIE))
    assert code == -9
    assert "The run has ended because rank 0 (" in text
    assert "died: its connection ended without a word" in text
    assert_nothing_left(tmp_path)


def test_a_rank_that_is_stopped(tmp_path: Path) -> None:
    """The other waits in a collective, which ends at the strategy's timeout."""
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    code, text = train(tmp_path, at(1, 5, stop), "timeout=25")
    assert code == 1, text
    assert "rank 1 (" in text
    assert "is silent since" in text
    assert_nothing_left(tmp_path)


def test_a_collective_that_never_ends_ends_with_its_process(tmp_path: Path) -> None:
    """As on a card, where no error comes; a checkpoint that is being written is finished first."""
    code, text = train(tmp_path, NEVER_ENDS, "asynchronous=1")
    assert code == 1, text
    assert "[rank 0] lightning_gaudi: the run has failed, for rank 1 (" in text
    assert "died: it was killed by signal 9 (SIGKILL)." in text
    assert "This process does not end by itself, so it is ended. Its threads were here:" in text
    assert "training_step" in text
    assert (tmp_path / "step=4.ckpt").exists()
    assert_nothing_left(tmp_path)


def test_a_rank_fails_after_the_fit(tmp_path: Path) -> None:
    after = """
if not run.is_global_zero:
    raise SystemExit(3)
time.sleep(60)
"""
    code, text = train(tmp_path, after=after)
    assert code == 1, text
    assert "died: it ended with exit code 3" in text
    assert_nothing_left(tmp_path)
