"""The FSDP strategy of ``lightning-habana``, whose arguments are those of FSDP1."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import CPUOffload, MixedPrecision, MixedPrecisionPolicy
from torch.nn import Module

from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fsdp import GaudiFSDPStrategy
from lightning_gaudi.moving_over.hints import hint

_RESHARDS = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}
_OURS = frozenset(inspect.signature(GaudiFSDPStrategy).parameters)


class HPUFSDPStrategy(GaudiFSDPStrategy):
    """`GaudiFSDPStrategy` under the name and with the arguments of ``lightning-habana``.

    The precision is what ``Trainer(precision=...)`` says; there it was ``"bf16-mixed"`` where no
    plugin was given.

    Args:
        accelerator: As in Lightning's strategies, like the four that follow.
        parallel_devices: A device for each card of this node.
        cluster_environment: Where the other processes are.
        checkpoint_io: How full checkpoints are written and read.
        precision_plugin: The precision.
        process_group_backend: Backend of the process group.
        timeout: How long a collective may take.
        cpu_offload: Not supported.
        mixed_precision: Dtypes of parameters and of the reduction of gradients. Buffers keep
            theirs.
        auto_wrap_policy: Classes of modules; or as in `GaudiFSDPStrategy`.
        activation_checkpointing: A class of modules, or several.
        activation_checkpointing_policy: The same.
        sharding_strategy: ``"FULL_SHARD"`` or ``"SHARD_GRAD_OP"``.
        state_dict_type: As in `GaudiFSDPStrategy`.
        **gaudi: Further arguments of `GaudiFSDPStrategy`.

    Raises:
        ConfigurationError: An argument cannot be, or belongs to FSDP1 and has no equal.
        ExecutionModeError: As in `GaudiFSDPStrategy`.
    """

    strategy_name = "hpu_fsdp"

    def __init__(
        self,
        accelerator: HPUAccelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str = "hccl",
        timeout: timedelta | None = default_pg_timeout,
        cpu_offload: bool | CPUOffload | None = None,
        mixed_precision: MixedPrecision | MixedPrecisionPolicy | None = None,
        auto_wrap_policy: Any = None,
        activation_checkpointing: type[Module] | Collection[type[Module]] | None = None,
        activation_checkpointing_policy: Any = None,
        sharding_strategy: Any = "FULL_SHARD",
        state_dict_type: Any = "full",
        **gaudi: Any,
    ) -> None:
        hint(
            'HPUFSDPStrategy ("hpu_fsdp")',
            'GaudiFSDPStrategy ("gaudi_fsdp"), with the precision of Trainer(precision=...)',
        )
        _refuse_unknown(gaudi)
        if isinstance(cpu_offload, CPUOffload):
            cpu_offload = cpu_offload.offload_params
        super().__init__(
            process_group_backend=process_group_backend,
            timeout=timeout,
            cpu_offload=bool(cpu_offload),
            mixed_precision=_policy_of_dtypes(mixed_precision),
            auto_wrap_policy=_policy("auto_wrap_policy", auto_wrap_policy),
            activation_checkpointing=_checkpointed(
                activation_checkpointing, activation_checkpointing_policy
            ),
            state_dict_type=state_dict_type,
            **({"reshard_after_forward": _reshards(sharding_strategy)} | gaudi),
        )
        # Lightning's base of it takes these from the Trainer only.
        if accelerator is not None:
            self.accelerator = accelerator
        if parallel_devices is not None:
            self.parallel_devices = parallel_devices
        if cluster_environment is not None:
            self.cluster_environment = cluster_environment
        if checkpoint_io is not None:
            self.checkpoint_io = checkpoint_io
        if precision_plugin is not None:
            self.precision_plugin = precision_plugin


def _refuse_unknown(arguments: dict[str, Any]) -> None:
    unknown = sorted(arguments.keys() - _OURS)
    if unknown:
        raise ConfigurationError(
            f"HPUFSDPStrategy has no {', '.join(unknown)}: it runs FSDP2 (fully_shard) here, and "
            "these are arguments of FSDP1. Leave them out; GaudiFSDPStrategy lists what there is."
        )


def _reshards(sharding_strategy: Any) -> bool:
    """Whether parameters are freed between forward and backward."""
    name = str(getattr(sharding_strategy, "name", sharding_strategy)).upper()
    if name not in _RESHARDS:
        raise ConfigurationError(
            f"sharding_strategy must be 'FULL_SHARD' or 'SHARD_GRAD_OP', but it is {name!r}. "
            'Without sharding use strategy="gaudi".'
        )
    return _RESHARDS[name]


def _policy(name: str, policy: Any) -> Any:
    """A policy of FSDP1, where it is one of FSDP2's, too."""
    if not callable(policy):
        return policy
    try:
        inspect.signature(policy).bind(Module())
    except TypeError:
        raise ConfigurationError(
            f"{name} is a function of one module here, that says whether it is a group; "
            f"{policy!r} takes other arguments, as FSDP1 has them. Pass the set of classes, such "
            "as {Block}, or None for the blocks that repeat."
        ) from None
    return policy


def _checkpointed(classes: Any, policy: Any) -> Any:
    """Which modules run their forward once more in the backward."""
    if classes is not None and policy is not None:
        raise ConfigurationError(
            "activation_checkpointing and activation_checkpointing_policy say the same thing. Pass "
            "one of them."
        )
    if policy is not None:
        return _policy("activation_checkpointing_policy", policy)
    if classes is None:
        return False
    return {classes} if isinstance(classes, type) else classes


def _policy_of_dtypes(dtypes: Any) -> MixedPrecisionPolicy | None:
    """FSDP2's dtypes of FSDP1's."""
    if not isinstance(dtypes, MixedPrecision):
        policy: MixedPrecisionPolicy | None = dtypes
        return policy
    if dtypes.buffer_dtype is not None:
        rank_zero_warn(
            f"mixed_precision has buffer_dtype={dtypes.buffer_dtype}, which FSDP2 has not: buffers "
            "keep their dtype."
        )
    return MixedPrecisionPolicy(param_dtype=dtypes.param_dtype, reduce_dtype=dtypes.reduce_dtype)
