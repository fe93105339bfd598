"""SIGTERM on one rank ends all of them at the same step, without asking the device.

Lightning asks the other ranks at the start of each training step: a tensor goes to the device, is
broadcast, and is read on the host (lightning 2.6.6, ``training_epoch_loop.py``). On the HPU that is
a wait for the device in every step, and in lazy mode a flush. Its handler also broadcasts from
inside the signal, where the other ranks may be in another collective. Here the question goes from
host to host over gloo, any rank's signal counts, and all ranks learn of it at the same step.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

# Private names, since Lightning has no setting. Without them (older releases do not ask in each
# step) nothing is replaced.
_ASK = "_broadcast_sigterm_tensor"
_NOTIFY = "_sigterm_notifier_fn"
_host_group: tuple[Any, Any] = (None, None)
"""The default process group, and the one on the host that was made beside it."""


class Termination:
    """Whether a rank has been told to end, asked by all at the start of each training step.

    Args:
        trainer: The run.
        group: A process group of all ranks for tensors on the host.
    """

    def __init__(self, trainer: Trainer, group: Any) -> None:
        self._trainer = trainer
        self._group = group
        self._is_told = False

    def notify(self, signum: int, frame: Any) -> None:
        """Remember the signal, and pass it on to processes that this one has started."""
        launcher = self._trainer.strategy.launcher
        if not self._is_told and launcher is not None:
            launcher.kill(signum)
        self._is_told = True

    def ask(self) -> None:
        """Ask all ranks.

        Raises:
            SIGTERMException: One of them has been told to end; raised in all of them.
        """
        told = torch.tensor([int(self._is_told)])
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        if told.item():
            self._is_told = False
            rank_zero_info("A rank has got SIGTERM: all of them end.")
            raise SIGTERMException


def end_together(trainer: Trainer, timeout: timedelta | None) -> None:
    """Let the ranks of a run ask each other on the host; before Lightning sets its handlers.

    Args:
        trainer: The run.
        timeout: How long to wait for the other ranks.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    connector: Any = getattr(trainer, "_signal_connector", None)
    if not hasattr(loop, _ASK) or not hasattr(connector, _NOTIFY) or not dist.is_initialized():
        return
    group = _group_on_host(timeout)
    if group is not None:
        termination = Termination(trainer, group)
        setattr(loop, _ASK, termination.ask)
        setattr(connector, _NOTIFY, termination.notify)


def _group_on_host(timeout: timedelta | None) -> Any:
    """A gloo group of all ranks, the same in each run on one default group; None without gloo."""
    global _host_group
    world, group = _host_group
    if world is not dist.group.WORLD:
        try:
            group = dist.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            rank_zero_warn(
                f"No process group on the host: {str(error).partition(chr(10))[0]}. So Lightning "
                "asks the device in each training step whether to end, which waits for it."
            )
            group = None
        _host_group = (dist.group.WORLD, group)
    return group
