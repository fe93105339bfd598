"""`GaudiFabricStrategy`: Fabric on one Gaudi card, or on many."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.accelerators.accelerator import Accelerator
from lightning.fabric.plugins import CheckpointIO, Precision
from lightning.fabric.strategies.ddp import DDPStrategy, _DDPBackwardSyncControl
from lightning.fabric.utilities.types import Optimizable
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_gaudi import processes
from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.checkpoint import HPUCheckpointIO
from lightning_gaudi.cluster import check_processes
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fabric.loops import LoopBoundary, MarkedLoader
from lightning_gaudi.fabric.precision import for_fabric
from lightning_gaudi.runtime import compilation, loading
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime.loading import ExecutionMode


class GaudiFabricStrategy(DDPStrategy):
    """Runs a Fabric loop on Intel Gaudi.

    With one device it starts no process group, wraps nothing, leaves the user's sampler alone and
    needs no ``fabric.launch()``. With more it is DDP over HCCL: one process a card.

    In lazy mode the graph breaks after every ``fabric.backward`` (each micro-batch, too) and every
    optimizer's step; when a loop over a loader from ``fabric.setup_dataloaders`` begins and, where
    its batch was not trained on, when it asks for the next one; and at ``fabric.barrier``. A loop
    over anything else ends each of its steps with ``fabric.strategy.mark_step()``: an evaluation
    would otherwise become one graph. ``fabric.clip_gradients(max_norm=...)`` reads the norm on the
    host unless it is given ``error_if_nonfinite=False``.

    A script names accelerator and strategy itself, or leaves them to the environment variables
    ``LT_ACCELERATOR=hpu`` and ``LT_STRATEGY=gaudi``. Fabric's own command (``fabric run``) starts
    both kinds with ``--devices``; its options ``--accelerator`` and ``--strategy`` accept only
    Lightning's own names.

    Evaluation by HPU-graph replay::

        model = fabric.setup_module(model).eval()
        graphed = GraphedForward(model)  # with several cards: GraphedForward(model.module)
        with torch.no_grad():
            for batch in fabric.setup_dataloaders(loader):
                scores = graphed(batch)

    Args:
        mode: ``"lazy"``, ``"eager"``, or ``"compile"``: eager mode with the forward of each module
            compiled with static shapes, so that each new shape is a compilation.
        mark_step_after_backward: Whether lazy mode breaks the graph between backward and optimizer.
        recipe_cache_dir: Where compiled recipes are kept between runs.
        process_group_backend: Backend of the process group where there are several devices.
        timeout: How long to wait for the other processes, at the start and in each collective.
        **ddp: Further arguments of Fabric's ``DDPStrategy`` and of
            ``torch.nn.parallel.DistributedDataParallel``. What is left out is as in
            `GaudiStrategy`.

    Attributes:
        mode: The execution mode.
        step_boundary: Where the lazy graph breaks.

    Raises:
        ConfigurationError: The mode is unknown.
        ExecutionModeError: The Gaudi software is loaded in another mode, or ``PT_HPU_LAZY_MODE``
            asks for another one.
    """

    mode: ExecutionMode
    step_boundary: LoopBoundary

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
        self.step_boundary = LoopBoundary(mode, after_backward=mark_step_after_backward)
        if recipe_cache_dir is not None:
            loading.set_recipe_cache(recipe_cache_dir)
        # In a notebook there is no script that Fabric could start once more.
        ddp.setdefault("start_method", "fork" if hasattr(sys, "ps1") else "popen")
        ddp = processes.DDP_DEFAULTS | ddp
        super().__init__(process_group_backend=process_group_backend, timeout=timeout, **ddp)
        self._backward_sync_control = _BackwardSync()
        self._is_set_up = False

    @property
    def has_one_device(self) -> bool:
        """Whether this run has a single process, so that there is nobody to talk to."""
        return self.num_nodes * self.num_processes <= 1

    # --- what Fabric hands over -----------------------------------------------------------------

    @property
    @override
    def accelerator(self) -> Accelerator | None:
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        if accelerator is not None and not isinstance(accelerator, HPUAccelerator):
            raise ConfigurationError(
                f"GaudiFabricStrategy needs accelerator='hpu', but the accelerator is "
                f"{type(accelerator).__name__}. Use Fabric(accelerator='hpu', strategy='gaudi')."
            )
        self._accelerator = accelerator

    @property
    @override
    def precision(self) -> Precision:
        return super().precision

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        self._precision = for_fabric(precision)

    @property
    @override
    def checkpoint_io(self) -> CheckpointIO:
        """What writes and reads checkpoints: the user's, or `HPUCheckpointIO`."""
        if self._checkpoint_io is None:
            self._checkpoint_io = HPUCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    @property
    @override
    def root_device(self) -> torch.device:
        """The one HPU of this process."""
        return hpu.this_device()

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:  # type: ignore[override]
        """What each process's share of the data is; None with one device, which takes it all."""
        return None if self.has_one_device else super().distributed_sampler_kwargs

    # --- start ----------------------------------------------------------------------------------

    @override
    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        check_processes(
            self.cluster_environment, num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if self.has_one_device:
            # The last that Fabric does while it is made. There is nothing to launch, and scripts
            # for one device need not call `launch`: so the device is ready from here on.
            self.setup_environment()
        else:
            super()._configure_launcher()

    @override
    def setup_environment(self) -> None:
        """Load the Gaudi software in this strategy's mode and, with several devices, connect them.

        Raises:
            GaudiNotAvailableError: There is no Gaudi software.
            ExecutionModeError: It is loaded in another mode.
            ConfigurationError: This process has no card, the process-group backend is unknown, or
                another number of processes was started than the devices ask for.
            ProcessGroupError: The other processes cannot be found, or are not set like this one.
        """
        if self.has_one_device and self._is_set_up:
            return
        assert self.cluster_environment is not None
        with self._ends_processes_on_error():
            processes.start(
                self.mode,
                self.cluster_environment,
                num_processes=self.num_processes,
                num_nodes=self.num_nodes,
            )
            super().setup_environment()
        self._is_set_up = True

    @contextmanager
    def _ends_processes_on_error(self) -> Iterator[None]:
        """End the processes that this one has started where it cannot start itself.

        They would wait for it until the timeout, and outlive it.
        """
        try:
            yield
        except BaseException:
            for process in getattr(self.launcher, "procs", []):
                process.kill()
            raise

    @override
    def _setup_distributed(self) -> None:
        if self.has_one_device:
            return
        self._set_world_ranks()
        assert self.cluster_environment is not None
        processes.connect(
            self.cluster_environment,
            self._get_process_group_backend(),
            self._timeout,
            mode=self.mode,
        )

    @override
    def setup_module(self, module: Module) -> Module:  # type: ignore[override]
        """Compile the forward in compile mode; wrap the module for DDP with several devices."""
        if self.mode == "compile":
            # The attribute, not the module: its weights keep their names, and so does what Fabric
            # sends through `forward` (`mark_forward_method`).
            module.forward = compilation.compile_static(module.forward)
        return module if self.has_one_device else super().setup_module(module)

    @override
    def _determine_ddp_device_ids(self) -> None:
        """No device ids: HPU modules are on one device, and DDP takes ids for CUDA only."""
        return

    # --- steps ----------------------------------------------------------------------------------

    @override
    def process_dataloader(self, dataloader: DataLoader[Any]) -> DataLoader[Any]:
        """In lazy mode, let a loop over the loader break the graph between its batches."""
        if self.mode != "lazy":
            return dataloader
        return MarkedLoader(dataloader, self.step_boundary)  # type: ignore[return-value]

    @override
    def backward(self, tensor: Tensor, module: Module | None, *args: Any, **kwargs: Any) -> None:
        """Run the backward, then break the lazy graph."""
        super().backward(tensor, module, *args, **kwargs)
        self.step_boundary.after_backward()

    @override
    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """Run the optimizer's step, then break the lazy graph."""
        output = super().optimizer_step(optimizer, **kwargs)
        self.step_boundary.after_optimizer_step()
        return output

    def mark_step(self) -> None:
        """End a step of a loop whose batches come from no loader that Fabric has set up."""
        self.step_boundary.after_evaluation_step()

    # --- several devices ------------------------------------------------------------------------

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Break the lazy graph, then wait for all processes to come here."""
        self.step_boundary.after_evaluation_step()
        super().barrier(*args, **kwargs)

    @override
    def all_reduce(
        self, tensor: Any, group: Any | None = None, reduce_op: Any | None = "mean"
    ) -> Any:
        """Reduce a tensor over all processes, in place, and return it; a mean is a sum, divided."""
        return processes.all_reduce(tensor, group, reduce_op, super().all_reduce)

    @override
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Give all processes one's object; its tensors come to be where they were."""
        return processes.broadcast(obj, src, self.global_rank, super().broadcast)

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree on a decision; one process agrees with itself, without reading the device."""
        return decision if self.has_one_device else super().reduce_boolean_decision(decision, all)


class _BackwardSync(_DDPBackwardSyncControl):
    @override
    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Let a micro-batch's gradients stay in this process; one process has nothing to send."""
        if not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return super().no_backward_sync(module, enabled)
