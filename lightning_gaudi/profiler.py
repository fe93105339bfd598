"""`HPUProfiler`: what a run does, step by step, as a trace and as tables."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity, record_function
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.profiling.schedule import (
    Schedule,
    check_schedule,
    is_recording,
    make_schedule,
)
from lightning_gaudi.profiling.summary import SortKey, check_sort_key, summary_of
from lightning_gaudi.runtime import device, loading, ranges
from lightning_gaudi.whole_files import write_whole

_log = logging.getLogger(__name__)
# Lightning's actions that begin a step of each kind of run, by fetching its batch, and that end it.
# The strategy's hook is the last; then the module leaves the device, and the emulated HPU cannot
# move a tensor that a profile looks at.
_BOUNDS = {
    "fit": ("train_dataloader_next", "on_train_end"),
    "validate": ("val_next", "on_validation_end"),
    "test": ("test_next", "on_test_end"),
    "predict": ("predict_next", "on_predict_end"),
}


class HPUProfiler(Profiler):
    """Profiles a run with ``torch.profiler`` and names what the device is made to do.

    A trace is a file for ``chrome://tracing``, Perfetto or TensorBoard's profiler plugin. Beside
    PyTorch's ops, optimizer steps and Lightning's actions (``[Strategy]GaudiStrategy.backward``) it
    has the ranges ``mark_step``, ``capture``, ``replay``, ``padded_call`` and ``graph_warmup`` of
    this package, and on the emulated HPU ``flush``, in whatever op or call caused it. On a card it
    has the device's own activities; the emulated HPU has none, and its times are the CPU's.

    Steps are those of the run's own stage: training batches in a fit, with the validation that
    runs between them. A step begins where its batch is fetched; what runs before the first step
    belongs to that, what runs after the last one to the last. Of a dataset without a length
    Lightning fetches a batch ahead, so its steps count one too many. By default one step passes,
    in which graphs are compiled and captured, one warms the profiler up, and three are recorded.

    Each recorded window is a file ``fit-hpu.1.pt.trace.json``, and the tables are in
    ``fit-hpu.txt``; on several cards the rank is part of the names. A trace that is there already
    is left alone, the next number is taken. Where the run fails, what was seen is written.

    Args:
        dirpath: The folder; None takes the logger's, or the Trainer's ``default_root_dir``.
        filename: The part of the names after the stage.
        wait: Steps that pass before those of each window.
        warmup: Steps that are profiled and thrown away, which the profiler's own start would spoil.
        active: Steps that are recorded in a window; None for all that follow, which can be a large
            file.
        repeat: How many windows a run has; 0 for any number.
        skip_first: Steps that pass before the first window, beside `wait`.
        schedule: What ``torch.profiler.schedule`` makes, in place of these numbers.
        record_shapes: Whether ops have the shapes of their inputs.
        profile_memory: Whether allocations are recorded; the emulated HPU's are the CPU's.
        with_stack: Whether ops have their Python source lines.
        with_flops: Whether the table estimates the operations of matrix products and convolutions.
        activities: What is recorded; None takes the host and, on a card, the device.
        sort_by: By what the ops of the table are sorted.
        row_limit: How many ops the table has; -1 for all.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    # Of the class, because Lightning's `__del__` looks at it where the constructor has raised, too.
    _profile: torch.profiler.profile | None = None

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = "hpu",
        *,
        wait: int = 1,
        warmup: int = 1,
        active: int | None = 3,
        repeat: int = 1,
        skip_first: int = 0,
        schedule: Schedule | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        activities: list[ProfilerActivity] | None = None,
        sort_by: SortKey = "self_cpu_time_total",
        row_limit: int = 20,
    ) -> None:
        super().__init__(dirpath=dirpath, filename=filename)
        if "://" in str(dirpath):
            raise ConfigurationError(
                f"dirpath must be a folder of this machine, but it is {str(dirpath)!r}."
            )
        check_sort_key(sort_by)
        self._schedule = make_schedule(
            skip_first=skip_first, wait=wait, warmup=warmup, active=active, repeat=repeat
        )
        if schedule is not None:
            self._schedule = check_schedule(schedule)
        self._options: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
            "with_flops": with_flops,
        }
        self._activities = activities
        self._sort_by = sort_by
        self._row_limit = row_limit
        self._given_dirpath = dirpath
        self._rank: int | None = None
        self._fetch = self._last = ""
        self._num_steps = 0
        self._has_trace = self._is_described = False
        self._is_naming = False
        self._open: dict[str, record_function] = {}
        self._names: set[str] = set()
        self._summary = ""
        self._traces: list[Path] = []

    @property
    def traces(self) -> list[Path]:
        """The files that were written, the oldest first."""
        return list(self._traces)

    # --- the run --------------------------------------------------------------------------------

    @override
    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Begin to profile a run.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            local_rank: This process's rank on its machine; None where there is one process.
            log_dir: Where to write if no folder was given.

        Raises:
            ConfigurationError: Another profiler records in this process.
        """
        self._end()  # of a run that has failed where nobody was told
        self.dirpath = self._given_dirpath
        super().setup(str(getattr(stage, "value", stage)), local_rank, log_dir)
        self._rank = local_rank
        # Lightning gives each profiler the module, and the local rank alone; machines may share a
        # folder.
        module = getattr(self, "_lightning_module", None)
        if local_rank is not None and module is not None:
            self._rank = module.global_rank
        self._begin()

    @override
    def start(self, action_name: str) -> None:
        """An action of Lightning begins."""
        if self._profile is None:
            return
        if action_name.endswith(".on_exception"):
            self.describe()  # Lightning describes no run that has failed
            return
        if action_name.endswith(self._fetch):
            self._next_step()
        # An epoch would lie across the windows' ends.
        if self._is_naming and action_name != "run_training_epoch":
            self._names.add(action_name)
            self._open[action_name] = record_function(action_name)
            self._open[action_name].__enter__()  # type: ignore[no-untyped-call]

    @override
    def stop(self, action_name: str) -> None:
        """An action of Lightning has ended."""
        opened = self._open.pop(action_name, None)
        if opened is not None:
            opened.__exit__(None, None, None)
        if action_name.startswith("[Strategy]") and action_name.endswith(f".{self._last}"):
            self._end()

    @override
    def summary(self) -> str:
        """The tables of the last run as text; empty where nothing was recorded."""
        self._end()
        return self._summary

    @override
    def describe(self) -> None:
        """End the profile of this run and write its tables."""
        summary = self.summary()
        if summary and not self._is_described:
            self._is_described = True
            if self.dirpath is None:
                _log.info(summary)
            else:
                path = Path(self.dirpath) / f"{self._stem()}.txt"
                try:
                    write_whole(path, summary.encode())
                except OSError as error:
                    self._warn_of(path, error)
            if not self._rank:
                _log.info("HPUProfiler: %s", ", ".join(map(str, self._traces)))
        super().teardown(self._stage)

    @override
    def teardown(self, stage: str | None) -> None:
        """End the profile, if one is open."""
        self._end()
        super().teardown(stage)

    # --- the profile ----------------------------------------------------------------------------

    def _begin(self) -> None:
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            raise ConfigurationError(
                "HPUProfiler cannot begin: another profiler records in this process, and PyTorch "
                "has one at a time. End it before the Trainer runs, or leave one of the two out."
            )
        self._fetch, self._last = _BOUNDS.get(self._stage or "", ("_next", "_end"))
        self._num_steps = 0
        self._has_trace = self._is_described = False
        self._summary, self._names = "", set()
        self._profile = torch.profiler.profile(
            activities=self._chosen_activities(),
            schedule=self._schedule,
            on_trace_ready=self._write_trace,
            acc_events=True,
            **self._options,
        )
        self._profile.start()
        self._follow()

    def _chosen_activities(self) -> list[ProfilerActivity]:
        if self._activities is not None:
            return self._activities
        activities = [ProfilerActivity.CPU]
        # The emulated HPU has nothing that PyTorch's profiler could ask.
        if loading.is_loaded() and not loading.is_emulated() and hasattr(ProfilerActivity, "HPU"):
            activities.append(ProfilerActivity.HPU)
        return activities

    def _next_step(self) -> None:
        profile = self._profile
        assert profile is not None
        if self._num_steps:
            self._close_ranges()
            if is_recording(profile.current_action):
                self._wait_for_device()
            profile.step()
            self._follow()
        self._num_steps += 1

    def _follow(self) -> None:
        """Name ranges while they are recorded, and only then."""
        is_wanted = self._profile is not None and is_recording(self._profile.current_action)
        if is_wanted != self._is_naming:
            self._is_naming = is_wanted
            ranges.switch_on() if is_wanted else ranges.switch_off()

    def _wait_for_device(self) -> None:
        """Let a window have what its last step has given the device."""
        # Not on the emulated HPU: its work is done, and a flush here would split a graph.
        if loading.is_loaded() and not loading.is_emulated():
            device.synchronize()

    def _close_ranges(self) -> None:
        for name in reversed(list(self._open)):
            self.stop(name)

    def _end(self) -> None:
        """End the profile; again, it does nothing."""
        profile = self._profile
        if profile is None:
            return
        self._profile = None
        self._close_ranges()
        self._follow()
        if is_recording(profile.current_action):
            self._wait_for_device()
        profile.stop()
        if self._has_trace:
            self._summary = self._text_of(profile)
        else:
            warnings.warn(
                f"HPUProfiler recorded nothing: the {self._stage} run had {self._num_steps} steps, "
                "and its schedule records none of these. Use HPUProfiler(wait=0, warmup=0) to "
                "record from the first one.",
                stacklevel=2,
            )

    def _text_of(self, profile: torch.profiler.profile) -> str:
        events = profile.events()  # type: ignore[no-untyped-call]
        assert events is not None
        tables = summary_of(
            events, names=self._names, sort_by=self._sort_by, row_limit=self._row_limit
        )
        rank = "" if self._rank is None else f", rank {self._rank}"
        return f"HPUProfiler: {self._stage}{rank}\n{tables}\n"

    # --- files ----------------------------------------------------------------------------------

    def _stem(self) -> str:
        rank = None if self._rank is None else f"rank{self._rank}"
        return "-".join(str(part) for part in (self._stage, self.filename, rank) if part) or "hpu"

    def _write_trace(self, profile: torch.profiler.profile) -> None:
        """Write a window, whole or not at all."""
        self._has_trace = True
        if self.dirpath is None:
            return
        folder, stem = Path(self.dirpath), self._stem()
        number = 1
        while (path := folder / f"{stem}.{number}.pt.trace.json").exists():
            number += 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{stem}.", dir=folder) as temporary:
                written = Path(temporary) / path.name
                profile.export_chrome_trace(str(written))
                os.replace(written, path)
        except OSError as error:  # a full disk must not end the run
            self._warn_of(path, error)
        else:
            self._traces.append(path)

    def _warn_of(self, path: Path, error: OSError) -> None:
        warnings.warn(f"HPUProfiler could not write {path}: {error}", stacklevel=3)
