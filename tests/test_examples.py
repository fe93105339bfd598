"""The examples run as a user runs them, and say what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import as_script, snippets

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *args],
        capture_output=True,
        text=True,
        timeout=600,
    )


def row(name: str, output: str) -> str:
    found = re.search(rf"│ {name} +│ +([^│]*?) │", output)
    assert found is not None, output
    return found[1]


@pytest.mark.slow
def test_sentence_search_equals_stock_transformers_and_finds_things():
    result = run("sentence_search.py", "--num-texts", "150", "--batch-size", "8", "--check")
    assert result.returncode == 0, result.stderr
    output = result.stdout
    difference = float(re.search(r"largest difference (\S+) over", output)[1])  # type: ignore[index]
    assert difference < 1e-5
    assert int(re.search(r"(\d+) texts on GAUDI2 \(emulated\)", output)[1]) == 150 + 5  # type: ignore[index]
    captures, replays = int(row("captures", output)), int(row("replays", output))
    assert 0 < captures <= 12
    assert captures + replays >= 155 / 8
    assert row("forwards run op by op", output) == "0"
    assert row("CPU fallbacks", output) == "0"
    assert "Warning" not in result.stderr
    # Two are Lightning's own; the first padded batch of each of the 6 lengths is compared twice.
    assert int(row("host reads", output)) <= 2 + 6 * 2
    assert len(re.findall(r"^  0\.\d\d  ", output, flags=re.MULTILINE)) == 15


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--num-texts", "0"), "--num-texts must be 1 or more"),
        (("--batch-size", "-3"), "--batch-size must be 1 or more"),
        (("--num-texts", "100000000"), r"100000000 docstrings were asked for, but .* has \d+ of"),
    ],
)
def test_sentence_search_refuses_what_cannot_be(args, message):
    result = run("sentence_search.py", *args)
    assert result.returncode != 0
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_docstrings_are_real_distinct_and_in_a_fixed_order(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from docstrings import load_docstrings

    everything = load_docstrings()
    assert len(everything) >= 5000
    assert len({docstring.text for docstring in everything}) == len(everything)
    some = load_docstrings(100)
    assert some == load_docstrings(100)
    assert len({docstring.name.split(".")[0] for docstring in some}) > 20
    assert "argparse.ArgumentParser" in {docstring.name for docstring in everything}
    with pytest.raises(ValueError, match="0 docstrings were asked for"):
        load_docstrings(0)


def test_readme_snippets_run(run_python):
    assert len(snippets("README.md")) == 2
    result = run_python(
        as_script("README.md")
        + """
from lightning_gaudi.testing import hpu_budget

graphs = trainer.callbacks[0]
assert isinstance(graphs, HPUGraphCallback)
# 64 batches of a prediction and of two validations, and 2 before the fit; two were captures
assert (graphs.stats.captures, graphs.stats.replays) == (2, 3 * 64 + 2 - 2), graphs.stats
assert trainer.state.finished
limits = {mark.name: mark.kwargs for mark in test_my_step_keeps_its_shapes.pytestmark}
with hpu_budget(**limits["hpu_budget"]) as spent:
    test_my_step_keeps_its_shapes()
assert spent.counts.compilations > 0
print('done')
"""
    )
    assert result.stdout.endswith("done\n")
    assert "forward" not in result.stderr


def test_nothing_is_longer_than_400_lines():
    for path in Path(ROOT / "lightning_gaudi").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
