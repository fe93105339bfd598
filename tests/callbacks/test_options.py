"""The arguments of `HPUGraphCallback`."""

from __future__ import annotations

import pytest
import torch
from callbacks.runs import (
    Classifier,
    WithForward,
    data,
    make,
    trainer,
)
from torch import nn

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.errors import ConfigurationError


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"stages": ["train"]},
            "stages must be of 'fit', 'validate', 'test', 'predict', but 'train'",
        ),
        ({"stages": []}, "stages is empty: name one or more of 'fit'"),
        ({"targets": []}, "targets is empty: name one or more submodules"),
        ({"targets": [nn.Linear]}, "targets must be names of submodules, but <class"),
        ({"pad_batch": 1}, "pad_batch must be True or False, but it is 1"),
        ({"clone_outputs": None}, "clone_outputs must be True or False, but it is None"),
        ({"asynchronous": "no"}, "asynchronous must be True or False, but it is 'no'"),
        ({"disable_tensor_cache": 0}, "disable_tensor_cache must be True or False"),
        ({"verify": "yes"}, "verify must be True or False, but it is 'yes'"),
        ({"warmup": "all"}, "warmup must be None, 'buckets', the shapes of one call.*'all'"),
        ({"warmup": []}, r"warmup must be None, 'buckets'.*but it is \[\]"),
        ({"max_graphs": 0}, "max_graphs must be a whole number"),
        ({"on_failure": "never"}, "on_failure must be 'raise' or 'eager'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        HPUGraphCallback(**kwargs)


def test_stages_choose():
    callback = HPUGraphCallback(stages=["test"])
    module = make()
    t = trainer(callback)
    t.predict(module, data())
    assert callback.stats.calls == 0
    t.test(module, data(), verbose=False)
    assert callback.stats.captures > 0


def test_defaults_are_those_of_the_contract():
    callback = HPUGraphCallback()
    assert callback.stages == ("validate", "test", "predict")
    assert callback.targets is None
    assert callback.warmup is None
    assert callback.verify is False
    assert callback.options.as_dict() == {
        "max_graphs": 16,
        "pad_batch": True,
        "clone_outputs": True,
        "asynchronous": False,
        "disable_tensor_cache": False,
        "on_failure": "raise",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"disable_tensor_cache": True},
        {"asynchronous": True},
        {"clone_outputs": False, "targets": "forward"},
        {"pad_batch": False},
        {"max_graphs": 1},
        {"verify": True},
    ],
    ids=str,
)
def test_every_option_gives_the_same_answers(options):
    plain = trainer().predict(make(WithForward), data(20))
    callback = HPUGraphCallback(**options)
    graphed = trainer(callback).predict(make(WithForward), data(20))
    assert torch.equal(torch.cat(graphed), torch.cat(plain))
    assert callback.stats.captures == 1


@pytest.mark.filterwarnings("ignore:[^$]*(JsonargparseDeprecationWarning|was deprecated in v4)")
def test_a_command_line_config(tmp_path, monkeypatch):
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["run.py"])
    config = tmp_path / "config.yaml"
    config.write_text("""
trainer:
  accelerator: hpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  strategy: {class_path: lightning_gaudi.GaudiStrategy}
  callbacks:
    - class_path: lightning_gaudi.HPUGraphCallback
      init_args:
        stages: [fit, predict]
        targets: [body, head]
        max_graphs: 3
        pad_batch: false
        clone_outputs: true
        asynchronous: true
        disable_tensor_cache: false
        warmup: {body: [[4, 4]], head: [[4, 8, float32]]}
        on_failure: eager
        verify: false
    - class_path: lightning_gaudi.HPUGraphCallback
      init_args: {stages: test, warmup: buckets}
""")
    cli = LightningCLI(
        Classifier,
        run=False,
        seed_everything_default=False,
        save_config_callback=None,
        args=["--config", str(config)],
    )
    first, second = (c for c in cli.trainer.callbacks if isinstance(c, HPUGraphCallback))
    assert first.stages == ("fit", "predict")
    assert first.targets == ("body", "head")
    assert first.warmup == {"body": [[4, 4]], "head": [[4, 8, "float32"]]}
    assert first.options.max_graphs == 3
    assert first.options.on_failure == "eager"
    assert second.stages == ("test",)
    assert second.warmup == "buckets"
    predictions = cli.trainer.predict(cli.model, data())
    assert torch.equal(torch.cat(predictions), torch.cat(trainer().predict(cli.model, data())))
