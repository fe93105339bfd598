"""The monitor's books as plain data: what the JSON file holds and the page shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning_gaudi.callbacks.monitor.findings import (
    NOUNS,
    Finding,
    count_of,
    short_path,
    source_of,
)
from lightning_gaudi.callbacks.monitor.ledger import Ledger
from lightning_gaudi.runtime.recording import Counts

_MAX_SHAPES = 200


def facts_of(ledger: Ledger, **about: Any) -> dict[str, Any]:
    """Everything that is known, in types that JSON has.

    Args:
        ledger: The books.
        about: What else to hold: the device, the arguments.
    """
    return {
        **about,
        "warmup_steps": ledger.warmup_steps,
        "total": _counts(ledger.total),
        "after_warmup": _counts(ledger.late),
        "stages": {
            stage: {
                "steps": totals.num_steps,
                "counts": _counts(totals.counts),
                "after_warmup": _counts(totals.late),
            }
            for stage, totals in ledger.stages.items()
        },
        "findings": [
            _finding(finding) for kind in NOUNS for finding in ledger.worst(kind, late=False)
        ],
        "shapes": _shapes(ledger),
        "timeline": [
            {
                "stage": row.stage,
                "step": row.first_step,
                "num_steps": row.num_steps,
                "is_warmup": row.is_warmup,
                **_counts(row.counts),
            }
            for row in ledger.rows
        ],
    }


def _counts(counts: Counts) -> dict[str, int]:
    return asdict(counts)


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "what": NOUNS[finding.kind][0],
        "line": finding.line,
        "place": short_path(finding.line) if finding.line else "",
        "source": source_of(finding.line),
        "is_library": finding.is_library,
        "cause": finding.cause,
        "reason": finding.reason,
        "count": finding.count,
        "after_warmup": finding.num_late,
        "summary": f"{count_of(finding.kind, finding.count)}, {finding.num_late} after the warm-up",
        "texts": finding.texts,
        "steps": finding.steps,
        "remedy": finding.remedy,
    }


def _shapes(ledger: Ledger) -> list[dict[str, Any]]:
    """Each shape that was new, with the line that read it and the steps where it was."""
    return [
        {
            "shape": now,
            "before": before,
            "place": short_path(finding.line) if finding.line else "",
            "line": finding.line,
            "op": finding.cause,
        }
        for finding in ledger.worst("compilation", late=False)
        for now, before in finding.shapes
    ][:_MAX_SHAPES]
