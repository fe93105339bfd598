"""What stops a run: every forward is back, and the next run is right."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from callbacks.runs import Classifier, data, has_own_forward, make, trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback


class Boom(Exception):
    pass


class FailsIn(Callback):
    """Raises in one hook, at its n-th call."""

    def __init__(self, hook, call=0, error=None):
        self.calls = 0

        def fail(*args, **kwargs):
            self.calls += 1
            if self.calls > call:
                raise error or Boom("mine")

        setattr(self, hook, fail)


HOOKS = [
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_after_backward",
    "on_train_epoch_end",
    "on_train_end",
]


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises(hook, first):
    module = make()
    ours, theirs = HPUGraphCallback(("fit", "validate")), FailsIn(hook)
    t = trainer(*([theirs, ours] if first else [ours, theirs]))
    with pytest.raises(Boom, match="mine"):
        t.fit(module, data(), data())
    assert has_own_forward(module) == []
    after = trainer().predict(module, data())
    assert torch.equal(torch.cat(trainer(ours).predict(module, data())), torch.cat(after))


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_ctrl_c_is_lightnings_way(stage):
    hook = {"fit": "on_train_batch_start"}.get(stage, f"on_{stage}_batch_start")
    hook = hook.replace("validate", "validation")
    module = make()
    ours = HPUGraphCallback((stage,))
    t = trainer(ours, FailsIn(hook, call=2, error=KeyboardInterrupt()))
    with pytest.raises(SystemExit):
        if stage == "fit":
            t.fit(module, data())
        else:
            getattr(t, stage)(module, data())
    assert has_own_forward(module) == []
    assert t.interrupted


def test_a_signal_that_ends_a_run():
    class Terminates(Classifier):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 1 and not self.trainer.sanity_checking:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().validation_step(batch, batch_idx)

    before = signal.getsignal(signal.SIGTERM)
    module = make(Terminates)
    try:
        with pytest.raises(SystemExit):
            trainer(HPUGraphCallback(("fit", "validate"))).fit(module, data(), data())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert has_own_forward(module) == []


def test_a_dataloader_that_raises():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 6:
                raise Boom("no row 6")
            return torch.randn(4), torch.tensor(0)

    module = make()
    for stages in (("fit",), ("validate",)):
        with pytest.raises(Boom, match="no row 6"):
            trainer(HPUGraphCallback(stages), num_sanity_val_steps=0).fit(
                module,
                data() if "validate" in stages else DataLoader(Broken(), batch_size=2),
                DataLoader(Broken(), batch_size=2),
            )
        assert has_own_forward(module) == []
