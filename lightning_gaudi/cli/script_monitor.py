"""Watches a whole script: its Trainers step by step, and what it does outside of them.

One `CompileMonitor` joins every Trainer. Beside it a record of the whole process runs; what comes
while no Trainer runs is booked here. In a script without a Trainer a step ends with each
``mark_step``, and a compilation counts against a budget where it is one more for the same ops:
for new shapes or another constant.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.text import Text
from typing_extensions import override

from lightning_gaudi.callbacks import CompileMonitor
from lightning_gaudi.callbacks.monitor.budget import exceeded, message_for
from lightning_gaudi.callbacks.monitor.files import write_report
from lightning_gaudi.callbacks.monitor.ledger import Ledger
from lightning_gaudi.callbacks.monitor.table import tables_of
from lightning_gaudi.runtime import device, loading
from lightning_gaudi.runtime.emulation import Emulation, current_emulation, is_own_process
from lightning_gaudi.runtime.marks import call_at_marks
from lightning_gaudi.runtime.recording import Counts, Event, Taken, open_recording

_STAGE = "script"
_AGAIN = ("shapes", "constant")

_watch: ScriptWatch | None = None


class ScriptMonitor(CompileMonitor):
    """A monitor that keeps what it finds for the end of the script.

    It holds nothing that cannot be pickled, since Lightning may send a Trainer's callbacks to
    other processes. There, like any other monitor, it reports when its run ends.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch a Trainer."""
        if _watch is not None:
            _watch.book_outside()
            if trainer.strategy.root_device.type != "hpu":
                _watch.elsewhere.append(str(trainer.strategy.root_device))
                return
            _watch.num_runs += 1
        super().setup(trainer, pl_module, stage)

    @override
    def _finish(self, trainer: Trainer) -> None:
        if _watch is None:
            super()._finish(trainer)
        elif self._watch is not None:
            try:
                self._look(trainer)
            finally:
                self._close()
            _watch.forget()

    @override
    def _check_budgets(self) -> None:
        if _watch is None:  # else once, at the end of the script
            super()._check_budgets()

    @property
    def is_watching(self) -> bool:
        """Whether a Trainer runs."""
        return self._watch is not None

    def take_over(self, ledger: Ledger, about: dict[str, Any]) -> None:
        """Report on these books."""
        self.ledger = ledger
        self._about = about
        self._has_lines = self._has_host_reads = True


class ScriptWatch:
    """The record of a script. There is one a process.

    Args:
        emulation: The options of ``lightning-gaudi emulate``.

    Attributes:
        monitor: What joins every Trainer.
        outside: The books of what happens outside of Trainers.
        num_runs: How often a Trainer on the HPU began to run.
        elsewhere: The devices of Trainers that are not on the HPU.
    """

    def __init__(self, emulation: Emulation) -> None:
        self._emulation = emulation
        self.monitor = ScriptMonitor(
            max_compilations=emulation.max_compilations,
            max_host_reads=emulation.max_host_reads,
            dirpath=emulation.report,
            report=emulation.report is not None,
        )
        self.outside = Ledger(warmup_steps=0)
        self.num_runs = 0
        self.elsewhere: list[str] = []
        self._recording = open_recording(empty_cache=True)
        self._stop_listening = call_at_marks(self._on_mark)

    def book_outside(self) -> None:
        """Book what has happened since the last look."""
        taken = self._recording.take()
        if not taken.counts:
            return
        first = tuple(event for event in taken.events if _is_first(event))
        rest = tuple(event for event in taken.events if not _is_first(event))
        counts = replace(taken.counts, compilations=taken.counts.compilations - len(first))
        self.outside.add_step(_STAGE, Taken(counts=counts, events=rest))
        self.outside.add_between(
            _STAGE, Taken(counts=Counts(compilations=len(first)), events=first)
        )

    def forget(self) -> None:
        """Leave out what has happened since the last look: the Trainer's monitor has it."""
        self._recording.take()

    def _on_mark(self) -> None:
        if self.monitor.is_watching:
            self.forget()
        else:
            self.book_outside()

    def finish(self, stopped_by: str | None) -> list[str]:
        """Stop, print what was found and write the files.

        Args:
            stopped_by: The name of the exception that ended the script; None without one.

        Returns:
            What was more than allowed, in words.
        """
        if not self.monitor.is_watching:
            self.book_outside()
        self._stop_listening()
        self._recording.close()
        ledger = self._whole_ledger()
        about = {
            "device": device.name(),
            "mode": "lazy" if loading.is_lazy() else "eager",
            "rank": None,
            "world_size": 1,
            "stopped_by": stopped_by,
        }
        self.monitor.take_over(ledger, about)
        console = Console(highlight=False)
        if ledger.stages:
            console.print(tables_of(ledger, has_host_reads=True))
        else:
            console.print("The script did nothing on the HPU, so there is nothing to report.")
        for place in dict.fromkeys(self.elsewhere):
            console.print(
                f"A Trainer ran on {place}. For the HPU it must say accelerator='auto' or 'hpu'.",
                soft_wrap=True,
            )
        if self._emulation.report is not None and ledger.stages:
            assert self.monitor.dirpath is not None
            page = write_report(self.monitor.facts, self.monitor.dirpath, None)
            console.print(Text(f"Compile report: {page}"), soft_wrap=True)
        return [
            message_for(
                excess,
                f"--max-{excess.name.replace('_', '-')}={excess.limit}",
                "after the warm-up",
                ledger.worst(excess.kind),
            )
            for excess in exceeded(self.monitor.limits, ledger.late)
        ]

    def _whole_ledger(self) -> Ledger:
        """The books of the Trainers with the rest of the script as one more stage."""
        if not self.num_runs:
            return self.outside
        ledger = self.monitor.ledger
        if self.outside.total:
            ledger.add_between(_STAGE, Taken(counts=self.outside.total))
        for key, finding in self.outside.findings.items():
            finding.num_late = 0  # what lies between Trainers' runs has no steps
            ledger.findings.setdefault(key, finding)
        return ledger


def start_watch(emulation: Emulation) -> ScriptWatch:
    """Begin to watch this process's script."""
    global _watch
    _watch = ScriptWatch(emulation)
    return _watch


def monitors_for_trainer() -> list[CompileMonitor]:
    """What joins a Trainer that is being made; called by Lightning."""
    emulation = current_emulation()
    if emulation is None:
        return []
    if _watch is not None and is_own_process(emulation):
        return [_watch.monitor]
    # Another rank, started as ``python SCRIPT``.
    return [CompileMonitor(dirpath=emulation.report, report=emulation.report is not None)]


def _is_first(event: Event) -> bool:
    """Whether something was compiled for ops of which nothing was before."""
    return event.kind == "compile" and (event.reason is None or event.reason.kind not in _AGAIN)
