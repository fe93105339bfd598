"""The guides in ``docs/``: what they show runs and says what they say, and their links lead on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import RunPython
from snippets import ROOT, as_script, snippets

GUIDES = sorted((ROOT / "docs").glob("*.md"))
# What must hold after a guide's code has run; that of moving-over.md has tests of its own.
CHECKS = {
    "diffusion": "assert (graphs.stats.captures, graphs.stats.replays) == (1, 7)",
    "emulator": "assert (kinds.count('compile'), kinds.count('host_read')) == (3, 3)",
    "generation": "assert graphs.stats.captures == 2",
    "graph-replay": """
assert [tuple(part.shape) for part in predictions] == [(32, 8), (32, 8), (6, 8)]
assert (graphs.stats.captures, graphs.stats.replays, graphs.stats.padded_calls) == (1, 3, 1)
assert (graphed.stats.captures, graphed.stats.replays) == (1, 3)
""",
    "many-cards": """
assert trainer.world_size == 2 and trainer.global_step == 16
assert trainer.callback_metrics["loss_epoch"] < 0.6
""",
    "static-shapes": """
assert bucketed.facts["total"]["compilations"] < naive.facts["total"]["compilations"]
with torch.no_grad():
    for row, found in zip(rows, predictions):
        length = len(row["input_ids"])
        padded = torch.zeros(min(b for b in buckets if b >= length), dtype=torch.long)
        padded[:length] = 7
        torch.testing.assert_close(found, tagger.out(tagger.embed(padded)).mean(0))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_guides_code_runs(name: str, run_python: RunPython) -> None:
    code = as_script(f"docs/{name}.md") + CHECKS[name] + "\nprint('done')\n"
    result = run_python(code, LIGHTNING_GAUDI_EMULATOR_DEVICES="2", OMP_NUM_THREADS="1")
    assert result.stdout.rstrip().endswith("done"), result.stderr


def test_every_guide_is_run() -> None:
    with_code = {path.stem for path in GUIDES if snippets(path)}
    assert with_code == {*CHECKS, "moving-over"}


@pytest.mark.parametrize("path", [*GUIDES, ROOT / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    for target in targets:
        assert (path.parent / target).exists(), target
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors, anchor


def test_the_readme_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for path in GUIDES:
        assert f"](docs/{path.name})" in text, path.name
