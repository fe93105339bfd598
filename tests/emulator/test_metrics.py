"""The SDK's metrics: names, tuples, what a block counts, and files of them."""

from __future__ import annotations

import json

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpu import metrics
from habana_frameworks.torch.hpu.metrics import (
    MetricNotFound,
    metric_global,
    metric_localcontext,
    metrics_dump,
)

from lightning_gaudi.emulator import report_files, reports

_next_size = 5000

NAMES = ["graph_compilation", "cpu_fallback", "memory_defragmentation", "recipe_cache"]


def compile_something(times: int = 1) -> None:
    """One new recipe, run `times` times."""
    global _next_size
    _next_size += 1
    tensor = torch.ones(_next_size).to("hpu")
    htcore.mark_step()
    for _ in range(times):
        tensor * 2 + 1
        htcore.mark_step()


def fall_back() -> None:
    torch.linalg.eigvalsh(torch.eye(2, device="hpu"))


@pytest.mark.parametrize(
    ("name", "stats"),
    [
        ("graph_compilation", ["TotalNumber", "TotalTime", "AvgTime"]),
        ("cpu_fallback", ["TotalNumber", "FallbackOps"]),
        ("memory_defragmentation", ["TotalNumber", "TotalSuccessful", "AvgTime", "MaxTime"]),
        ("recipe_cache", ["TotalHit", "RecipeHit", "TotalMiss", "RecipeMiss"]),
    ],
)
def test_the_tuples_are_the_sdks(name, stats):
    metric = metric_global(name)
    assert metric is metric_global(name)
    assert metric.name() == name
    assert [stat for stat, _ in metric.stats()] == stats
    assert all(type(entry) is tuple for entry in metric.stats())


def test_an_unknown_metric():
    assert metric_global("no_such_metric") is None
    with (
        pytest.raises(
            MetricNotFound, match=r"Metric with given name \(no_such_metric\) doesn't exist\."
        ),
        metric_localcontext("no_such_metric"),
    ):
        pass
    assert metrics.exceptions.MetricNotFound is MetricNotFound


def test_a_block_counts_what_happens_in_it():
    compile_something()
    with metric_localcontext("graph_compilation") as outer:
        with metric_localcontext("graph_compilation") as first:
            compile_something()
            compile_something()
        with metric_localcontext("graph_compilation") as second:
            compile_something(times=3)
            assert dict(second.stats())["TotalNumber"] == 1
    compile_something()
    numbers = [dict(metric.stats())["TotalNumber"] for metric in (outer, first, second)]
    assert numbers == [3, 2, 1]


def test_the_cache_and_the_fallbacks_of_a_block():
    fall_back()
    with (
        metric_localcontext("recipe_cache") as cache,
        metric_localcontext("cpu_fallback") as fallbacks,
        metric_localcontext("memory_defragmentation") as defragmentation,
    ):
        compile_something(times=3)
        fall_back()
    stats = dict(cache.stats())
    # The fallback flushes what made its input.
    assert stats["TotalHit"] >= 2
    assert sorted(stats["RecipeHit"].values())[-1] == 2
    assert sum(stats["RecipeHit"].values()) == stats["TotalHit"]
    assert sum(stats["RecipeMiss"].values()) == stats["TotalMiss"]
    assert fallbacks.stats() == [("TotalNumber", 1), ("FallbackOps", {"_linalg_eigh": 1})]
    assert [value for _, value in defragmentation.stats()] == [0, 0, 0, 0]


def test_what_is_pending_at_the_end_of_a_block_is_not_counted():
    with metric_localcontext("graph_compilation") as metric:
        torch.ones(4999).to("hpu") * 3
    htcore.mark_step()
    assert dict(metric.stats())["TotalNumber"] == 0


def test_a_block_that_raises_stops_counting():
    with pytest.raises(ZeroDivisionError), metric_localcontext("graph_compilation") as metric:
        compile_something()
        raise ZeroDivisionError
    compile_something()
    assert dict(metric.stats())["TotalNumber"] == 1


def test_stop_start_and_reset():
    metric = reports.Metric("graph_compilation")
    compile_something()
    metric.stop()
    metric.stop()
    compile_something()
    metric.start()
    metric.start()
    compile_something()
    assert dict(metric.stats())["TotalNumber"] == 2
    metric.reset()
    assert dict(metric.stats())["TotalNumber"] == 0
    compile_something()
    assert dict(metric.stats())["TotalNumber"] == 1
    metric.stop()
    metric.reset()
    assert dict(metric.stats())["TotalNumber"] == 0


def test_compilations_by_recipe_on_request(monkeypatch):
    monkeypatch.setenv("PT_HPU_METRICS_GC_DETAILS", "1")
    with metric_localcontext("graph_compilation") as metric:
        compile_something()
        compile_something()
    stats = dict(metric.stats())
    assert [duration for _, duration in stats["recipe"]] == [0, 0]
    assert len({name for name, _ in stats["recipe"]}) == 2
    monkeypatch.undo()


def test_a_dump_in_json(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    metrics_dump(str(path))
    entries = json.loads(path.read_text())
    assert [entry["metric_name"] for entry in entries] == NAMES
    assert {entry["triggered_by"] for entry in entries} == {"user"}
    for entry in entries:
        assert set(entry) == {"metric_name", "triggered_by", "generated_on", "statistics"}
        assert entry["statistics"] == dict(metric_global(entry["metric_name"]).stats())
    metrics_dump(str(path), metrics.saver.MetricDumpFormat.json)
    assert json.loads((tmp_path / "new" / "metrics.json.1").read_text())[0]["metric_name"]


def test_a_dump_as_text(tmp_path):
    path = tmp_path / "metrics.txt"
    metrics_dump(str(path), "text")
    blocks = path.read_text().split("\n\n")
    assert blocks[0].splitlines()[0] == "Metric name: graph_compilation"
    assert blocks[0].splitlines()[1] == "Triggered by: user"
    assert blocks[0].splitlines()[2].startswith("Generated on: 20")
    number = dict(metric_global("graph_compilation").stats())["TotalNumber"]
    assert blocks[0].splitlines()[3:5] == ["Statistics:", f"\tTotalNumber: {number}"]
    assert len(blocks) == len(NAMES) + 1
    with pytest.raises(metrics.InvalidMetricDumpFileFormat, match="json or text, but the format"):
        metrics_dump(str(path), "xml")


def test_the_rank_is_part_of_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    metrics_dump(str(tmp_path / "a.json"))
    monkeypatch.setenv("RANK", "5")
    metrics_dump(str(tmp_path / "a"))
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-rank3.json", "a-rank5"]


def test_wrong_settings_are_named(monkeypatch):
    monkeypatch.setenv("PT_HPU_METRICS_FILE", "unused.json")
    monkeypatch.setenv("HABANA_PT_METRICS_DUMP_TRIGGERS", "process_exit,sometimes")
    with pytest.raises(metrics.InvalidMetricDumpTrigger, match="but it has 'sometimes'"):
        report_files.attach()
    monkeypatch.setenv("PT_HPU_METRICS_FILE_FORMAT", "xml")
    with pytest.raises(metrics.InvalidMetricDumpFileFormat, match="'xml'"):
        report_files.attach()
    monkeypatch.setattr(report_files, "_saver", None)
    monkeypatch.undo()


@pytest.mark.slow
def test_files_at_marks_changes_and_the_end(run_python, tmp_path):
    code = """
        import lightning_gaudi, sys, torch
        import habana_frameworks.torch.core as htcore
        if sys.argv[1] == "use":
            x = torch.ones(3).to("hpu")
            for _ in range(2):
                x = x * 2
                htcore.mark_step()
    """

    def run(name: str, use: str = "use", **variables: str) -> list[tuple[str, str, int]]:
        path = tmp_path / name
        run_python(code, args=(use,), PT_HPU_METRICS_FILE=str(path), **variables)
        if not path.exists():
            return []
        return [
            (entry["metric_name"], entry["triggered_by"], entry["statistics"].get("TotalNumber"))
            for entry in json.loads(path.read_text())
        ]

    at_exit = [(name, "process_exit", {"graph_compilation": 1}.get(name, 0)) for name in NAMES]
    at_exit[3] = ("recipe_cache", "process_exit", None)
    assert run("exit.json") == at_exit
    assert run("unused.json", use="no") == []
    found = run("all.json", PT_HPU_METRICS_DUMP_TRIGGERS="mark_step,process_exit,metric_change")
    triggers = [trigger for _, trigger, _ in found]
    assert triggers.count("mark_step") == 2 * len(NAMES)
    assert triggers.count("process_exit") == len(NAMES)
    changes = [entry for entry in found if entry[1] == "metric_change"]
    assert changes[:2] == [
        ("graph_compilation", "metric_change", 1),
        ("recipe_cache", "metric_change", None),
    ]
