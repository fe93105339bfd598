"""What happened in each stage and step, added up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_gaudi.callbacks.monitor.findings import Finding, Key, finding_for, key_of, others_of
from lightning_gaudi.runtime.recording import Counts, Event, Taken

# Beyond this many rows neighbours are added up, so that a long run needs no more memory.
_MAX_ROWS = 8192
# A card names no line, only the batch's shapes, of which there may be ever new ones.
_MAX_FINDINGS = 1000


@dataclass(slots=True, kw_only=True)
class Row:
    """One step of a stage, or in a long run several that came close together.

    Attributes:
        stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        first_step: The number of its first step in its stage, from 1.
        num_steps: How many steps it stands for.
        is_warmup: Whether it belongs to the warm-up.
        counts: What happened.
    """

    stage: str
    first_step: int
    num_steps: int = 1
    is_warmup: bool = False
    counts: Counts = field(default_factory=Counts)


@dataclass(slots=True, kw_only=True)
class StageTotals:
    """A stage in sum.

    Attributes:
        num_steps: Steps so far.
        counts: Everything, steps or not.
        late: What happened in steps after the warm-up; this is what budgets count.
    """

    num_steps: int = 0
    counts: Counts = field(default_factory=Counts)
    late: Counts = field(default_factory=Counts)


class Ledger:
    """The books of one monitor.

    Args:
        warmup_steps: How many first steps of each stage are warm-up.

    Attributes:
        warmup_steps: As given.
        stages: Totals by stage, in the order in which they began.
        rows: The steps in the order in which they ran; added up, by their first.
        findings: What was found, by kind, line and cause.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self.stages: dict[str, StageTotals] = {}
        self.rows: list[Row] = []
        self.findings: dict[Key, Finding] = {}
        self._last: Row  # the latest step's
        self._window: dict[str, Row] = {}  # the rows that the next step may join, by stage
        self._num_in_window = 0  # steps
        self._steps_per_window = 1

    @property
    def late(self) -> Counts:
        """What happened after the warm-up, over all stages."""
        return sum((totals.late for totals in self.stages.values()), Counts())

    @property
    def total(self) -> Counts:
        """Everything that happened."""
        return sum((totals.counts for totals in self.stages.values()), Counts())

    def totals_of(self, stage: str) -> StageTotals:
        """The totals of a stage, which begins now if it has not yet."""
        return self.stages.setdefault(stage, StageTotals())

    def add_step(self, stage: str, taken: Taken) -> None:
        """One step has ended."""
        totals = self.totals_of(stage)
        totals.num_steps += 1
        is_warmup = totals.num_steps <= self.warmup_steps
        row = self._window.get(stage)
        if row is not None and row.is_warmup == is_warmup:
            row.num_steps += 1
        else:
            self._make_room()
            row = Row(stage=stage, first_step=totals.num_steps, is_warmup=is_warmup)
            self.rows.append(row)
            self._window[stage] = row
        self._last = row
        self._num_in_window += 1
        if self._num_in_window >= self._steps_per_window:
            self._window, self._num_in_window = {}, 0
        self.add_to_step(stage, taken)

    def add_to_step(self, stage: str, taken: Taken) -> None:
        """More has happened that belongs to the last step, such as its progress bar."""
        totals = self.totals_of(stage)
        row = self._last
        row.counts += taken.counts
        totals.counts += taken.counts
        if not row.is_warmup:
            totals.late += taken.counts
        self._note(taken.events, f"{stage} {totals.num_steps}", is_late=not row.is_warmup)

    def add_between(self, stage: str, taken: Taken) -> None:
        """Something has happened outside of steps."""
        if not taken.counts and stage not in self.stages:
            return
        self.totals_of(stage).counts += taken.counts
        self._note(taken.events, stage, is_late=False)

    def worst(self, kind: str, *, late: bool = True) -> list[Finding]:
        """The findings of a kind, the most frequent first; those after the warm-up only."""
        found = [finding for finding in self.findings.values() if finding.kind == kind]
        if late:
            found = [finding for finding in found if finding.num_late]
            return sorted(found, key=lambda finding: -finding.num_late)
        return sorted(found, key=lambda finding: (-finding.num_late, -finding.count))

    def _note(self, events: Iterable[Event], step: str, *, is_late: bool) -> None:
        for event in events:
            key = key_of(event)
            finding = self.findings.get(key)
            if finding is None and len(self.findings) >= _MAX_FINDINGS:
                key = others_of(key)
                finding = self.findings.get(key)
            if finding is None:
                finding = self.findings[key] = finding_for(key)
            finding.note(event, step, is_late=is_late)

    def _make_room(self) -> None:
        while len(self.rows) >= _MAX_ROWS:
            self._steps_per_window *= 2
            merged: list[Row] = []
            keys = [(row.stage, row.is_warmup, row.num_steps) for row in self.rows]
            for row, place in zip(self.rows, places_of(keys, self._steps_per_window), strict=True):
                if place == len(merged):
                    merged.append(row)
                else:
                    merged[place].num_steps += row.num_steps
                    merged[place].counts += row.counts
            self.rows, self._window, self._num_in_window = merged, {}, 0


def places_of(rows: Iterable[tuple[str, bool, int]], width: int) -> list[int]:
    """Where rows go that are added up, so that stages which take turns shrink like one alone.

    Args:
        rows: Stage, whether it is warm-up, and number of steps of each row.
        width: Within how many steps those of the same stage are added up.

    Returns:
        For each row the number of the row that it joins. One that joins none gets the next number.
    """
    places: list[int] = []
    window: dict[tuple[str, bool], int] = {}
    num_in_window = num_rows = 0
    for stage, is_warmup, num_steps in rows:
        if num_in_window + num_steps > width:
            window, num_in_window = {}, 0
        num_in_window += num_steps
        place = window.setdefault((stage, is_warmup), num_rows)
        num_rows += place == num_rows
        places.append(place)
    return places
