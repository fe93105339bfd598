"""Checkpoints of sharded modules, as a part of a strategy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gaudi.checkpoint import HPUCheckpointIO
from lightning_gaudi.sharding import folders, states

StateDictType = Literal["full", "sharded"]


class ShardedCheckpoints(ModelParallelStrategy):
    """How a strategy that shards writes and reads checkpoints, in both forms.

    What Lightning's own does is not used: for a file it takes parameters to be in the optimizer in
    the module's order, and loads before the module's hooks have seen the checkpoint.
    """

    @property
    @abstractmethod
    def has_one_device(self) -> bool:
        """Whether this run has a single process, which shards nothing."""

    @property
    def state_dict_type(self) -> StateDictType:
        """What a checkpoint is: ``"full"`` or ``"sharded"``."""
        return "sharded" if self._save_distributed_checkpoint else "full"

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state: whole, in the main process and empty in others, or in parts."""
        assert self.lightning_module is not None
        if self.state_dict_type == "sharded":
            return dict(self.lightning_module.state_dict())
        if self.has_one_device:
            return Strategy.lightning_module_state_dict(self)
        # Not detached, so that a tied weight is one tensor and stays tied in the file.
        state = self.lightning_module.state_dict(keep_vars=True)
        gathered = states.Gatherer(is_kept=self.is_global_zero)(state)
        return gathered if self.is_global_zero else {}

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state: whole, in the main process and empty in others, or in parts."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        assert self.lightning_module is not None
        if self.state_dict_type == "sharded":
            return folders.named(optimizer, self.lightning_module)
        if self.has_one_device:
            return Strategy.optimizer_state(self, optimizer)
        gathered = states.Gatherer(is_kept=self.is_global_zero)(optimizer.state_dict())
        return gathered if self.is_global_zero else {}

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint: a file by the main process, or a folder by all.

        Raises:
            TypeError: ``storage_options`` is given.
            IsADirectoryError: A file is to be written where there is another kind of folder.
            OSError: It cannot be written; what was there before is still there.
        """
        path = Path(self.broadcast(filepath))
        if self.state_dict_type == "full":
            # All processes raise: the others would wait for the main one.
            if self.broadcast(path.is_dir() and not folders.is_folder(path)):
                raise IsADirectoryError(
                    f"{path} is a folder and no checkpoint: it is not replaced by a file."
                )
            with folders.replaced_by_file(path, is_main=self.is_global_zero):
                Strategy.save_checkpoint(self, checkpoint, path, storage_options)
            return
        if storage_options is not None:
            raise TypeError(
                "Trainer.save_checkpoint(..., storage_options=...) is not supported with "
                'state_dict_type="sharded".'
            )
        rest = dict(checkpoint)
        folders.save(
            path,
            rest.pop("state_dict"),
            rest.pop("optimizer_states", []),
            lambda file: HPUCheckpointIO().save_checkpoint(rest, file),
            is_main=self.is_global_zero,
            broadcast=self.broadcast,
            barrier=self.barrier,
        )

    @override
    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint: a file, or a folder that any number of processes has written.

        Raises:
            ConfigurationError: It is a folder of another kind.
        """
        # The argument is new in lightning 2.6.
        given = {} if weights_only is None else {"weights_only": weights_only}
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return Strategy.load_checkpoint(self, path, **given)
        folders.check_folder(path)
        assert self.lightning_module is not None
        rest = Strategy.load_checkpoint(self, path / folders.META_FILE, **given)
        return folders.load(path, self.lightning_module, self.optimizers, rest)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the module's state, whole or in parts."""
        assert self.lightning_module is not None
        state = states.place_module_state(checkpoint["state_dict"], self.lightning_module)
        self.lightning_module.load_state_dict(state, strict=strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' states, whole or in parts."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            optimizer.load_state_dict(states.place_optimizer_state(state, optimizer))
