"""Metrics in a file: on request, at a mark, at a change, at the end of the process.

File formats, variables and their defaults follow bridge 1.19.0, ``hpu/metrics/saver.py``:
``PT_HPU_METRICS_FILE``, ``..._FILE_FORMAT`` (json, text) and ``..._DUMP_TRIGGERS``
(process_exit, mark_step, metric_change; several with commas), or with ``HABANA_PT_`` in front.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import IO

from lightning_gaudi.emulator import events, memory
from lightning_gaudi.emulator.reports import Metric, Stats, global_metrics


class MetricDumpFormat(str, Enum):
    """How a file of metrics is written."""

    json = "json"
    text = "text"


class MetricDumpTrigger(str, Enum):
    """When metrics are written to a file."""

    process_exit = "process_exit"
    mark_step = "mark_step"
    metric_change = "metric_change"
    user = "user"


class InvalidMetricDumpFileFormat(Exception):
    """There is no file format of that name."""


class InvalidMetricDumpTrigger(Exception):
    """There is no trigger of that name."""


class _Saver:
    """Writes metrics to one file, which is made when there is something to write.

    Args:
        path: The file; ``-rank<n>`` comes before its ending where ``RANK`` or
            ``OMPI_COMM_WORLD_RANK`` is set, and a number after it where it exists already.
        file_format: json or text.
    """

    def __init__(self, path: Path, file_format: MetricDumpFormat) -> None:
        self._path = path
        self._format = file_format
        self._file: IO[str] | None = None
        self._last: dict[str, Stats] = {}

    def write(self, metrics: Iterable[Metric], trigger: MetricDumpTrigger) -> None:
        """Append metrics."""
        for metric in metrics:
            self._append(metric.name(), metric.stats(), trigger)

    def write_changes(self, metrics: Iterable[Metric]) -> None:
        """Append those of the metrics that changed since the last call."""
        for metric in metrics:
            stats = metric.stats()
            if stats != self._last.get(metric.name(), stats):
                self._append(metric.name(), stats, MetricDumpTrigger.metric_change)
            self._last[metric.name()] = stats

    def close(self) -> None:
        """Finish the file, if there is one."""
        if self._file is not None:
            if self._format is MetricDumpFormat.json:
                self._file.write("]\n")
            self._file.close()
            self._file = None

    def _append(self, name: str, stats: Stats, trigger: MetricDumpTrigger) -> None:
        now = datetime.now()
        is_first = self._file is None
        file = self._file = self._file or self._open()
        if self._format is MetricDumpFormat.json:
            entry = {
                "metric_name": name,
                "triggered_by": trigger.value,
                "generated_on": now.isoformat(),
                "statistics": dict(stats),
            }
            file.write(("[" if is_first else ",\n") + json.dumps(entry))
        else:
            file.write(f"Metric name: {name}\nTriggered by: {trigger.value}\n")
            file.write(f"Generated on: {now}\nStatistics:\n")
            file.writelines(f"\t{stat}: {value}\n" for stat, value in stats)
            file.write("\n")
        file.flush()

    def _open(self) -> IO[str]:
        rank = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
        path = self._path
        if rank is not None:
            path = path.with_name(f"{path.stem}-rank{rank}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            try:
                return open(f"{path}.{number}" if number else path, "x")
            except FileExistsError:
                number += 1


def metrics_dump(file_name: str, format: str = MetricDumpFormat.json) -> None:
    """Write the process's metrics to a new file; a number is added where the name is taken.

    Args:
        file_name: The file; its folder is made where it is missing.
        format: ``"json"`` or ``"text"``.

    Raises:
        InvalidMetricDumpFileFormat: Another format.
    """
    saver = _Saver(Path(file_name), _format_of(format))
    saver.write(global_metrics(), MetricDumpTrigger.user)
    saver.close()


def _format_of(name: str) -> MetricDumpFormat:
    if name not in MetricDumpFormat.__members__:
        raise InvalidMetricDumpFileFormat(
            f"a file of metrics is json or text, but the format {name!r} was asked for."
        )
    return MetricDumpFormat[name]


def _triggers_of(names: str) -> set[MetricDumpTrigger]:
    for name in names.split(","):
        if name not in MetricDumpTrigger.__members__:
            raise InvalidMetricDumpTrigger(
                "PT_HPU_METRICS_DUMP_TRIGGERS takes process_exit, mark_step and metric_change, "
                f"separated by commas, but it has {name!r}."
            )
    return {MetricDumpTrigger[name] for name in names.split(",")}


def _variable(name: str, default: str) -> str:
    return os.environ.get(f"PT_HPU_{name}", os.environ.get(f"HABANA_PT_{name}", default))


_saver: _Saver | None = None
_triggers: set[MetricDumpTrigger] = set()


def on_mark_step() -> None:
    """Write the metrics where the environment asks for it at each mark."""
    if MetricDumpTrigger.mark_step in _triggers:
        _write(MetricDumpTrigger.mark_step)


def _on_exit() -> None:
    if MetricDumpTrigger.process_exit in _triggers:
        _write(MetricDumpTrigger.process_exit)
    if _saver is not None:
        _saver.close()


def _on_event(kind: str) -> None:
    assert _saver is not None
    if memory.is_used():
        _saver.write_changes(global_metrics())


def _write(trigger: MetricDumpTrigger) -> None:
    # A process that never touched the device writes nothing (bridge: DEVICE_ACQUIRED).
    if _saver is not None and memory.is_used():
        _saver.write(global_metrics(), trigger)


def attach() -> None:
    """Do what the environment asks for.

    Raises:
        InvalidMetricDumpFileFormat: ``PT_HPU_METRICS_FILE_FORMAT`` is neither json nor text.
        InvalidMetricDumpTrigger: ``PT_HPU_METRICS_DUMP_TRIGGERS`` has another trigger.
    """
    global _saver, _triggers
    path = _variable("METRICS_FILE", "")
    if not path:
        return
    _saver = _Saver(Path(path), _format_of(_variable("METRICS_FILE_FORMAT", "json")))
    _triggers = _triggers_of(_variable("METRICS_DUMP_TRIGGERS", "process_exit"))
    atexit.register(_on_exit)
    if MetricDumpTrigger.metric_change in _triggers:
        _saver.write_changes(global_metrics())
        events.listeners.append(_on_event)
