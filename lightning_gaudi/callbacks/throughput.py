"""`HPUThroughputMonitor`: how fast a run is, and what memory it takes, without slowing it down."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_gaudi.callbacks.monitor.budget import check_count
from lightning_gaudi.callbacks.monitor.table import print_or_say_why
from lightning_gaudi.callbacks.options import check_switch
from lightning_gaudi.callbacks.rates import memory
from lightning_gaudi.callbacks.rates.books import StageBooks, Work
from lightning_gaudi.callbacks.rates.counts import checked_count, samples_in, tokens_in
from lightning_gaudi.callbacks.rates.memory import MemoryUse
from lightning_gaudi.callbacks.rates.table import Row, table_of
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import device

_RATES = ("batches_per_second", "samples_per_second", "tokens_per_second")
# Tests put another in its place.
_clock = time.perf_counter


class HPUThroughputMonitor(Callback):
    """Measures batches, samples and tokens a second, and device memory, in every stage.

    It counts from shapes and times windows of steps, so that a step waits for nothing: on one card
    it adds no host read and no op. Figures are host time, which is the device's as soon as the
    host has to wait for it (a logged loss, the progress bar, a result that is kept); where nothing
    waits, `synchronize` does, once a window.

    The first `warmup_steps` steps of each stage, in which graphs are compiled and captured, are
    left out, in every run anew. Validation inside a fit is its own stage and no part of the fit's
    time. Loggers get, for each window of a fit, ``throughput/fit/samples_per_second`` and so on,
    ``memory_in_use_gib``, ``memory_peak_gib`` and ``memory_peak_share`` (of the device's limit);
    the same by window and at the end of a stage for ``validate``, ``test`` and ``predict``, by the
    number of batches, and for validation inside a fit at its end. A table is printed at the end.

    On several cards rates are those of all, with this card's own under ``card/``. For that a fit
    has one collective and one host read a window, and other stages at their end alone, since their
    ranks may have different numbers of batches.

    A stage's peak of memory is the device's own, which is set back where a stage begins
    (``torch.hpu.reset_peak_memory_stats``).

    Args:
        batch_size_fn: Rows of a batch, as a whole number; None takes the first dimension of
            ``input_ids`` or of the first tensor, or the length of a list.
        length_fn: Tokens of a batch, as a whole number; None takes all places of ``input_ids``,
            padding included. Neither function may read from the device.
        window_size: Steps in a window; None takes the Trainer's ``log_every_n_steps``.
        warmup_steps: The first steps of each stage that are left out.
        synchronize: Whether to wait for the device at the ends of windows. What is pending in the
            lazy graph then is flushed, which can be a graph of its own.
        print_table: Whether to print the table.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int] | None = None,
        length_fn: Callable[[Any], int] | None = None,
        *,
        window_size: int | None = None,
        warmup_steps: int = 3,
        synchronize: bool = False,
        print_table: bool = True,
    ) -> None:
        super().__init__()
        for name, function in (("batch_size_fn", batch_size_fn), ("length_fn", length_fn)):
            if function is not None and not callable(function):
                raise ConfigurationError(
                    f"{name} must be a function of a batch, but it is {function!r}."
                )
        if window_size is not None:
            check_count("window_size", window_size)
        check_count("warmup_steps", warmup_steps)
        check_switch("synchronize", synchronize)
        check_switch("print_table", print_table)
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.window_size = window_size
        self.warmup_steps = warmup_steps
        self.synchronize = synchronize
        self.print_table = print_table
        self._has_warned = False
        self._forget()

    def _forget(self) -> None:
        self._books: dict[str, StageBooks] = {}
        self._memory: dict[str, MemoryUse] = {}
        self._of_all: dict[str, dict[str, float]] = {}
        self._has_device = False
        self._is_over = True

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """By stage, the rates of the last run and its memory, under the loggers' names."""
        return {
            stage: self._of_all.get(stage, books.total.rates()) | self._memory[stage].as_dict()
            for stage, books in self._books.items()
        }

    # --- the run ----------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew."""
        self._forget()
        self._is_over = False
        self._has_device = trainer.strategy.root_device.type == "hpu"

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table."""
        self._print(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print what was measured, of this card."""
        for books in self._books.values():
            books.pause()
            books.end_window()
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if self._is_over:
            return
        self._is_over = True
        if not self.print_table or not self._books or not trainer.is_global_zero:
            return
        cards = f", {trainer.world_size} cards" if trainer.world_size > 1 else ""
        rows = {
            stage: Row(
                steps=books.num_steps,
                step_seconds=books.total.seconds / books.total.batches
                if books.total.batches
                else None,
                figures=self.figures[stage],
            )
            for stage, books in self._books.items()
        }
        if error := print_or_say_why(table_of(rows, title=f"Throughput{cards}")):
            warnings.warn(f"HPUThroughputMonitor could not print its table: {error}", stacklevel=2)

    # --- stages -----------------------------------------------------------------------------------

    def _start(self, stage: str) -> None:
        if stage not in self._books:
            self._books[stage] = StageBooks(self.warmup_steps, _clock)
            self._memory[stage] = MemoryUse()
        if self._has_device:
            memory.begin()
        self._books[stage].run()

    def _pause(self, stage: str) -> None:
        if stage not in self._books:
            return
        self._wait()
        self._books[stage].pause()
        if self._has_device:
            self._memory[stage].look()

    def _finish(self, trainer: Trainer, stage: str) -> None:
        """A stage has ended, on all cards."""
        self._pause(stage)
        books = self._books[stage]
        last = books.end_window()
        self._of_all[stage] = self._sum(trainer, books.total)
        if _is_inside_fit(trainer, stage):
            self._log(trainer, stage, last, self._sum(trainer, last))
        elif stage != "fit":
            self._log(trainer, stage, books.total, self._of_all[stage])

    def _wait(self) -> None:
        if self.synchronize and self._has_device:
            device.synchronize()

    def _end_step(self, trainer: Trainer, stage: str, batch: Any) -> None:
        books = self._books[stage]
        if books.ends_warmup:
            self._wait()
        books.step(*self._count(batch))
        size = self.window_size
        if size is None:
            size = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not size or books.window.batches < size or _is_inside_fit(trainer, stage):
            return
        self._wait()
        work = books.end_window()
        if self._has_device:
            self._memory[stage].look()
        of_all = None
        if stage == "fit" or trainer.world_size == 1:
            of_all = self._sum(trainer, work)
        self._log(trainer, stage, work, of_all)

    def _count(self, batch: Any) -> tuple[int | None, int | None]:
        samples = (
            samples_in(batch)
            if self.batch_size_fn is None
            else checked_count("batch_size_fn", self.batch_size_fn(batch))
        )
        if samples is None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "HPUThroughputMonitor cannot tell how many rows a batch has that is a "
                f"{type(batch).__name__}, so it tells no samples a second. Pass batch_size_fn.",
                stacklevel=3,
            )
        if self.length_fn is None:
            return samples, tokens_in(batch)
        return samples, checked_count("length_fn", self.length_fn(batch))

    def _sum(self, trainer: Trainer, work: Work) -> dict[str, float]:
        """The rates of all cards; every rank must ask."""
        rates = work.rates()
        if trainer.world_size == 1:
            return rates
        own = torch.tensor([rates.get(name, math.nan) for name in _RATES])
        found = trainer.strategy.reduce(own.to(trainer.strategy.root_device), reduce_op="sum")
        assert isinstance(found, torch.Tensor)
        return {
            name: rate
            for name, rate in zip(_RATES, found.tolist(), strict=True)
            if not math.isnan(rate)
        }

    def _log(
        self, trainer: Trainer, stage: str, work: Work, of_all: dict[str, float] | None
    ) -> None:
        figures = dict(of_all or {}) | self._memory[stage].as_dict()
        if trainer.world_size > 1:
            figures |= {f"card/{name}": rate for name, rate in work.rates().items()}
        metrics = {f"throughput/{stage}/{name}": value for name, value in figures.items()}
        is_in_fit = trainer.state.fn == "fit"
        step = trainer.global_step if is_in_fit else self._books[stage].num_steps
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    # --- Lightning's hooks ------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit runs."""
        self._start("fit")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A training batch has run; it counts, also where gradients of several are accumulated."""
        self._end_step(trainer, "fit", batch)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit has ended."""
        self._finish(trainer, "fit")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation runs; a fit around it does not."""
        if not trainer.sanity_checking:
            self._pause("fit")
            self._start("validate")

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A validation batch has run."""
        if not trainer.sanity_checking:
            self._end_step(trainer, "validate", batch)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has ended; a fit around it goes on."""
        if not trainer.sanity_checking:
            self._finish(trainer, "validate")
            if "fit" in self._books:
                self._start("fit")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test runs."""
        self._start("test")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A test batch has run."""
        self._end_step(trainer, "test", batch)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The test has ended."""
        self._finish(trainer, "test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prediction runs."""
        self._start("predict")

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch to predict has run."""
        self._end_step(trainer, "predict", batch)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prediction has ended."""
        self._finish(trainer, "predict")


def _is_inside_fit(trainer: Trainer, stage: str) -> bool:
    return stage == "validate" and trainer.state.fn == "fit"
