"""Under DDP the inner forwards are captured, never the wrapper's: equal to DDP without graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Lightning starts this script once more for the second rank.
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
from torch import nn
from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from training import Classifier, features, mlp

class Whole(Classifier):
    def forward(self, x):
        return self.network(x)

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_train_start(self):
        self.wrapper = type(self.trainer.strategy.model).__name__

folder, cls, with_graphs = sys.argv[1:]
torch.manual_seed(0)
net = {"Whole": Whole, "Classifier": Classifier}[cls](mlp())
net.wrapper = None
callback = HPUGraphCallback(("fit", "validate"))
run = L.Trainer(
    accelerator="hpu", strategy=GaudiStrategy(), devices=2, max_epochs=3, logger=False,
    accumulate_grad_batches=2, enable_progress_bar=False, enable_model_summary=False,
    enable_checkpointing=False, use_distributed_sampler=False,
    callbacks=[callback] if with_graphs == "True" else [],
)
run.fit(net, features(), features())
if with_graphs == "True":
    assert callback.stats.replays > 2 * callback.stats.captures > 0, callback.stats
    assert callback.stats.eager_calls == 1, callback.stats
    assert "forward" not in net.network.__dict__
    assert list(callback.stats.per_target) == ["forward" if cls == "Whole" else "network"]
if cls == "Whole":
    assert net.wrapper == "DistributedDataParallel"
state = {name: value.cpu() for name, value in net.state_dict().items()}
torch.save([net.losses, state], f"{folder}/rank{run.global_rank}.pt")
"""


def run_two(folder: Path, cls: str, with_graphs: bool) -> list[list]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}",
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, str(script), str(folder), cls, str(with_graphs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("cls", ["Whole"])
def test_training_on_two_cards_equals_it_without_graphs(tmp_path: Path, cls: str) -> None:
    found = run_two(tmp_path / "graphs", cls, True)
    expected = run_two(tmp_path / "plain", cls, False)
    for (losses, state), (plain_losses, plain_state) in zip(found, expected, strict=True):
        assert losses == plain_losses
        assert state.keys() == plain_state.keys()
        assert all(torch.equal(state[name], plain_state[name]) for name in state)
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
