"""`GaudiStrategy`: Lightning on one Gaudi card, or on many."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.constants import default_pg_timeout
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from lightning_gaudi import processes
from lightning_gaudi.cluster import check_processes
from lightning_gaudi.fused_optimizer import fuse
from lightning_gaudi.gaudi_config import GaudiConfig
from lightning_gaudi.hpu_strategy import HPUStrategy
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime.loading import ExecutionMode
from lightning_gaudi.step_compilation import CompiledSteps

_UNUSED = "Expected to have finished reduction in the prior iteration"


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
        timeout: How long to wait for the other processes, at the start and in each collective.
        **ddp: Further arguments of Lightning's ``DDPStrategy`` and of
            ``torch.nn.parallel.DistributedDataParallel``. Where they are left out, gradients are
            views of the buckets (``gradient_as_bucket_view=True``), a bucket has up to 230 MB
            (``bucket_cap_mb``), and processes are forked in a notebook (``start_method``).

    Raises:
        ConfigurationError: The mode is unknown.
        ExecutionModeError: The Gaudi software is loaded in another mode, or ``PT_HPU_LAZY_MODE``
            asks for another one.
    """

    strategy_name = "gaudi"
    gaudi_config = GaudiConfig()

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
        self._static_graph_of: Module | None = None
        # In a notebook there is no script that Lightning could start once more.
        ddp.setdefault("start_method", "fork" if hasattr(sys, "ps1") else "popen")
        ddp = processes.DDP_DEFAULTS | ddp
        super().__init__(process_group_backend=process_group_backend, timeout=timeout, **ddp)

    # Not Self: LightningCLI takes a class_path by the class that its annotation names.
    @classmethod
    def from_gaudi_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str],
        *,
        precision_plugin: Precision | None = None,
        **settings: Any,
    ) -> GaudiStrategy:
        """Make a strategy that does what a ``gaudi_config.json`` of optimum-habana says.

        ``use_torch_autocast`` makes the run's precision ``"bf16-mixed"``. Autocast's op lists hold
        for the process, so the software must not be loaded yet. ``use_fused_adam`` runs a module's
        `torch.optim.AdamW` (or `Adam` without weight decay) as `FusedAdamW`, and
        ``use_fused_clip_norm`` clips by norm with `FusedClipNorm`. ``use_dynamic_shapes`` turns
        that on in the bridge. In YAML it is a ``class_path`` of its own:
        ``lightning_gaudi.GaudiStrategy.from_gaudi_config``, with ``settings`` in ``dict_kwargs``.

        Args:
            config: A dict with settings, the path of a JSON file, or of a folder with a
                ``gaudi_config.json``. Nothing is downloaded.
            precision_plugin: The precision, where the configuration does not say it.
            settings: Further arguments of the strategy.

        Raises:
            ConfigurationError: The configuration cannot be read, or contradicts the arguments.
            ExecutionModeError: The software is loaded, in another mode or with other op lists.
        """
        found = GaudiConfig.read(config)
        plugin = found.precision_plugin(precision_plugin)
        strategy = cls(precision_plugin=plugin, **settings)
        strategy.gaudi_config = found
        return strategy

    @property
    @override
    def has_one_device(self) -> bool:
        """Whether this run has a single process, so that there is nobody to talk to."""
        return self.num_nodes * self.num_processes <= 1

    # --- start and end --------------------------------------------------------------------------

    @override
    def _configure_launcher(self) -> None:
        # When the Trainer is made, since Lightning's launcher says less, and says it later.
        assert self.cluster_environment is not None
        check_processes(
            self.cluster_environment, num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.has_one_device:
            super()._configure_launcher()

    @override
    def setup_environment(self) -> None:
        """Load the Gaudi software in this strategy's mode and, with several devices, connect them.

        Raises:
            GaudiNotAvailableError: There is no Gaudi software.
            ExecutionModeError: It is loaded in another mode.
            ConfigurationError: This process has no card, or the process-group backend is unknown.
            ProcessGroupError: The other processes cannot be found, or are not set like this one.
        """
        assert self.cluster_environment is not None
        with self._ends_processes_on_error():
            processes.start(
                self.mode,
                self.cluster_environment,
                num_processes=self.num_processes,
                num_nodes=self.num_nodes,
            )
            if self.gaudi_config.use_dynamic_shapes:
                hpu.enable_dynamic_shapes()
            super().setup_environment()

    @override
    def setup_distributed(self) -> None:
        if self.has_one_device:
            return
        reset_seed()
        self.set_world_ranks()
        assert self.cluster_environment is not None
        processes.connect(
            self.cluster_environment,
            self._get_process_group_backend(),
            self._timeout,
            mode=self.mode,
        )
        self._watch_ranks(self._timeout)

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
    def setup_optimizers(self, trainer: Trainer) -> None:
        """Make the optimizers, fused where the Gaudi configuration says so."""
        super().setup_optimizers(trainer)
        if self.gaudi_config.use_fused_adam:
            self.optimizers = [fuse(optimizer) for optimizer in self.optimizers]
        if self.gaudi_config.use_fused_clip_norm:
            self.gaudi_config.fuse_clip_norm(self.precision_plugin)

    @override
    def teardown(self) -> None:
        """Put back what compile mode has swapped, and move the module to the CPU."""
        if self._compiled_steps is not None:
            self._compiled_steps.undo()
        self._static_graph_of = None
        super().teardown()

    @override
    def _setup_model(self, model: Module) -> Module:  # type: ignore[override]
        return model if self.has_one_device else super()._setup_model(model)

    @override
    def configure_ddp(self) -> None:
        """Wrap the module, and give DDP the user's communication hook, if there is one."""
        super().configure_ddp()
        # Lightning does so for CUDA only.
        hook = self._ddp_comm_hook
        if hook is not None and not self.has_one_device:
            assert isinstance(self.model, DistributedDataParallel)
            if self._ddp_comm_wrapper is not None:
                hook = self._ddp_comm_wrapper(hook)
            self.model.register_comm_hook(self._ddp_comm_state, hook)

    @override
    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep a micro-batch's gradients to this process; with a static graph, not the first's.

        DDP learns the static graph in its first backward, and fails where that one is blocked. To
        reduce a micro-batch's gradients as well changes no sum.
        """
        is_first = self._static_graph_of is not self.model
        if is_first and getattr(self.model, "static_graph", False):
            self._static_graph_of = self.model
            yield
        else:
            with super().block_backward_sync():
                yield

    @override
    def determine_ddp_device_ids(self) -> None:
        """No device ids: HPU modules are on one device, and DDP takes ids for CUDA only."""
        return

    # --- several devices ------------------------------------------------------------------------

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree on a decision; one process agrees with itself, without reading the device."""
        return decision if self.has_one_device else super().reduce_boolean_decision(decision, all)

    @override
    def on_exception(self, exception: BaseException) -> None:
        """Say what to do about parameters without gradients, in this strategy's terms."""
        self._tell_ranks(exception)
        if isinstance(exception, RuntimeError) and _UNUSED in str(exception):
            # Lightning's own advice is to change to a strategy that does not run on the HPU.
            exception.args = (
                f"{exception}\nSome parameters had no part in the loss of a step, so DDP waits for "
                "their gradients. If that is meant, use "
                "GaudiStrategy(find_unused_parameters=True).",
            )
        else:
            super().on_exception(exception)
