"""The monitor's books and files: long runs, many ranks, whole files, escaped text."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
from rich.console import Console

from lightning_gaudi.callbacks.monitor import files, ledger
from lightning_gaudi.callbacks.monitor.facts import facts_of
from lightning_gaudi.callbacks.monitor.figure import figure_of, png_of
from lightning_gaudi.callbacks.monitor.findings import short_path, source_of
from lightning_gaudi.callbacks.monitor.ledger import Ledger
from lightning_gaudi.callbacks.monitor.remedies import remedy_for
from lightning_gaudi.callbacks.monitor.table import tables_of
from lightning_gaudi.runtime.recording import Counts, Event, Reason, ShapeChange, Taken

ABOUT = {
    "device": "GAUDI2 (emulated)",
    "mode": "lazy",
    "rank": None,
    "world_size": 1,
    "stopped_by": None,
    "limits": {},
    "has_lines": True,
    "has_host_reads": True,
    "written": "2026-01-01 00:00:00",
}
DEEP = "/a/very/deep/folder/of/" + "many/" * 12 + "encoder.py:1234"


def shapes_event(length=7, line=DEEP, library=""):
    change = ShapeChange(now=f"[8, {length}]:int64", before="[8, 5]:int64", op="mm", line=line)
    reason = Reason(
        kind="shapes",
        text=f"[8, {length}]:int64, before [8, 5]:int64",
        op="mm",
        line=line,
        library=library,
        shapes=(change,),
    )
    return Event(kind="compile", cause="mark_step", line="x.py:1", reason=reason)


def read_event(line="/home/me/<b>train</b>.py:3", library=""):
    return Event(kind="host_read", cause="_local_scalar_dense", line=line, library=library)


def taken(*found):
    kinds = [event.kind for event in found]
    counts = Counts(
        compilations=kinds.count("compile"), host_reads=kinds.count("host_read"), cache_hits=2
    )
    return Taken(counts=counts, events=found)


def example():
    books = Ledger(warmup_steps=1)
    books.add_between("setup", taken(read_event(DEEP)))
    for step in range(4):
        books.add_step("fit", taken(shapes_event(step + 6), read_event()))
    books.add_to_step("fit", taken(read_event("/lib/site-packages/lightning/x.py:9", "y.py:1")))
    books.add_step("validate", taken(shapes_event(40)))
    return books


class Page(HTMLParser):
    """The tables of a page by id, as rows of text, and its pictures."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.links = {}, [], []
        self._rows = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "table":
            self._rows = self.tables.setdefault(attrs["id"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "br" and self._cell is not None:
            self._cell.append(" ")
        elif tag == "img":
            self.images.append(attrs["src"])
        assert tag not in ("script", "link", "b"), tag
        self.links += [attrs[name] for name in ("href",) if name in attrs]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._rows[-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)


def test_the_page_holds_the_facts(tmp_path):
    facts = facts_of(example(), **ABOUT)
    page = Page(files.write_report(facts, tmp_path, None).read_text("utf-8"))
    assert page.tables["counts"] == [
        ["stage", "steps", "compiled", "cached", "reads", "to host", "fallback"],
        ["setup", "0", "0", "2", "1", "0", "0"],
        ["fit", "4", "4", "10", "5", "0", "0"],
        ["validate", "1", "1", "2", "0", "0", "0"],
        ["all", "5", "5", "14", "6", "0", "0"],
        ["after warm-up", "", "3", "8", "4", "0", "0"],
    ]
    late = page.tables["late"]
    assert [row[:3] for row in late] == [
        ["what", "times", "after warm-up"],
        ["compilation", "5", "3"],
        ["host read", "4", "3"],
        ["host read", "1", "1"],
    ]
    assert late[1][3] == "…/many/many/encoder.py:1234"
    assert late[1][4].startswith("mm [8, 6]:int64, before [8, 5]:int64 [8, 7]:int64, before")
    assert late[1][4].endswith("and 1 more")
    assert late[1][5] == "fit 1, fit 2, fit 3, fit 4, validate 1"
    assert late[2][3] == "…/me/<b>train</b>.py:3"
    assert late[3][3] == "y.py:1 library"
    assert page.tables["shapes"][1] == [
        "[8, 6]:int64",
        "[8, 5]:int64",
        "mm",
        "…/many/many/encoder.py:1234",
    ]
    assert len(page.tables["shapes"]) == 6
    remedies = page.tables["remedies"]
    assert "BucketCollator" in remedies[1][0]
    assert remedies[1][1:] == ["…/many/many/encoder.py:1234 mm", "3"]
    assert [row[:2] for row in page.tables["early"][1:]] == [["host read", "1"]]
    (image,) = page.images
    encoded = image.removeprefix("data:image/png;base64,")
    assert base64.b64decode(encoded) == (tmp_path / "compile_monitor.png").read_bytes()
    assert page.links == []
    assert json.loads((tmp_path / "compile_monitor.json").read_text()) == facts


def test_an_empty_run_says_that_there_is_nothing(tmp_path):
    facts = facts_of(Ledger(warmup_steps=3), **ABOUT)
    text = files.write_report(facts, tmp_path, None).read_text("utf-8")
    page = Page(text)
    assert set(page.tables) == {"counts"}
    assert "after the warm-up no step compiled a graph" in text


def test_what_a_card_does_not_tell_is_said(tmp_path):
    facts = facts_of(example(), **{**ABOUT, "has_lines": False, "has_host_reads": False})
    text = files.write_report(facts, tmp_path, None).read_text("utf-8")
    assert "A card counts compilations but names neither line nor reason." in text
    assert "CompileMonitor(host_reads=True)" in text
    table = render(tables_of(example(), has_host_reads=False))
    assert re.search(r"fit +│ +4 │ +4 │ +10 │ +- │ +- │ +0 ", table)


def test_ranks_have_files_of_their_own(tmp_path):
    for rank in (0, 1):
        facts = facts_of(example(), **{**ABOUT, "rank": rank, "world_size": 2})
        text = files.write_report(facts, tmp_path, rank).read_text("utf-8")
        assert f"rank {rank} of 2" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        f"compile_monitor.rank{rank}.{ending}"
        for rank in (0, 1)
        for ending in ("html", "png", "json")
    }


def test_files_are_whole_or_as_before(tmp_path, monkeypatch):
    facts = facts_of(example(), **ABOUT)
    files.write_report(facts, tmp_path, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        files.write_report(facts_of(Ledger(3), **ABOUT), tmp_path, None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in tmp_path.iterdir())


def test_the_table_fits_80_columns_and_names_the_lines():
    text = render(tables_of(example(), has_host_reads=True))
    assert max(map(len, text.splitlines())) <= 80
    assert "after warm-up" in text
    assert "…/many/many/encoder.py:1234" in text
    assert "y.py:1 (library)" in text


def render(renderable):
    console = Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


# --- the picture ----------------------------------------------------------------------------------


def test_bars_are_the_counts():
    figure = figure_of([("", facts_of(example(), **ABOUT))])
    compilations, reads = figure.axes
    assert [bar.get_height() for bar in compilations.containers[0]] == [1, 1, 1, 1, 1]
    assert [bar.get_height() for bar in reads.containers[0]] == [1, 1, 1, 2, 0]
    assert compilations.get_title(loc="left") == (
        "5 compilations (3 after the warm-up), 6 host reads (4 after it)"
    )


def test_many_steps_are_drawn_together_and_none_is_lost():
    books = Ledger(warmup_steps=3)
    for step in range(5000):
        books.add_step("fit", taken(*[shapes_event()] * (step == 3141)))
    figure = figure_of([("run", facts_of(books, **ABOUT))])
    bars = figure.axes[0].containers[0]
    assert len(bars) < 500
    assert sum(bar.get_height() for bar in bars) == 1
    (bar,) = [bar for bar in bars if bar.get_height()]
    assert abs(bar.get_x() - 3141) < 15


def test_two_runs_share_a_scale():
    many = Ledger(warmup_steps=0)
    many.add_step("fit", taken(*[shapes_event()] * 9))
    few = Ledger(warmup_steps=0)
    few.add_step("fit", taken(shapes_event()))
    figure = figure_of([("naive", facts_of(many, **ABOUT)), ("fixed", facts_of(few, **ABOUT))])
    naive, _, fixed, _ = figure.axes
    assert naive.get_ylim() == fixed.get_ylim()
    assert naive.get_title(loc="left").startswith("naive: 9 compilations")


def test_no_state_of_matplotlib_is_touched():
    before = dict(mpl.rcParams)
    backend = mpl.get_backend(auto_select=False)
    assert png_of([("", facts_of(example(), **ABOUT))])[:4] == b"\x89PNG"
    assert dict(mpl.rcParams) == before
    assert mpl.get_backend(auto_select=False) == backend


# --- the books ------------------------------------------------------------------------------------


def test_a_long_run_keeps_its_counts_in_few_rows(monkeypatch):
    monkeypatch.setattr(ledger, "_MAX_ROWS", 16)
    books = Ledger(warmup_steps=2)
    for step in range(1000):
        books.add_step("fit", taken(*[read_event()] * (step % 3)))
        if step % 100 == 99:
            books.add_step("validate", taken(shapes_event()))
    assert len(books.rows) <= 40
    assert sum(row.num_steps for row in books.rows) == 1010
    total = sum((row.counts for row in books.rows), Counts())
    assert (total.host_reads, total.compilations) == (999, 10)
    assert books.total == total
    assert books.late.host_reads == 999 - 1
    assert [row.is_warmup for row in books.rows[:2]] == [True, False]


@pytest.mark.parametrize("num_fit", [1, 3, 10])
def test_stages_that_take_turns_shrink_too(monkeypatch, num_fit):
    """As where a fit validates every few steps; rows and time must not grow with the run."""
    monkeypatch.setattr(ledger, "_MAX_ROWS", 64)
    books = Ledger(warmup_steps=2)
    for turn in range(300):
        for _ in range(num_fit):
            books.add_step("fit", taken(*[read_event()] * (turn % 2)))
            books.add_to_step("fit", taken(read_event()))
        books.add_step("validate", taken(*[shapes_event()] * (turn == 200)))
    assert len(books.rows) <= 64
    for stage, steps in (("fit", 300 * num_fit), ("validate", 300)):
        rows = [row for row in books.rows if row.stage == stage]
        assert sum(row.num_steps for row in rows) == steps
        starts = [row.first_step for row in rows]
        ends = [row.first_step + row.num_steps for row in rows]
        assert starts == [1, *ends[:-1]]
    assert sum((row.counts for row in books.rows), Counts()) == books.total
    assert books.total.host_reads == 450 * num_fit
    (row,) = [row for row in books.rows if row.counts.compilations]
    assert row.first_step <= 201 < row.first_step + row.num_steps
    assert abs(books.rows.index(row) / len(books.rows) - 2 / 3) < 0.1
    bars = figure_of([("", facts_of(books, **ABOUT))]).axes[0].containers[0]
    assert sum(bar.get_height() for bar in bars) == 1


def test_the_picture_of_stages_that_take_turns_has_few_bars():
    books = Ledger(warmup_steps=0)
    for _ in range(3000):
        books.add_step("fit", taken(read_event()))
        books.add_step("validate", taken())
    bars = figure_of([("", facts_of(books, **ABOUT))]).axes[1].containers[0]
    assert len(bars) < 1000
    assert sum(bar.get_height() for bar in bars) == 3000


def test_ever_new_findings_are_added_up(monkeypatch):
    """A card tells a compilation by the batch's shapes only, and there may be ever new ones."""
    monkeypatch.setattr(ledger, "_MAX_FINDINGS", 10)
    books = Ledger(warmup_steps=0)
    for length in range(100):
        event = Event(kind="compile", cause="", line="", detail=f"batch of [8, {length}]:int64")
        books.add_step("fit", taken(event))
    found = books.worst("compilation")
    assert len(found) == 11
    assert found[0].describe() == "(line unknown) in other places 90 times"
    assert sum(finding.num_late for finding in found) == 100


def test_what_comes_after_a_step_belongs_to_it():
    books = Ledger(warmup_steps=1)
    books.add_step("fit", taken())
    books.add_to_step("fit", taken(read_event()))
    assert books.late == Counts()
    books.add_step("fit", taken())
    books.add_to_step("fit", taken(read_event()))
    books.add_between("fit", taken(read_event()))
    assert books.late.host_reads == 1
    assert books.total.host_reads == 3
    (finding,) = books.worst("host_read")
    assert (finding.count, finding.num_late, finding.steps) == (3, 1, ["fit 1", "fit 2", "fit"])


def test_paths_are_short(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert short_path(f"{tmp_path}/src/train.py:3") == "src/train.py:3"
    assert short_path("/env/lib/site-packages/lightning/x.py:9") == "lightning/x.py:9"
    assert short_path("/x.py:9").endswith("x.py:9")
    assert short_path("<stdin>") == "<stdin>"
    assert source_of(f"{__file__}:1") == Path(__file__).read_text().splitlines()[0]
    assert source_of("/nowhere.py:1") == source_of("<unknown>") == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("compilation", "shapes", "mm", [("[8, 7]:int64", "[8, 5]:int64")]), "BucketCollator"),
        (("compilation", "shapes", "mm", [("[5, 7]:int64", "[8, 7]:int64")]), "drop_last=True"),
        (
            ("compilation", "shapes", "mm", [("[5]:int64", "[8]:int64"), ("[5, 2]:i", "[8, 2]:i")]),
            "drop_last=True",
        ),
        (("compilation", "shapes", "mm", [("[8]:int64", "[8]:int32")]), "dtype"),
        (
            (
                "compilation",
                "shapes",
                "mm",
                [("[8, 8]:f with strides [1, 8]", "[8, 8]:f with strides [8, 1]")],
            ),
            "contiguous",
        ),
        (("compilation", "constant", "mul", []), "Pass it as a tensor"),
        (("compilation", "ops", "mul", []), "torch.where"),
        (("compilation", "first", "mul", []), "Nothing like it ran before"),
        (("compilation", "", "batch of [8]", []), "emulated HPU"),
        (("host_read", "", ".item()", []), "self.log"),
        (("host_read", "", "nonzero", []), "masked_fill"),
        (("host_read", "", "indexing with a mask", []), "masked_fill"),
        (("host_read", "", "print or repr", []), "Printing"),
        (("host_read", "", "masked_select", []), "masked_fill"),
        (("host_read", "", "equal", []), "first padded batch"),
        (("host_copy", "", ".cpu()", []), "copy once for many steps"),
        (("cpu_fallback", "", "_linalg_eigh", []), "PT_HPU_PLACE_ON_CPU"),
    ],
)
def test_each_cause_has_a_remedy(arguments, text):
    kind, reason, cause, shapes = arguments
    assert text in remedy_for(kind, reason, cause, False, "/me/train.py:1", shapes)


def test_what_a_line_did_through_a_library_names_both():
    via = "/env/site-packages/transformers/masking_utils.py:7"
    event = Event(kind="host_read", cause="_local_scalar_dense", line="/me/train.py:3", via=via)
    books = Ledger(warmup_steps=0)
    books.add_step("fit", taken(event, event, read_event("/me/train.py:3")))
    (finding,) = books.worst("host_read")
    assert finding.describe().endswith(
        "train.py:3 .item() 3 times: in transformers/masking_utils.py:7"
    )
    assert "build_masks_on_device" in finding.remedy


@pytest.mark.parametrize(
    ("kind", "reason", "line", "text"),
    [
        ("host_read", "", "/p/site-packages/lightning/a.py:1", "log_every_n_steps"),
        ("host_read", "", "/p/site-packages/other/a.py:1", "A library does this on its own"),
        ("host_copy", "", "/p/site-packages/lightning/a.py:1", "BasePredictionWriter"),
        ("compilation", "shapes", "/p/site-packages/lightning/a.py:1", "lines of yours"),
    ],
)
def test_what_libraries_do_has_a_remedy_of_its_own(kind, reason, line, text):
    assert text in remedy_for(kind, reason, "op", True, line, [("[8, 7]:i", "[8, 5]:i")])
