"""`GaudiFSDPStrategy`: models that do not fit one card, sharded over many by PyTorch's FSDP2."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gaudi import processes
from lightning_gaudi.cluster import check_processes
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.hpu_strategy import HPUStrategy
from lightning_gaudi.runtime import optimizers
from lightning_gaudi.runtime.loading import ExecutionMode
from lightning_gaudi.sharding import modules
from lightning_gaudi.sharding.checkpoints import ShardedCheckpoints, StateDictType
from lightning_gaudi.sharding.policy import WrapPolicy, choose_groups, outer_groups

_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
_MIXED = "mixed torch.Tensor and DTensor"


class GaudiFSDPStrategy(HPUStrategy, ShardedCheckpoints):
    """Runs a LightningModule whose parameters are sharded over all cards.

    The module needs no change: each block that repeats in it (see ``auto_wrap_policy``) becomes a
    group whose parameters are gathered before its forward and its backward and freed after them;
    what lies outside the blocks is gathered for the whole of a step. Each card holds its part of
    parameters, gradients and optimizer state. A module that calls ``fully_shard`` itself in
    ``configure_model``, on ``self.device_mesh["data_parallel"]``, is left as that has made it.

    Parameters are whole inside ``training_step``, ``validation_step``, ``test_step``,
    ``predict_step`` and ``forward``, and in parts (``DTensor``) in all other hooks. With manual
    optimization they are whole inside the ``forward`` of each of the module's children.

    With one device nothing is sharded, there is no process group and no device mesh.

    Args:
        mode: ``"eager"`` runs op by op, which is the mode that Intel documents for FSDP (with
            ``torch.compile`` inside the model where you like). ``"lazy"`` gathers ops into graphs
            and breaks them where `GaudiStrategy` does. ``"compile"`` is refused.
        mark_step_after_backward: Whether lazy mode breaks the graph between backward and optimizer.
        recipe_cache_dir: Where compiled recipes are kept between runs.
        process_group_backend: Backend of the process group where there are several devices.
        timeout: How long a collective may take.
        auto_wrap_policy: Which modules become groups: classes of modules, their names, paths such
            as ``"model.layers.*"``, or a function of a module. None for the children of a
            ``ModuleList``, ``ModuleDict`` or ``Sequential`` whose class occurs there more than
            once. Tied weights belong to the group around all modules that use them.
        reshard_after_forward: Whether a group's parameters are freed between its forward and its
            backward: less memory, one more all-gather.
        mixed_precision: In which dtypes parameters are gathered and gradients reduced. None for
            those of one card: parameters are gathered as they are, gradients summed in float32.
            ``MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)`` halves
            the communication of ``"bf16-mixed"``, and rounds all weights, those of norms too.
        activation_checkpointing: Which modules keep no activations and run their forward once more
            in the backward: True for the groups, or as ``auto_wrap_policy``.
        cpu_offload: Not supported; there for its error message.
        state_dict_type: What a checkpoint is. ``"full"``: one file as one card would write it,
            gathered by the main process, which any strategy reads. ``"sharded"``: a folder to which
            each process writes its part, read with any number of cards. Both are read whatever is
            chosen here.

    Raises:
        ConfigurationError: An argument cannot be.
        ExecutionModeError: The Gaudi software is loaded in another mode, or ``PT_HPU_LAZY_MODE``
            asks for another one.
    """

    strategy_name = "gaudi_fsdp"

    def __init__(
        self,
        mode: ExecutionMode = "eager",
        *,
        mark_step_after_backward: bool = True,
        recipe_cache_dir: str | Path | None = None,
        process_group_backend: str = "hccl",
        timeout: timedelta | None = default_pg_timeout,
        auto_wrap_policy: WrapPolicy = None,
        reshard_after_forward: bool = True,
        mixed_precision: MixedPrecisionPolicy | None = None,
        activation_checkpointing: bool | WrapPolicy = False,
        cpu_offload: bool = False,
        state_dict_type: StateDictType = "full",
    ) -> None:
        if state_dict_type not in get_args(StateDictType):
            raise ConfigurationError(
                f"state_dict_type must be 'full' or 'sharded', but it is {state_dict_type!r}."
            )
        if cpu_offload:
            raise ConfigurationError(
                "GaudiFSDPStrategy keeps parameters and optimizer state on the cards: leave out "
                "cpu_offload. What needs less memory: activation_checkpointing=True, "
                "precision='bf16-true', more cards."
            )
        if mode == "compile":
            raise ConfigurationError(
                "GaudiFSDPStrategy has no mode='compile': a compiled step would hold gathered "
                "parameters for ever. Use mode='eager', and compile blocks of the model yourself "
                "in configure_model: block.compile(backend='hpu_backend', dynamic=False)."
            )
        self._choose_mode(
            mode,
            mark_step_after_backward=mark_step_after_backward,
            recipe_cache_dir=recipe_cache_dir,
        )
        super().__init__(
            save_distributed_checkpoint=state_dict_type == "sharded",
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._policy = auto_wrap_policy
        self._reshard_after_forward = reshard_after_forward
        self._mixed_precision = mixed_precision
        self._activation_checkpointing = activation_checkpointing
        self._loss_divisor = 1

    @property
    @override
    def has_one_device(self) -> bool:
        """Whether this run has a single process, which shards nothing."""
        return self.num_nodes * self.num_processes <= 1

    # --- start and end --------------------------------------------------------------------------

    @override
    def _configure_launcher(self) -> None:
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
            Strategy.setup_environment(self)
            if self.has_one_device:
                return
            reset_seed()
            self.set_world_ranks()
            processes.connect(
                self.cluster_environment,
                self._get_process_group_backend(),
                self._timeout,
                mode=self.mode,
            )
            self._watch_ranks(self._timeout)
        self._device_mesh = init_device_mesh(
            "hpu", (self.world_size,), mesh_dim_names=("data_parallel",)
        )
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @override
    def setup(self, trainer: Trainer) -> None:
        """Shard the module, unless it is, and make its optimizers.

        Raises:
            ConfigurationError: The module cannot be sharded as asked, or the precision or an
                optimizer cannot be used with sharded parameters.
        """
        assert self.accelerator is not None
        assert self.lightning_module is not None
        if self.has_one_device:
            modules.materialize(self.lightning_module, self.root_device)
            Strategy.setup(self, trainer)
            return
        self.accelerator.setup(trainer)
        self._check_precision()
        # In inference mode what the first forward gathers could never be trained.
        for loop in (
            trainer.fit_loop.epoch_loop.val_loop,
            trainer.validate_loop,
            trainer.test_loop,
            trainer.predict_loop,
        ):
            loop.inference_mode = False
        self.model = self.precision_plugin.convert_module(self.lightning_module)
        self._shard(self.lightning_module)
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _shard(self, module: LightningModule) -> None:
        modules.move_buffers(module, self.root_device)
        if not modules.is_sharded(module):
            self._shard_groups(module)
        else:  # by an earlier run, or by the module itself in configure_model
            modules.reshard(module)
            modules.check_sharded(module)
        modules.materialize(module, self.root_device)
        self._loss_divisor = modules.sum_gradients(module, self.world_size)

    def _shard_groups(self, module: LightningModule) -> None:
        groups = choose_groups(module, self._policy)
        checkpointing = self._activation_checkpointing
        if checkpointing is True:
            modules.checkpoint_activations(groups.values())
        elif checkpointing is not False:
            modules.checkpoint_activations(choose_groups(module, checkpointing).values())
        policy = self._mixed_precision or MixedPrecisionPolicy(reduce_dtype=torch.float32)
        is_automatic = module.automatic_optimization
        outer = {} if is_automatic else outer_groups(module)
        for path, group in groups.items():
            modules.shard(
                group,
                self.device_mesh,
                reshard_after_forward=self._reshard_after_forward,
                mixed_precision=policy,
            )
            outer.pop(path, None)
        # What no group has is whole during a step. Where a step runs backwards itself, it has to be
        # gathered anew for what follows, and only the forward of a child tells when.
        for rest in [module] if is_automatic else outer.values():
            modules.shard(
                rest, self.device_mesh, reshard_after_forward=False, mixed_precision=policy
            )
        if is_automatic:
            for name in _STEPS:
                register_fsdp_forward_method(module, name)
        rank_zero_info(
            f"FSDP: {len(groups)} groups of parameters "
            f"({', '.join(list(groups)[:3])}{' ...' if len(groups) > 3 else ''}) and the rest, in "
            f"{self.world_size} parts"
        )

    def _check_precision(self) -> None:
        precision = getattr(self.precision_plugin, "precision", None)
        if precision not in _PRECISIONS:
            raise ConfigurationError(
                f"GaudiFSDPStrategy takes precision {', '.join(map(repr, _PRECISIONS))}, but it is "
                f"{precision!r} ({type(self.precision_plugin).__name__}): scaled losses and "
                "exchanged layers do not work on sharded parameters."
            )

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        """Make the optimizers, of the sharded parameters.

        Raises:
            ConfigurationError: One of them is the Gaudi software's own.
        """
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if not self.has_one_device and optimizers.is_fused(optimizer):
                raise ConfigurationError(
                    f"{type(optimizer).__name__} is a kernel of the Gaudi software that does not "
                    "know sharded parameters. Use PyTorch's own optimizer with "
                    "GaudiFSDPStrategy, torch.optim.AdamW say."
                )

    @override
    def teardown(self) -> None:
        """End the run. A module that is sharded stays so, on the cards."""
        # What never got memory cannot move to the CPU, and would hide why the run ended.
        if self.has_one_device and not modules.is_meta(self.lightning_module):
            Strategy.teardown(self)
            return
        super().teardown()
        self.checkpoint_io.teardown()

    # --- steps ----------------------------------------------------------------------------------

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run the backward, so that gradients are means over the processes."""
        divisor = self._loss_divisor
        if divisor == 1:
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        # Not the loss itself, which is logged as it is.
        hook: Any = closure_loss.register_hook(lambda gradient: gradient / divisor)  # type: ignore[no-untyped-call]
        with hook:
            return super().backward(closure_loss, optimizer, *args, **kwargs)

    @override
    def on_validation_end(self) -> None:
        """Free what the last step has gathered; there is no backward that would."""
        self._free_gathered()
        super().on_validation_end()

    @override
    def on_test_end(self) -> None:
        """Free what the last step has gathered."""
        self._free_gathered()
        super().on_test_end()

    @override
    def on_predict_end(self) -> None:
        """Free what the last step has gathered."""
        self._free_gathered()
        super().on_predict_end()

    def _free_gathered(self) -> None:
        assert self.lightning_module is not None
        modules.reshard(self.lightning_module)

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree on a decision; one process agrees with itself, without reading the device."""
        return decision if self.has_one_device else super().reduce_boolean_decision(decision, all)

    @override
    def on_exception(self, exception: BaseException) -> None:
        """Say what to do where a parameter was used that is in parts."""
        super().on_exception(exception)
        if isinstance(exception, RuntimeError) and _MIXED in str(exception):
            exception.args = (
                f"{exception}\nA sharded parameter was used where it is in parts. It is whole in "
                "the steps and in forward of the LightningModule (with manual optimization in the "
                "forward of each child). A group's parameters (see auto_wrap_policy) are whole in "
                "that module's own forward only: call the module, and none of its other methods; "
                "or name it in torch.distributed.fsdp.register_fsdp_forward_method.",
            )
