"""`HPUFSDPStrategy`: arguments of lightning-habana's, which are FSDP1's."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn
from torch.distributed.fsdp import (
    CPUOffload,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, size_based_auto_wrap_policy
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

from lightning_gaudi import GaudiFSDPStrategy, HPUAccelerator, HPUCheckpointIO, HPUPrecision
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.moving_over import HPUFSDPPrecision, HPUFSDPStrategy, hints

pytestmark = IGNORED_WARNINGS
lazy = partial(HPUFSDPStrategy, mode="lazy")


def test_it_trains_as_on_the_cpu() -> None:
    def losses(accelerator: str, **settings: Any) -> list[float]:
        torch.manual_seed(0)
        module = Classifier(mlp())
        trainer(accelerator, max_epochs=1, **settings).fit(module, features())
        return module.losses

    precision = HPUFSDPPrecision("32-true")
    found = losses("auto", strategy=lazy(HPUAccelerator(), precision_plugin=precision))
    assert found == pytest.approx(losses("cpu"), abs=1e-5)


def test_the_first_use_hints_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(hints, "_hinted", set())
    lazy()
    lazy()
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "habana" in text] == [
        'HPUFSDPStrategy ("hpu_fsdp") is lightning-habana\'s name and goes on working. Here it is '
        'GaudiFSDPStrategy ("gaudi_fsdp"), with the precision of Trainer(precision=...).'
    ]


def test_arguments_of_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    io, precision = HPUCheckpointIO(), HPUPrecision("bf16-mixed")
    devices = [torch.device("hpu")] * 2
    strategy = lazy(
        HPUAccelerator(), devices, None, io, precision, "gloo", timedelta(seconds=9),
        state_dict_type="sharded",
    )  # fmt: skip
    assert isinstance(strategy, GaudiFSDPStrategy)
    assert strategy._get_process_group_backend() == "gloo"
    assert strategy._timeout == timedelta(seconds=9)
    assert strategy._save_distributed_checkpoint
    assert strategy.checkpoint_io is io
    run = trainer("auto", strategy=strategy, devices=2)
    assert run.world_size == 2
    assert run.precision_plugin is precision
    assert run.strategy.parallel_devices == devices
    full = lazy()
    assert not full._save_distributed_checkpoint
    assert full._get_process_group_backend() == "hccl"


def test_it_is_in_eager_mode_unless_told() -> None:
    from lightning_gaudi.errors import ExecutionModeError

    assert StrategyRegistry["hpu_fsdp"]["strategy"] is HPUFSDPStrategy
    with pytest.raises(ExecutionModeError, match="eager"):  # this process is in lazy mode
        StrategyRegistry.get("hpu_fsdp")


@pytest.mark.parametrize(
    ("sharding", "reshards"),
    [
        ("FULL_SHARD", True),
        ("full_shard", True),
        (ShardingStrategy.FULL_SHARD, True),
        ("SHARD_GRAD_OP", False),
        (ShardingStrategy.SHARD_GRAD_OP, False),
    ],
    ids=str,
)
def test_sharding_strategies(sharding: Any, reshards: bool) -> None:
    assert lazy(sharding_strategy=sharding)._reshard_after_forward is reshards


def test_what_is_sharded_and_in_which_dtype() -> None:
    strategy = lazy(
        auto_wrap_policy={nn.Linear},
        activation_checkpointing=nn.Linear,
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        cpu_offload=CPUOffload(offload_params=False),
    )
    assert strategy._policy == {nn.Linear}
    assert strategy._activation_checkpointing == {nn.Linear}
    assert strategy._mixed_precision == MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )
    own = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    assert lazy(mixed_precision=own)._mixed_precision is own
    classes = [nn.Linear, nn.Conv2d]
    assert lazy(activation_checkpointing=classes)._activation_checkpointing == classes
    policy = lazy(activation_checkpointing_policy={nn.Linear})
    assert policy._activation_checkpointing == {nn.Linear}
    assert lazy()._activation_checkpointing is False

    def is_linear(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    assert lazy(auto_wrap_policy=is_linear)._policy is is_linear
    assert lazy(mark_step_after_backward=False).mode == "lazy"


def test_buffers_keep_their_dtype_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"buffer_dtype=torch.bfloat16, which FSDP2 has not"):
        lazy(mixed_precision=MixedPrecision(buffer_dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"use_orig_params": True, "limit_all_gathers": True},
            "HPUFSDPStrategy has no limit_all_gathers, use_orig_params: it runs FSDP2",
        ),
        (
            {"sharding_strategy": "HYBRID_SHARD"},
            "sharding_strategy must be 'FULL_SHARD' or 'SHARD_GRAD_OP', but it is 'HYBRID_SHARD'.",
        ),
        (
            {"sharding_strategy": ShardingStrategy.NO_SHARD},
            "but it is 'NO_SHARD'. Without sharding use strategy=\"gaudi\".",
        ),
        ({"cpu_offload": True}, "leave out cpu_offload"),
        ({"cpu_offload": CPUOffload(offload_params=True)}, "leave out cpu_offload"),
        (
            {"auto_wrap_policy": ModuleWrapPolicy({nn.Linear})},
            "auto_wrap_policy is a function of one module here",
        ),
        (
            {"auto_wrap_policy": partial(size_based_auto_wrap_policy, min_num_params=9)},
            "takes other arguments, as FSDP1 has them. Pass the set of classes, such as {Block}",
        ),
        (
            {"activation_checkpointing_policy": lambda module, recurse, count: True},
            "activation_checkpointing_policy is a function of one module here",
        ),
        (
            {
                "activation_checkpointing": nn.Linear,
                "activation_checkpointing_policy": {nn.Linear},
            },
            "activation_checkpointing and activation_checkpointing_policy say the same thing.",
        ),
        ({"state_dict_type": "half"}, "state_dict_type must be 'full' or 'sharded'"),
    ],
    ids=[
        "unknown", "hybrid", "no shard", "offload", "CPUOffload", "ModuleWrapPolicy", "size",
        "function", "both", "state dict",
    ],
)  # fmt: skip
def test_what_cannot_be(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        lazy(**arguments)
