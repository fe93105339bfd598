"""`FiniteLoss`: ends a fit whose loss is no number any more, before it costs a good checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError, NonFiniteError
from lightning_gaudi.hpu_strategy import HPUStrategy

_NAMES_IN_MESSAGE = 5


class FiniteLoss(Callback):
    """Raises where a training loss, or a weight that is about to be saved, is NaN or infinite.

    Each step notes on the device whether its loss was finite, without asking the device; the note
    is read every so many batches, when training ends, and before a checkpoint is written, when the
    weights are looked at as well. So no checkpoint with such weights is written, and none replaces
    a good one. On many ranks all of them stop, with the same error. Lightning's
    ``EarlyStopping(check_finite=True)`` needs a logged metric and reads it each time;
    ``Trainer(detect_anomaly=True)`` finds the op, and slows everything down.

    A loss is what ``training_step`` returns, also in manual optimization; a step that returns none
    is not looked at, only the weights are.

    Args:
        every_n_batches: How often to read the note: a host read each time.

    Raises:
        ConfigurationError: ``every_n_batches`` is no positive whole number.
        NonFiniteError: In training, for such a loss or weight: the error names rank, batch, value
            and the last checkpoint.
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        if not isinstance(every_n_batches, int) or every_n_batches < 1:
            raise ConfigurationError(
                f"every_n_batches must be 1 or more, but it is {every_n_batches!r}."
            )
        self.every_n_batches = every_n_batches
        self._note: _Note | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a clean note."""
        self._note = _Note(trainer.strategy.root_device, trainer.fit_loop.total_batch_idx + 1)
        strategy: Any = trainer.strategy
        if isinstance(strategy, HPUStrategy):
            strategy.before_saving = [lambda: self._check(trainer, weights=True)]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether the loss was finite; now and then, read it."""
        assert self._note is not None
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._note.add(loss if isinstance(loss, Tensor) else None)
        if (batch_idx + 1) % self.every_n_batches == 0:
            self._check(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the note of the last batches."""
        self._check(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Under a strategy that is not ours: before a checkpoint that holds more than weights."""
        if not isinstance(trainer.strategy, HPUStrategy):
            self._check(trainer, weights=True)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the strategy as it was."""
        self._note = None
        if isinstance(trainer.strategy, HPUStrategy):
            trainer.strategy.before_saving = []

    def _check(self, trainer: Trainer, *, weights: bool = False) -> None:
        """Read the notes of all ranks at once, so that all of them raise.

        Raises:
            NonFiniteError: A loss or, if they are looked at, a weight is not finite.
        """
        if self._note is None:
            return
        names, are_bad = _weights(trainer.lightning_module) if weights else ([], None)
        mine = self._note.as_numbers(are_bad)
        if trainer.world_size > 1 and trainer.state.status != TrainerStatus.INTERRUPTED:
            read = {r: _Read(n) for r, n in enumerate(trainer.strategy.all_gather(mine).tolist())}
        else:
            read = {trainer.global_rank: _Read(mine.tolist())}  # the other ranks may not come
        last = _last_checkpoint(trainer)
        bad_losses = [(note.first, rank) for rank, note in read.items() if note.first >= 0]
        if bad_losses:
            first, rank = min(bad_losses)
            raise NonFiniteError(
                f"the loss of training batch {first} on rank {rank} is {read[rank].value} "
                f"(batches count from 0 over all epochs; this is known after batch "
                f"{self._note.num_batches - 1}, as FiniteLoss looks every {self.every_n_batches} "
                f"batches and before a checkpoint). {last} A smaller learning rate, "
                "Trainer(gradient_clip_val=...) or another precision may help; "
                "Trainer(detect_anomaly=True) finds the op, and the batch's rows may be at fault."
            )
        bad_weights = [rank for rank, note in read.items() if note.has_bad_weight]
        if bad_weights:
            found = [name for name, bad in zip(names, are_bad.tolist(), strict=True) if bad]  # type: ignore[union-attr]
            more = (
                f" and {len(found) - _NAMES_IN_MESSAGE} more" if found[_NAMES_IN_MESSAGE:] else ""
            )
            which = f": {', '.join(found[:_NAMES_IN_MESSAGE])}{more}" if found else ""
            raise NonFiniteError(
                f"weights on rank {bad_weights[0]} are NaN or infinite after batch "
                f"{self._note.num_batches - 1}, though every loss was finite{which}. They are not "
                f"saved. {last} A gradient must have been, as of a square root at 0: "
                "Trainer(detect_anomaly=True) finds the op."
            )


class _Note:
    """What is known of the losses, on the device.

    Every step runs the same ops, so that there is nothing to compile: the batch's number is counted
    there, for a number that changes would make a new graph each time.

    Args:
        device: Where.
        num_batches: How many batches there were before.
    """

    def __init__(self, device: torch.device, num_batches: int) -> None:
        self.num_batches = num_batches
        self._count = torch.full((), num_batches, dtype=torch.int32, device=device)
        self._first = torch.full((), -1, dtype=torch.int32, device=device)
        self._value = torch.zeros((), device=device)

    @torch.no_grad()
    def add(self, loss: Tensor | None) -> None:
        """Add a batch.

        Args:
            loss: Its loss, of any shape; it is not changed. None where it has none.
        """
        self.num_batches += 1
        if loss is not None:
            value = loss.detach().float().sum()  # not finite if one of them is not
            is_first = ~torch.isfinite(value) & (self._first < 0)
            self._value.copy_(torch.where(is_first, value, self._value))
            self._first.copy_(torch.where(is_first, self._count, self._first))
        self._count.add_(1)

    @torch.no_grad()
    def as_numbers(self, are_bad: Tensor | None) -> Tensor:
        """Floats for `_Read`: the first bad batch in two parts, its loss, if a weight is bad."""
        any_bad = torch.zeros_like(self._value) if are_bad is None else are_bad.any().float()
        # A float32 counts to 16 million only.
        high, low = (self._first >> 16).float(), (self._first & 0xFFFF).float()
        return torch.stack([high, low, self._value, any_bad])


class _Read:
    """What a rank's note says.

    Args:
        numbers: What `_Note.as_numbers` gave, on the host.

    Attributes:
        first: The first batch with a bad loss, or -1.
        value: That loss.
        has_bad_weight: Whether a weight is bad.
    """

    def __init__(self, numbers: list[float]) -> None:
        high, low, self.value, any_bad = numbers
        self.first = int(high) * 65536 + int(low)
        self.has_bad_weight = any_bad != 0


@torch.no_grad()
def _weights(module: LightningModule) -> tuple[list[str], Tensor | None]:
    """Names of parameters, and for each whether it is not finite, as one tensor on the device."""
    names, bad = [], []
    for name, parameter in module.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if local.is_floating_point() or local.is_complex():
            names.append(name)
            bad.append(~torch.isfinite(local).all())
    return names, torch.stack(bad) if bad else None


def _last_checkpoint(trainer: Trainer) -> str:
    path = getattr(trainer.strategy, "last_checkpoint", None)
    if path is not None:
        return f"The last checkpoint, with finite weights, is {path}."
    if trainer.ckpt_path is not None:
        return f"This fit has saved no checkpoint; it began from {trainer.ckpt_path}."
    return "This fit has saved no checkpoint."
