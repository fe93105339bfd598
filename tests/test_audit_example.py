"""The audit example runs small, and its figures are those of its reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "audit_recompiles.py"


def cells(name, output):
    found = re.search(rf"│ {name} +│ +(\S+) │ +(\S+) │", output)
    assert found is not None, output
    return found[1], found[2]


@pytest.mark.slow
def test_the_audit_shows_what_buckets_do(tmp_path):
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--num-texts", "81", "--buckets", "2", "--output", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    facts = {
        name: json.loads((tmp_path / name / "compile_monitor.json").read_text())
        for name in ("naive", "bucketed")
    }
    naive, bucketed = (facts[name]["total"]["compilations"] for name in ("naive", "bucketed"))
    assert cells("compilations", result.stdout) == (str(naive), str(bucketed))
    assert naive > 15
    assert bucketed <= 4  # a graph for each bucket, one of the optimizer in the first step
    late = {name: facts[name]["after_warmup"] for name in facts}
    assert cells("host reads after the warm-up", result.stdout) == (
        str(late["naive"]["host_reads"]),
        "0",
    )
    assert late["naive"]["host_reads"] >= 2 * 8  # the mask's and the loss's, in each step
    steps = cells("training steps", result.stdout)
    assert [int(number) for number in steps] == [facts[n]["stages"]["fit"]["steps"] for n in facts]
    losses = [float(loss) for loss in cells("loss, first 20 steps", result.stdout)]
    assert losses[0] == pytest.approx(losses[1], abs=0.3)
    own = [f for f in facts["naive"]["findings"] if f["line"].startswith(str(SCRIPT))]
    source = SCRIPT.read_text().splitlines()
    reads = {
        source[int(f["line"].rpartition(":")[2]) - 1].strip()
        for f in own
        if f["what"] == "host read"
    }
    assert reads == {"loss: Tensor = self.model(**batch).loss", "self.losses.append(loss.item())"}
    assert (tmp_path / "timelines.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "index.html").read_text()
    for source_name in re.findall(r'src="([^"]+)"', page):
        assert (tmp_path / source_name).exists()
    assert "Warning" not in result.stderr


def test_it_refuses_what_cannot_be(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from audit_recompiles import parse_arguments

    monkeypatch.setattr(sys, "argv", ["audit_recompiles.py", "--buckets", "0"])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert "--buckets must be 1 or more" in capsys.readouterr().err
