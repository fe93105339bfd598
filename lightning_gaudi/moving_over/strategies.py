"""Strategies of ``lightning-habana`` for one card and for data parallel training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from typing_extensions import override

from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.moving_over.hints import hint
from lightning_gaudi.strategy import GaudiStrategy


class SingleHPUStrategy(GaudiStrategy):
    """`GaudiStrategy` on one card, under the name and with the arguments of ``lightning-habana``.

    Args:
        device: The card; each process has one, ``"hpu"``.
        accelerator: As in Lightning's strategies.
        checkpoint_io: How checkpoints are written and read.
        precision_plugin: The precision.
        **gaudi: Further arguments of `GaudiStrategy`.

    Raises:
        ConfigurationError: The device is no HPU, or the Trainer is to use more than one.
    """

    strategy_name = "hpu_single"

    def __init__(
        self,
        device: str | torch.device = "hpu",
        accelerator: HPUAccelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        **gaudi: Any,
    ) -> None:
        hint('SingleHPUStrategy ("hpu_single")', 'GaudiStrategy ("gaudi")')
        if str(device) not in ("hpu", "hpu:0"):
            raise ConfigurationError(
                f"SingleHPUStrategy runs on device 'hpu', but device is {str(device)!r}. Choose "
                "the card with HABANA_VISIBLE_MODULES; to train on the CPU, say accelerator='cpu'."
            )
        super().__init__(
            accelerator=accelerator,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            **gaudi,
        )

    @override
    def _configure_launcher(self) -> None:
        # There the further devices were left idle without a word. To use them changes the results.
        if not self.has_one_device:
            raise ConfigurationError(
                f'SingleHPUStrategy ("hpu_single") runs on one card, but devices='
                f"{self.num_processes} and num_nodes={self.num_nodes}. Use devices=1, or "
                'strategy="gaudi" to train on all of them.'
            )
        super()._configure_launcher()


class HPUParallelStrategy(GaudiStrategy):
    """`GaudiStrategy` under the name and with the arguments of ``lightning-habana``.

    Args:
        accelerator: As in Lightning's ``DDPStrategy``, like all that follow.
        parallel_devices: A device for each card of this node.
        cluster_environment: Where the other processes are.
        checkpoint_io: How checkpoints are written and read.
        precision_plugin: The precision.
        ddp_comm_state: State of the communication hook.
        ddp_comm_hook: How gradients are communicated.
        ddp_comm_wrapper: What is put around the hook.
        model_averaging_period: Steps between averages of the models, with such an optimizer.
        process_group_backend: Backend of the process group.
        **gaudi: Further arguments of `GaudiStrategy`.
    """

    strategy_name = "hpu_parallel"
    _hint = ('HPUParallelStrategy ("hpu_parallel")', 'GaudiStrategy ("gaudi")')

    def __init__(
        self,
        accelerator: HPUAccelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        ddp_comm_state: object | None = None,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        model_averaging_period: int | None = None,
        process_group_backend: str = "hccl",
        **gaudi: Any,
    ) -> None:
        hint(*self._hint)
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            ddp_comm_state=ddp_comm_state,
            ddp_comm_hook=ddp_comm_hook,
            ddp_comm_wrapper=ddp_comm_wrapper,
            model_averaging_period=model_averaging_period,
            process_group_backend=process_group_backend,
            **gaudi,
        )


class HPUDDPStrategy(HPUParallelStrategy):
    """The same as `HPUParallelStrategy`, as it was in ``lightning-habana``."""

    strategy_name = "hpu_ddp"
    _hint = ('HPUDDPStrategy ("hpu_ddp")', 'GaudiStrategy ("gaudi")')
