"""`GaudiStrategy`: Lightning on one Gaudi card, or on many."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.distributed.constants import default_pg_timeout
from torch.nn import Module
from typing_extensions import override

from lightning_gaudi.hpu_strategy import HPUStrategy
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime import distributed, loading
from lightning_gaudi.runtime.loading import ExecutionMode
from lightning_gaudi.step_compilation import CompiledSteps


class GaudiStrategy(HPUStrategy, DDPStrategy):
    """Runs a LightningModule on Intel Gaudi.

    With one device it starts no process group, wraps nothing and leaves the user's sampler alone.
    With more it is DDP over HCCL: one process a card.

    Args:
        mode: ``"lazy"`` gathers ops into graphs and breaks them with ``mark_step`` after every
            backward, optimizer step and evaluation step and at a stage's end; HPU graphs need it.
            ``"eager"`` runs op by op, without marks. ``"compile"`` is eager mode with the module's
            forward and steps compiled: ``torch.compile(..., backend="hpu_backend",
            dynamic=False)``, so that each new shape is a compilation.
        mark_step_after_backward: Whether lazy mode breaks the graph between backward and optimizer.
        recipe_cache_dir: Where compiled recipes are kept between runs.
        process_group_backend: Backend of the process group where there are several devices.
        timeout: How long a collective may take.
        **ddp: Further arguments of Lightning's ``DDPStrategy`` and of
            ``torch.nn.parallel.DistributedDataParallel``.

    Raises:
        ConfigurationError: The mode is unknown.
        ExecutionModeError: The Gaudi software is loaded in another mode, or ``PT_HPU_LAZY_MODE``
            asks for another one.
    """

    strategy_name = "gaudi"

    def __init__(
        self,
        mode: ExecutionMode = "lazy",
        *,
        mark_step_after_backward: bool = True,
        recipe_cache_dir: str | Path | None = None,
        process_group_backend: str = "hccl",
        timeout: timedelta | None = default_pg_timeout,
        **ddp: Any,
    ) -> None:
        self._choose_mode(
            mode,
            mark_step_after_backward=mark_step_after_backward,
            recipe_cache_dir=recipe_cache_dir,
        )
        self._compiled_steps: CompiledSteps | None = None
        super().__init__(process_group_backend=process_group_backend, timeout=timeout, **ddp)

    @property
    @override
    def has_one_device(self) -> bool:
        """Whether this run has a single process, so that there is nobody to talk to."""
        return self.num_nodes * self.num_processes <= 1

    # --- start and end --------------------------------------------------------------------------

    @override
    def _configure_launcher(self) -> None:
        if not self.has_one_device:
            super()._configure_launcher()

    @override
    def setup_environment(self) -> None:
        """Load the Gaudi software in this strategy's mode and, with several devices, connect them.

        Raises:
            GaudiNotAvailableError: There is no Gaudi software.
            ExecutionModeError: It is loaded in another mode.
        """
        if self.has_one_device:
            # No launcher checks this, and each of several processes would train for itself.
            assert self.cluster_environment is not None
            self.cluster_environment.validate_settings(
                num_devices=self.num_processes, num_nodes=self.num_nodes
            )
        else:
            distributed.choose_card(self.local_rank)
        loading.load(self.mode)
        rank_zero_info(f"HPU: {self.num_processes} x {hpu.name()}, {self.mode} mode")
        super().setup_environment()

    @override
    def setup_distributed(self) -> None:
        if self.has_one_device:
            return
        reset_seed()
        self.set_world_ranks()
        distributed.load_backend()
        assert self.cluster_environment is not None
        # Unlike DDPStrategy, no device_id: HCCL does not connect at once, as PyTorch then expects.
        _init_dist_connection(
            self.cluster_environment, self._get_process_group_backend(), timeout=self._timeout
        )

    @override
    def setup(self, trainer: Trainer) -> None:
        if self.has_one_device:
            # DDPStrategy.setup would broadcast the module's state over a process group.
            Strategy.setup(self, trainer)
        else:
            super().setup(trainer)
        if self.mode == "compile":
            assert self.lightning_module is not None
            if self._compiled_steps is not None:  # of a run that ended without its teardown
                self._compiled_steps.undo()
            self._compiled_steps = CompiledSteps(self.lightning_module)

    @override
    def teardown(self) -> None:
        """Put back what compile mode has swapped, and move the module to the CPU."""
        if self._compiled_steps is not None:
            self._compiled_steps.undo()
        super().teardown()

    @override
    def _setup_model(self, model: Module) -> Module:  # type: ignore[override]
        return model if self.has_one_device else super()._setup_model(model)

    @override
    def determine_ddp_device_ids(self) -> None:
        """No device ids: HPU modules are on one device, and DDP takes ids for CUDA only."""
        return

    # --- several devices ------------------------------------------------------------------------

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree on a decision; one process agrees with itself, without reading the device."""
        return decision if self.has_one_device else super().reduce_boolean_decision(decision, all)
