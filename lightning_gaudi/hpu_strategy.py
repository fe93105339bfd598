"""`HPUStrategy`: what every strategy on the HPU does, however it spreads the work over cards."""

from __future__ import annotations

import signal
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerStatus
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gaudi import processes
from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.checkpoint import HPUCheckpointIO
from lightning_gaudi.checkpoint.background import wait_for_writes
from lightning_gaudi.data.exact_resume import ExactResume
from lightning_gaudi.data.resume import make_resumable
from lightning_gaudi.errors import ConfigurationError, NonFiniteError
from lightning_gaudi.faults import FaultWatch, add_to_message, watch_ranks
from lightning_gaudi.graphs.out_of_memory import explain_out_of_memory
from lightning_gaudi.precision import for_hpu
from lightning_gaudi.profiler import HPUProfiler
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime import loading
from lightning_gaudi.runtime.loading import ExecutionMode
from lightning_gaudi.step_boundary import StepBoundary
from lightning_gaudi.termination import end_together

# A checkpoint that is being written may take as long, when the process must end.
_WRITE_S = 300.0


class HPUStrategy(Strategy):
    """Execution mode, step boundary, and what Lightning hands over, on the HPU.

    Stands before one of Lightning's strategies among the bases of a class.

    Attributes:
        mode: The execution mode.
        step_boundary: Where the lazy graph breaks.
        before_saving: Called, in all ranks, before a checkpoint is written; an error keeps it from
            being written.
        last_checkpoint: Path of the last one that was.
    """

    mode: ExecutionMode
    step_boundary: StepBoundary

    def _choose_mode(
        self,
        mode: ExecutionMode,
        *,
        mark_step_after_backward: bool,
        recipe_cache_dir: str | Path | None,
    ) -> None:
        """Fix the execution mode; before Lightning's constructor, which may look at the device.

        Raises:
            ConfigurationError: The mode is unknown.
            ExecutionModeError: The Gaudi software is loaded in another mode, or
                ``PT_HPU_LAZY_MODE`` asks for another one.
        """
        loading.prepare(mode)
        self.mode = mode
        self.step_boundary = StepBoundary(mode, after_backward=mark_step_after_backward)
        self._resume = ExactResume()
        self._watch: FaultWatch | None = None
        self.before_saving: list[Callable[[], None]] = []
        self.last_checkpoint: _PATH | None = None
        if recipe_cache_dir is not None:
            loading.set_recipe_cache(recipe_cache_dir)

    @property
    @abstractmethod
    def has_one_device(self) -> bool:
        """Whether this run has a single process, so that there is nobody to talk to."""

    # --- what Lightning hands over --------------------------------------------------------------

    @property
    @override
    def accelerator(self) -> Accelerator | None:
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        if accelerator is not None and not isinstance(accelerator, HPUAccelerator):
            raise ConfigurationError(
                f"{type(self).__name__} needs accelerator='hpu', but the accelerator is "
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
    def checkpoint_io(self) -> CheckpointIO:
        """What writes and reads checkpoints: the user's, or `HPUCheckpointIO`."""
        if self._checkpoint_io is None:
            self._checkpoint_io = HPUCheckpointIO()
        wrapper: Any = self._checkpoint_io  # one of Lightning's would wrap stock Lightning's
        if getattr(wrapper, "checkpoint_io", self) is None:
            wrapper.checkpoint_io = HPUCheckpointIO()
        return super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    @property
    @override
    def root_device(self) -> torch.device:
        """The one HPU of this process."""
        return hpu.this_device()

    @override
    def process_dataloader(self, dataloader: object) -> object:
        """Let a fit go on in the middle of an epoch where a `BucketBatchSampler` makes batches."""
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if not trainer.training:
            return dataloader
        dataloader = make_resumable(dataloader, trainer)
        self._resume.prepare(dataloader, trainer)
        return dataloader

    # --- checkpoints ----------------------------------------------------------------------------

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint, with the states of all ranks' random numbers."""
        assert self.lightning_module is not None
        try:
            for check in self.before_saving:
                check()
        except NonFiniteError as error:
            if not self._is_interrupted:
                raise
            rank_zero_warn(f"No checkpoint is written of the run that has failed: {error}")
            return
        self._resume.add_to(checkpoint, self.lightning_module.trainer, processes.gather_objects)
        super().save_checkpoint(checkpoint, filepath, storage_options)
        self.last_checkpoint = filepath

    @override
    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; a fit then goes on with the random numbers that are in it."""
        # The argument is new in lightning 2.6.
        given = {} if weights_only is None else {"weights_only": weights_only}
        checkpoint = super().load_checkpoint(checkpoint_path, **given)
        assert self.lightning_module is not None
        self._resume.take_from(checkpoint, self.lightning_module.trainer)
        return checkpoint

    # --- steps ----------------------------------------------------------------------------------

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run the backward, then break the lazy graph."""
        self._count_step(is_backward=True)
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
        self._count_step()
        output = super().validation_step(*args, **kwargs)
        self.step_boundary.after_evaluation_step()
        return output

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a test step, then break the lazy graph."""
        self._count_step()
        output = super().test_step(*args, **kwargs)
        self.step_boundary.after_evaluation_step()
        return output

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a predict step, then break the lazy graph."""
        self._count_step()
        output = super().predict_step(*args, **kwargs)
        self.step_boundary.after_evaluation_step()
        return output

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep what ran between stages out of a stage's first step."""
        assert self.lightning_module is not None
        self._resume.at_first_batch()
        _reset_logged_values(self.lightning_module.trainer)
        self.step_boundary.before_training_step(batch_idx)

    @override
    def on_train_start(self) -> None:
        """Draw on from a checkpoint's random numbers."""
        self._resume.at_train_start()

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

    @override
    def on_exception(self, exception: BaseException) -> None:
        """Say what is known of a failure, and let a profiler write what it has seen."""
        self._tell_ranks(exception)
        if isinstance(self.checkpoint_io, HPUCheckpointIO):
            lost = self.checkpoint_io.settle()
            if lost is not None and lost is not exception:
                rank_zero_warn(f"A checkpoint could not be written either: {lost}")
        assert self.lightning_module is not None
        profiler = self.lightning_module.trainer.profiler  # type: ignore[attr-defined]
        if isinstance(profiler, HPUProfiler):
            profiler.describe()  # Lightning describes no run that has failed
        explain_out_of_memory(exception)
        super().on_exception(exception)

    # --- several devices ------------------------------------------------------------------------

    def _watch_ranks(self, timeout: timedelta | None) -> None:
        """Watch for ranks that are lost; to be called in each run, when all are connected."""
        assert self.cluster_environment is not None  # type: ignore[attr-defined]
        self._watch = watch_ranks(
            rank=self.global_rank,  # type: ignore[attr-defined]
            address=self.cluster_environment.main_address,  # type: ignore[attr-defined]
            timeout_s=None if timeout is None else timeout.total_seconds(),
            gather=processes.gather_objects,
            children=getattr(self.launcher, "procs", []),
            before_exit=lambda: wait_for_writes(_WRITE_S),
        )
        if self._watch is not None:
            self._watch.member.begin()
        assert self.lightning_module is not None
        end_together(self.lightning_module.trainer, timeout)

    def _count_step(self, *, is_backward: bool = False) -> None:
        """Let the others know, now and then, that this rank goes on."""
        if self._watch is not None:
            self._watch.member.steps += 1
            self._watch.member.progress += is_backward

    def _tell_ranks(self, error: BaseException | None) -> None:
        """Say why this rank fails, and add to the error whose fault it is."""
        if self._watch is not None and error is not None:
            add_to_message(error, self._watch.member.fail(error))

    @property
    def _is_interrupted(self) -> bool:
        """Whether an error is on its way out of this rank, so that the others may not come."""
        module = self.lightning_module
        trainer = None if module is None else module._trainer
        return trainer is not None and trainer.state.status == TrainerStatus.INTERRUPTED

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks, unless this one has failed: they do not come then."""
        if self._is_interrupted and not self.has_one_device:
            self._tell_ranks(sys.exc_info()[1])
        else:
            super().barrier(*args, **kwargs)  # type: ignore[safe-super]

    @override
    def teardown(self) -> None:
        """Move the module to the CPU, and end this rank's part in the run."""
        try:
            super().teardown()
        finally:
            if self._watch is not None:
                self._watch.member.end()

    @contextmanager
    def _ends_processes_on_error(self) -> Iterator[None]:
        """End the processes that this one has started where it cannot start itself.

        They would wait for it until the timeout, and outlive it.
        """
        try:
            yield
        except BaseException:
            if self.launcher is not None:
                self.launcher.kill(signal.SIGKILL)
            raise

    @override
    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any | None = "mean") -> Any:
        """Reduce a tensor over all processes, in place, and return it; a mean is a sum, divided."""
        reduce = super().reduce  # type: ignore[safe-super]
        return processes.all_reduce(tensor, group, reduce_op, reduce)


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
