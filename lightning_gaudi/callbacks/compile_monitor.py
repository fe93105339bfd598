"""`CompileMonitor`: says when a run compiled, read from the device or fell back, and why."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import RenderableType
from rich.text import Text
from typing_extensions import override

from lightning_gaudi.callbacks.monitor.budget import exceeded, message_for
from lightning_gaudi.callbacks.monitor.facts import facts_of
from lightning_gaudi.callbacks.monitor.files import local_folder, write_report
from lightning_gaudi.callbacks.monitor.ledger import Ledger
from lightning_gaudi.callbacks.monitor.options import OnExceed, check_limits, check_options
from lightning_gaudi.callbacks.monitor.table import print_or_say_why, tables_of
from lightning_gaudi.callbacks.monitor.watch import Watch
from lightning_gaudi.errors import BudgetExceededError
from lightning_gaudi.runtime import device, loading
from lightning_gaudi.runtime.recording import Counts


class CompileMonitor(Callback):
    """Counts each step's compilations, host reads and CPU fallbacks, and says where they come from.

    On the emulated HPU each compilation comes with what was new (shapes, a constant, other ops) and
    the source line, each host read and fallback with its line. A line of yours is named where one
    asked for it; what a library does on its own, such as Lightning's progress bar, is named by the
    library's line. A card tells how often it compiled and which ops fell back, not where.

    What happens in a step goes to that step, its progress bar and loggers included; what happens
    between (epoch ends, checkpoints, the sanity check) is counted for the stage, in no step.
    The first `warmup_steps` steps of each stage are warm-up, over the monitor's life: a second
    ``fit`` has none. Budgets count what happens in steps after that.

    At the end of each run it prints a table and, with `report`, writes ``compile_monitor.html``,
    ``.png`` and ``.json``, of everything that this monitor has seen. Also where the run fails.

    It changes no result. On the emulated HPU it costs 2 to 4 us an op, a walk over the Python
    stack: a sixth to a quarter of the time of a training step of a tiny BERT.

    Args:
        max_compilations: How many compilations are allowed after the warm-up; None for any number.
        max_host_reads: How many host reads are allowed after the warm-up; None for any number.
            Those of libraries count too.
        warmup_steps: The first steps of each stage that budgets leave out.
        on_exceed: What happens at the end of the step that exceeds a budget, or of the stage:
            ``"warn"`` once, or ``"raise"``. On several ranks each counts its own.
        log_every_n_steps: In a fit, how often counts go to the Trainer's loggers, as
            ``compile_monitor/compilations`` and so on: sums since the last time. None takes the
            Trainer's. Other stages log ``compile_monitor/validate/compilations`` at their end.
        report: Whether to write the files.
        dirpath: Where to; None takes the logger's folder, else ``default_root_dir``.
        host_reads: On a card, whether to look for host reads, with a dispatch mode that costs a few
            us an op. The emulated HPU always counts them.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        max_compilations: int | None = None,
        max_host_reads: int | None = None,
        warmup_steps: int = 3,
        on_exceed: OnExceed = "warn",
        *,
        log_every_n_steps: int | None = None,
        report: bool = True,
        dirpath: str | Path | None = None,
        host_reads: bool = False,
    ) -> None:
        super().__init__()
        check_options(
            warmup_steps=warmup_steps,
            on_exceed=on_exceed,
            log_every_n_steps=log_every_n_steps,
            report=report,
            dirpath=dirpath,
            host_reads=host_reads,
        )
        self.limits = check_limits(max_compilations=max_compilations, max_host_reads=max_host_reads)
        self.on_exceed = on_exceed
        self.log_every_n_steps = log_every_n_steps
        self.report = report
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.host_reads = host_reads
        self.ledger = Ledger(warmup_steps)
        self._watch: Watch | None = None
        self._has_lines = self._has_host_reads = False
        self._stage = "setup"
        self._is_in_tail = False
        self._unlogged = Counts()
        self._stage_before = Counts()
        self._folder = Path()
        self._about: dict[str, Any] = {}
        self._said: set[str] = set()

    @property
    def facts(self) -> dict[str, Any]:
        """Everything seen so far, as the JSON file has it."""
        return facts_of(
            self.ledger,
            **self._about,
            limits=dict(self.limits),
            has_lines=self._has_lines,
            has_host_reads=self._has_host_reads,
            written=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    # --- the run ----------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        self._close()
        if trainer.strategy.root_device.type != "hpu":
            self._warn_once(
                "CompileMonitor watches an HPU, and this Trainer has none, so it reports nothing. "
                "Use Trainer(accelerator='hpu', strategy=GaudiStrategy())."
            )
            return
        # Asked now, since every rank must ask, and an exception may come on one of them only.
        self._folder = local_folder(self.dirpath or trainer.log_dir or trainer.default_root_dir)
        mode = getattr(trainer.strategy, "mode", "lazy" if loading.is_lazy() else "eager")
        looks = self.host_reads
        if looks and mode == "compile" and not loading.is_emulated():
            looks = False
            self._warn_once(
                "CompileMonitor: host_reads=True has no effect in compile mode on a card, where "
                "the compiler does not work under a dispatch mode."
            )
        self._about = {
            "device": device.name(),
            "mode": mode,
            "rank": trainer.global_rank if trainer.world_size > 1 else None,
            "world_size": trainer.world_size,
            "stopped_by": None,
        }
        self._stage, self._is_in_tail = "setup", False
        self._watch = Watch(trainer, host_reads=looks)
        self._has_lines, self._has_host_reads = self._watch.has_lines, self._watch.has_host_reads

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching and report what was seen."""
        if self._watch is not None:
            self._about["stopped_by"] = type(exception).__name__
            self._finish(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching and report."""
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        if self._watch is None:
            return
        try:
            self._look(trainer)
        finally:
            self._close()
        rank = self._about["rank"]
        if not rank:
            self.print_table()
        if self.report:
            try:
                page = write_report(self.facts, self._folder, rank)
            except OSError as error:  # a full disk must not hide the run's result, or its error
                self._warn_once(f"CompileMonitor could not write its report: {error}")
                return
            if not rank:
                self._print(Text(f"Compile monitor: {page}"))  # a path may look like markup

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def print_table(self) -> None:
        """Print the counts, and the lines behind them."""
        self._print(tables_of(self.ledger, has_host_reads=self._has_host_reads))

    def _print(self, what: RenderableType) -> None:
        if error := print_or_say_why(what):
            self._warn_once(f"CompileMonitor could not print what it found: {error}")

    # --- looking ----------------------------------------------------------------------------------

    def _look(self, trainer: Trainer) -> None:
        """Book what has happened since the last look: to the step that has just ended, if any."""
        if self._watch is None:
            return
        taken = self._watch.take(trainer)
        if self._is_in_tail:
            self.ledger.add_to_step(self._stage, taken)
        else:
            self.ledger.add_between(self._stage, taken)
        if self._stage == "fit":
            self._unlogged += taken.counts
        self._is_in_tail = False

    def _begin(self, trainer: Trainer, stage: str) -> None:
        """Another stage begins."""
        self._look(trainer)
        self._stage = stage
        if self._watch is not None:
            self._stage_before = self.ledger.totals_of(stage).counts

    def _end_step(self, trainer: Trainer, batch: Any) -> None:
        if self._watch is None:
            return
        taken = self._watch.take(trainer, batch)
        if trainer.sanity_checking:
            self.ledger.add_between(self._stage, taken)
            return
        self.ledger.add_step(self._stage, taken)
        self._is_in_tail = True
        if self._stage == "fit":
            self._unlogged += taken.counts
            every = self.log_every_n_steps
            every = trainer.log_every_n_steps if every is None else every  # type: ignore[attr-defined]
            if every and self.ledger.totals_of("fit").num_steps % every == 0:
                self._log_step(trainer)
        self._check_budgets()

    def _end_stage(self, trainer: Trainer) -> None:
        """A stage other than fit ends: log what it did, and go back to the fit around it."""
        self._look(trainer)
        if self._watch is not None and not trainer.sanity_checking:
            now = asdict(self.ledger.totals_of(self._stage).counts)
            before = asdict(self._stage_before)
            metrics = {
                f"compile_monitor/{self._stage}/{name}": value - before[name]
                for name, value in now.items()
            }
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        self._check_budgets()
        self._stage = "fit" if trainer.state.fn == "fit" else self._stage

    def _log_step(self, trainer: Trainer) -> None:
        """Plain numbers, straight to the loggers: ``self.log`` would make tensors of them."""
        if self._unlogged:
            counts = asdict(self._unlogged)
            metrics = {f"compile_monitor/{name}": value for name, value in counts.items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        self._unlogged = Counts()

    def _check_budgets(self) -> None:
        for excess in exceeded(self.limits, self.ledger.late):
            number = self.ledger.totals_of(self._stage).num_steps
            message = message_for(
                excess,
                f"max_{excess.name}={excess.limit}",
                f"after {self.ledger.warmup_steps} warm-up steps, noticed in step {number} of "
                f"{self._stage}",
                self.ledger.worst(excess.kind),
            )
            if self.on_exceed == "raise":
                raise BudgetExceededError(f"CompileMonitor: {message}")
            if excess.name not in self._said:
                self._said.add(excess.name)
                warnings.warn(f"CompileMonitor: {message}", stacklevel=2)

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=3)

    # --- hooks ------------------------------------------------------------------------------------

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its steps are none of validation."""
        self._begin(trainer, "sanity_check")

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Book what it did."""
        self._begin(trainer, "fit")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fit begins."""
        self._begin(trainer, "fit")

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What has happened since the last step's end belongs to that step."""
        self._look(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A step ends.

        Raises:
            BudgetExceededError: It exceeds a budget, and ``on_exceed="raise"``.
        """
        self._end_step(trainer, batch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now belongs to no step."""
        self._look(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit ends."""
        self._look(trainer)
        self._log_step(trainer)
        self._check_budgets()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation begins, inside a fit or on its own."""
        if not trainer.sanity_checking:
            self._begin(trainer, "validate")

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As for training."""
        self._look(trainer)

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
        """A step ends, as for training."""
        self._end_step(trainer, batch)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now belongs to no step."""
        self._look(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation ends."""
        if not trainer.sanity_checking:
            self._end_stage(trainer)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test begins."""
        self._begin(trainer, "test")

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test ends."""
        self._end_stage(trainer)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A prediction begins."""
        self._begin(trainer, "predict")

    on_predict_batch_start = on_validation_batch_start
    on_predict_batch_end = on_validation_batch_end
    on_predict_epoch_end = on_validation_epoch_end

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A prediction ends."""
        self._end_stage(trainer)
