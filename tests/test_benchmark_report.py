"""The report of all benchmarks: what it says of targets, and of the last run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import run_all  # noqa: E402
from measure import Row  # noqa: E402
from results import Results, Section, change, draw, score, write_page  # noqa: E402

FAST = Row(what="fast", against="slow", measured=2.0, unit="times", target=1.5, better="higher")
HEAVY = Row(what="a|b", against="plain", measured=9.0, unit="us", target=8.0, detail="9 us")
NONE = Row(what="compilations", against="", measured=0, unit="", target=0)
TOLD = Row(what="told", against="x", measured=0.5, unit="s")


def results(*rows: Row, machine: str = "m", date: str = "2026-01-02") -> Results:
    section = Section(title="One", rows=rows)
    return Results(date=date, machine=machine, versions={"torch": "2.13"}, sections=(section,))


def test_page_holds_targets_and_whether_they_are_met() -> None:
    page = write_page(results(FAST, HEAVY, NONE, TOLD), None, "p.png")
    assert "| fast | slow | 2 times | at least 1.5 | yes | new |" in page
    assert "| a\\|b<br>9 us | plain | 9 us | at most 8 | **no** | new |" in page
    assert "| compilations |  | 0 | at most 0 | yes | new |" in page
    assert "| told | x | 0.5 s |  |  | new |" in page
    assert "- 2 of 3 targets met" in page
    assert "- torch 2.13" in page
    assert "last time:" not in page


def test_page_compares_with_the_last_run() -> None:
    slower = Row(**{**vars(HEAVY), "measured": 11.0})
    page = write_page(results(slower, FAST), results(HEAVY, date="2025-12-31"), "p.png")
    assert "- last time: 2025-12-31, the same machine" in page
    assert "| **no** | 9 (**worse**) |" in page
    assert "| yes | new |" in page
    other = write_page(results(FAST), results(FAST, machine="another"), "p.png")
    assert "last time: 2026-01-02, another" in other


@pytest.mark.parametrize(
    ("better", "before", "now", "is_worse"),
    [
        ("lower", 10.0, 11.0, False),
        ("lower", 10.0, 12.0, True),
        ("lower", 0, 1, True),
        ("lower", 0, 0, False),
        ("higher", 2.0, 1.5, True),
        ("higher", 2.0, 3.0, False),
    ],
)
def test_what_is_worse(better: str, before: float, now: float, is_worse: bool) -> None:
    last = Row(what="w", against="", measured=before, unit="", better=better)  # type: ignore[arg-type]
    row = Row(what="w", against="", measured=now, unit="", better=better)  # type: ignore[arg-type]
    assert ("worse" in change(row, last)) is is_worse


def test_results_survive_their_file() -> None:
    found = results(FAST, HEAVY, NONE, TOLD)
    assert Results.from_json(found.to_json()) == found


def test_score_is_one_at_the_target() -> None:
    assert score(FAST) == pytest.approx(2 / 1.5)
    assert score(HEAVY) == pytest.approx(8 / 9)


def test_picture_is_drawn(tmp_path: Path) -> None:
    draw(results(FAST, HEAVY, NONE, TOLD).sections, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_every_benchmark_is_run_and_there() -> None:
    scripts = {
        path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")
    }
    assert scripts == set(run_all.BENCHMARKS)


def test_titles_are_told_apart() -> None:
    assert len(set(run_all.BENCHMARKS.values())) == len(run_all.BENCHMARKS)


def test_committed_page_belongs_to_the_committed_figures() -> None:
    found = Results.from_json(run_all.FIGURES.read_text())
    page = run_all.PAGE.read_text("utf-8")
    rows = re.findall(r"^\| (?!what|---)", page, flags=re.MULTILINE)
    assert len(rows) == len(found.rows)
    assert {section.title for section in found.sections} == set(run_all.BENCHMARKS.values())
