"""Run all benchmarks, write their report, and compare it with the last one.

    make bench
    python benchmarks/run_all.py --only replay,buckets

Each benchmark runs in a process of its own on the emulated HPU. Writes ``RESULTS.md`` and
``results.json`` beside this file, and a plot among the documents' pictures. With ``--only`` the
other benchmarks keep the figures they had.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Row, machine
from results import Results, Section, draw, write_page

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
FIGURES = HERE / "results.json"
PICTURE = HERE.parent / "docs" / "pictures" / "benchmarks.png"
LIBRARIES = ("torch", "lightning", "transformers", "diffusers", "lightning-gaudi")
# In the report's order.
BENCHMARKS = {
    "replay": "One replayed call on the host",
    "emulator": "The emulated HPU on the host",
    "strategy": "A training step through the strategy",
    "buckets": "Static shapes by buckets",
    "generation": "Generation",
    "diffusion": "Sampling images",
    "checkpoint": "Checkpoints",
}


def run(name: str, folder: Path) -> Section | None:
    """Run one benchmark in a process of its own; None where it failed."""
    path = folder / f"{name}.json"
    environment = os.environ | {
        "LIGHTNING_GAUDI_EMULATOR": "1",
        "PT_HPU_LAZY_MODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    script = HERE / f"bench_{name}.py"
    # Its exit code says only whether targets are met, which the figures tell as well.
    subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--json", str(path)],
        env=environment,
        check=False,
    )
    if not path.is_file():
        return None
    rows = tuple(Row(**row) for row in json.loads(path.read_text())["rows"])
    return Section(title=BENCHMARKS[name], rows=rows)


def main() -> int:
    """Run the benchmarks; the exit status is 1 where one failed or a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"a comma-separated choice of {', '.join(BENCHMARKS)}")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")

    last = Results.from_json(FIGURES.read_text()) if FIGURES.is_file() else None
    sections = {} if last is None else {section.title: section for section in last.sections}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            section = run(name, Path(folder))
            if section is None:
                failed.append(name)
            else:
                sections[section.title] = section
    results = Results(
        date=datetime.date.today().isoformat(),
        machine=machine(),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        sections=tuple(sections[title] for title in BENCHMARKS.values() if title in sections),
    )
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(results.sections, PICTURE)
    picture = os.path.relpath(PICTURE, HERE)
    PAGE.write_text(write_page(results, last, picture), "utf-8")
    FIGURES.write_text(results.to_json(), "utf-8")
    print(f"Written: {PAGE}, {FIGURES}, {PICTURE}")

    missed = [row.what for row in results.rows if row.is_met is False]
    for what in missed:
        print(f"Target missed: {what}")
    for name in failed:
        print(f"Failed: bench_{name}.py")
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
