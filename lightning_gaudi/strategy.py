"""`GaudiStrategy`: Lightning on one Gaudi card, or on many."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed import ReduceOp
from torch.distributed.constants import default_pg_timeout
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.data.resume import make_resumable
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision import for_hpu
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime import distributed, loading
from lightning_gaudi.runtime.loading import ExecutionMode
from lightning_gaudi.step_boundary import StepBoundary
from lightning_gaudi.step_compilation import CompiledSteps


class GaudiStrategy(DDPStrategy):
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
        loading.prepare(mode)
        self.mode = mode
        self._compiled_steps: CompiledSteps | None = None
        self.step_boundary = StepBoundary(mode, after_backward=mark_step_after_backward)
        if recipe_cache_dir is not None:
            loading.set_recipe_cache(recipe_cache_dir)
        super().__init__(process_group_backend=process_group_backend, timeout=timeout, **ddp)

    # --- what Lightning hands over --------------------------------------------------------------

    @property
    @override
    def accelerator(self) -> Accelerator | None:
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        if accelerator is not None and not isinstance(accelerator, HPUAccelerator):
            raise ConfigurationError(
                f"GaudiStrategy needs accelerator='hpu', but the accelerator is "
                f"{type(accelerator).__name__}. Use Trainer(accelerator='hpu', "
                "strategy=GaudiStrategy())."
            )
        self._accelerator = accelerator

    @property
    @override
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        self._precision_plugin = for_hpu(precision_plugin)

    @property
    @override
    def root_device(self) -> torch.device:
        """The one HPU of this process."""
        return hpu.this_device()

    @property
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

    @override
    def process_dataloader(self, dataloader: object) -> object:
        """Let a fit go on in the middle of an epoch where a `BucketBatchSampler` makes batches."""
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        return make_resumable(dataloader, trainer) if trainer.training else dataloader

    # --- steps ----------------------------------------------------------------------------------

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run the backward, then break the lazy graph."""
        loss = super().backward(closure_loss, optimizer, *args, **kwargs)
        self.step_boundary.after_backward()
        return loss

    @override
    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the optimizer's step, then break the lazy graph."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        self.step_boundary.after_optimizer_step()
        return output

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a validation step, then break the lazy graph."""
        output = super().validation_step(*args, **kwargs)
        self.step_boundary.after_evaluation_step()
        return output

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a test step, then break the lazy graph."""
        output = super().test_step(*args, **kwargs)
        self.step_boundary.after_evaluation_step()
        return output

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a predict step, then break the lazy graph."""
        output = super().predict_step(*args, **kwargs)
        self.step_boundary.after_evaluation_step()
        return output

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep what ran between stages out of a stage's first step."""
        assert self.lightning_module is not None
        _reset_logged_values(self.lightning_module.trainer)
        self.step_boundary.before_training_step(batch_idx)

    @override
    def on_validation_start(self) -> None:
        """Keep what ran before out of the first step."""
        self.step_boundary.at_stage_start()

    @override
    def on_test_start(self) -> None:
        """Keep what ran before out of the first step."""
        self.step_boundary.at_stage_start()

    @override
    def on_predict_start(self) -> None:
        """Keep what ran before out of the first step."""
        self.step_boundary.at_stage_start()

    @override
    def on_train_end(self) -> None:
        """Leave nothing pending."""
        self.step_boundary.at_stage_end()

    @override
    def on_validation_end(self) -> None:
        """Leave nothing pending."""
        self.step_boundary.at_stage_end()

    @override
    def on_test_end(self) -> None:
        """Leave nothing pending."""
        self.step_boundary.at_stage_end()

    @override
    def on_predict_end(self) -> None:
        """Leave nothing pending."""
        self.step_boundary.at_stage_end()

    # --- several devices ------------------------------------------------------------------------

    @override
    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any | None = "mean") -> Any:
        """Reduce a tensor over all processes, in place, and return it.

        HCCL has no mean (HABANA.md, "Many cards"), so that is a sum and a division.
        """
        if not isinstance(tensor, Tensor) or not torch.distributed.is_initialized():
            return tensor
        if isinstance(reduce_op, str):
            is_mean = reduce_op.lower() in ("mean", "avg")
        else:
            is_mean = reduce_op == ReduceOp.AVG
        if not is_mean:
            return super().reduce(tensor, group, reduce_op=reduce_op)
        total = super().reduce(tensor, group, reduce_op="sum")
        return total.copy_(total / torch.distributed.get_world_size(group))

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree on a decision; one process agrees with itself, without reading the device."""
        return decision if self.has_one_device else super().reduce_boolean_decision(decision, all)


def _reset_logged_values(trainer: Trainer) -> None:
    """Reset before an epoch's first step what Lightning would reset inside it.

    Lightning resets the values of the last epoch at the first ``self.log`` of the next one. That is
    inside the step's lazy graph, so that the first step of a second epoch would be compiled anew,
    forward and backward and all (lightning 2.6.6, ``LightningModule.log``).
    """
    # Private, and there is no public way. A Lightning without these names costs one compilation a
    # fit, no more, so it is left alone.
    connector: Any = getattr(trainer, "_logger_connector", None)
    results = getattr(trainer, "_results", None)
    if results is None or not hasattr(connector, "_current_fx"):
        return
    if connector.should_reset_tensors("training_step"):
        results.reset(metrics=False, fx="training_step")
        connector._current_fx = "training_step"
