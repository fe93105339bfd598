"""Workers that fail, hang or abort; the report; and a whole run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lightning_gaudi.cli import main
from lightning_gaudi.runtime import facts as runtime_facts
from lightning_gaudi.selftest import report as reports
from lightning_gaudi.selftest import runner
from lightning_gaudi.selftest.catalogue import CATALOGUE, Check
from lightning_gaudi.selftest.runner import choose, run_checks

ROOT = Path(__file__).parent.parent.parent

# Stands in for the worker: what each of its checks does is in its name.
WORKER = """
import json, os, subprocess, sys, time
def say(message):
    print("\\nlightning-gaudi-selftest:" + json.dumps(message), flush=True)
for name in sys.argv[1:]:
    say({"begin": name})
    print("output of", name, flush=True)
    end = {"name": name, "status": "passed", "figures": {"pid": os.getpid()}, "seconds": 0.1}
    if name.startswith("abort"):
        os.abort()
    if name.startswith("exit"):
        sys.exit(5)
    if name.startswith("hang"):
        subprocess.Popen(["sleep", "71.3"])
        time.sleep(70)
    if name.startswith("fail"):
        end |= {"status": "failed", "reason": "AssertionError: wrong", "traceback": "lines"}
    say({"end": end})
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Run checks of these names with the stand-in."""
    (tmp_path / "worker.py").write_text(WORKER)
    started = []
    open_python = runner.open_python

    def open_stand_in(arguments, **settings):
        assert arguments[:2] == ["-m", "lightning_gaudi.selftest.worker"]
        started.append(arguments[2:])
        return open_python([str(tmp_path / "worker.py"), *arguments[2:]], **settings)

    monkeypatch.setattr(runner, "open_python", open_stand_in)
    monkeypatch.setattr(runner, "_START_LIMIT_S", 3.0)

    def run(*names, isolates=False, **settings):
        checks = [
            (
                Check(
                    name=name,
                    module="none",
                    title=f"title of {name}",
                    may_abort="alone" in name,
                    is_question="question" in name,
                    limit_s=3.0,
                ),
                "a reason" if "skip" in name else "",
            )
            for name in names
        ]
        results = run_checks(checks, mode="lazy", isolates=isolates, **settings)
        assert [result["name"] for result in results] == list(names)
        return results, started

    return run


def test_one_process_runs_check_after_check(worker):
    seen = []
    results, started = worker("a", "skip", "b", on_result=seen.append)
    assert [result["status"] for result in results] == ["passed", "skipped", "passed"]
    assert results[1]["reason"] == "a reason"
    assert results[0]["figures"] == results[2]["figures"]
    assert results[0]["title"] == "title of a"
    assert started == [["a", "b"]]
    assert {result["name"] for result in seen} == {"a", "skip", "b"}


def test_after_a_failure_a_fresh_process_goes_on(worker):
    results, started = worker("a", "fail", "b")
    assert [result["status"] for result in results] == ["passed", "failed", "passed"]
    assert results[1]["reason"] == "AssertionError: wrong"
    assert results[1]["traceback"] == "lines"
    assert results[1]["output"] == "output of fail"
    assert results[0]["figures"] != results[2]["figures"]
    assert started == [["a", "fail", "b"], ["b"]]


def test_a_process_that_ends_takes_no_other_check_with_it(worker):
    results, _ = worker("abort", "exit", "b", "abort_question", "c")
    assert [result["status"] for result in results] == [
        "failed",
        "failed",
        "passed",
        "answered",
        "passed",
    ]
    assert results[0]["reason"] == "the process ended by signal 6"
    assert results[0]["output"] == "output of abort"
    assert results[1]["reason"] == "the process ended with code 5"
    assert results[3]["answer"] == "the process ended by signal 6"


@pytest.mark.slow
def test_a_process_that_hangs_is_killed_with_what_it_started(worker):
    results, _ = worker("hang", "b")
    assert [result["status"] for result in results] == ["failed", "passed"]
    assert results[0]["reason"] == "no result within 6 s"
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_text())
    assert not [line for line in lines if line == "sleep\x0071.3\x00"]


def test_what_may_abort_gets_a_process_of_its_own(worker):
    _, started = worker("a", "alone1", "alone2", "b", "c", isolates=True)
    assert started == [["a"], ["alone1"], ["alone2"], ["b", "c"]]
    started.clear()
    assert worker("a", "alone1", "b")[1] == [["a", "alone1", "b"]]


def test_which_checks_are_chosen():
    everything = choose(mode="lazy", quick=False)
    assert [check for check, _ in everything] == list(CATALOGUE)
    assert not any(reason for _, reason in everything)
    quick = choose(mode="lazy", quick=True)
    assert quick
    assert all(check.is_quick for check, _ in quick)
    eager = {check.name: reason for check, reason in choose(mode="eager", quick=False)}
    assert eager["replay_equals_eager"] == "there are no HPU graphs in eager mode"
    assert eager["fit_equals_the_cpu"] == ""
    assert [c.name for c, _ in choose(mode="lazy", quick=False, names=["seeds"])] == ["seeds"]


# --- the report -----------------------------------------------------------------------------------


def result(name, status, **more):
    return {"name": name, "title": name, "status": status, "seconds": 1.0, "figures": {}, **more}


def test_the_report_says_what_it_is(tmp_path):
    facts = runtime_facts.gather_facts(load=False)
    rows = [result("a", "passed"), result("b", "skipped", reason="r"), result("c", "answered")]
    report = reports.make_report(facts, [], rows, mode="lazy")
    reports.write_report(report, tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert list(read) == [
        "version",
        "written",
        "is_emulated",
        "mode",
        "has_passed",
        "counts",
        "checks",
        "doctor",
    ]
    assert (read["version"], read["is_emulated"], read["has_passed"]) == (1, True, True)
    assert read["counts"] == {"passed": 1, "skipped": 1, "answered": 1}
    assert read["doctor"]["facts"]["installed"]["python"]
    failed = reports.make_report(facts, [], [*rows, result("d", "failed")], mode="lazy")
    assert not failed["has_passed"]
    assert not reports.make_report(facts, [], rows[1:], mode="lazy")["has_passed"]


def test_what_is_on_the_screen(tmp_path):
    out = StringIO()
    console = Console(file=out, width=100, highlight=False)
    reports.print_result(console, result("b", "failed", reason="AssertionError: [x]\nmore"))
    facts = runtime_facts.gather_facts(load=False)
    report = reports.make_report(facts, [], [result("a", "passed")], mode="lazy")
    reports.print_end(console, report, tmp_path / "r.json")
    reports.print_end(console, report | {"is_emulated": False}, tmp_path / "r.json")
    lines = out.getvalue().splitlines()
    assert lines[0] == "failed      1.0 s  b: b"
    assert lines[1].strip() == "AssertionError: [x]"
    assert "1 passed on the EMULATED HPU, which says nothing of a card." in lines
    assert "1 passed." in lines
    assert (
        "Please send that file to the project: nothing else tells it how a card behaves." in lines
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "argument --only: there is no check 'nothing'; see --list"),
        (["--json", "/nowhere/at/all.json"], "there is no folder '/nowhere/at'"),
    ],
)
def test_bad_options(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["selftest", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list(capsys):
    main(["selftest", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [check.name for check in CATALOGUE]
    assert sum(" question " in line for line in lines) == 12


# --- for real -------------------------------------------------------------------------------------


def selftest(folder, *arguments, **variables):
    merged = dict(os.environ) | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | variables
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "lightning_gaudi_autoload.command"),
            *("selftest", "--json", str(folder / "out.json"), *arguments),
        ],
        cwd=ROOT,
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=400,
    )
    return done, json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_a_whole_run_passes_on_two_emulated_cards(tmp_path):
    done, report = selftest(tmp_path, LIGHTNING_GAUDI_EMULATOR_DEVICES="2")
    bad = [c for c in report["checks"] if c["status"] not in ("passed", "answered")]
    assert bad == []
    assert done.returncode == 0
    assert (report["has_passed"], report["is_emulated"]) == (True, True)
    assert report["counts"] == {"passed": 32, "answered": 12}
    assert "Selftest on the emulated HPU, lazy mode.\n" in done.stdout
    assert "EMULATED HPU, which says nothing of a card." in done.stdout
    answers = {c["name"]: c.get("answer") for c in report["checks"]}
    assert answers["default_mode"]["is_lazy"] is False
    assert answers["times"]["replay of it and a wait"] > 0


@pytest.mark.slow
def test_eager_mode_skips_what_needs_graphs(tmp_path):
    names = ["device_and_mode", "replay_equals_eager", "fit_equals_the_cpu", "generation"]
    done, report = selftest(tmp_path, "--mode", "eager", "--only", *names)
    assert done.returncode == 0, done.stdout
    assert [c["status"] for c in report["checks"]] == ["passed", "skipped", "passed", "passed"]
    assert report["checks"][0]["figures"]["lazy"] is False


@pytest.mark.slow
def test_without_an_hpu_it_fails_and_says_why(tmp_path):
    done, report = selftest(tmp_path, "--only", "device_and_mode", LIGHTNING_GAUDI_EMULATOR=None)
    assert done.returncode == 1
    assert not report["is_emulated"]
    assert (
        "no HPU: the Gaudi software (habana_frameworks) is not installed"
        in (report["checks"][0]["reason"])
    )
    assert "Traceback" in report["checks"][0]["traceback"]
