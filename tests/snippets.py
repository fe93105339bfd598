"""What the documents show: their Python blocks, and the rows of their tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


def snippets(path: Path | str, language: str = "python") -> list[str]:
    """The code blocks of a Markdown file that are marked with a language, in order.

    Code that cannot run, such as that of another package, is marked ``py``, which looks the same.

    Args:
        path: The file; a relative path begins in the repository.
        language: What stands after the backticks.
    """
    text = (ROOT / path).read_text("utf-8")
    return re.findall(
        rf"^```{re.escape(language)}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE
    )


def as_script(path: Path | str) -> str:
    """All Python blocks of a Markdown file as one script, for the fixture ``run_python``."""
    return "\n\n".join(snippets(path))


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        heading: The line before the table that is not empty.
        cells: Its cells as they stand there.
    """

    heading: str
    cells: tuple[str, ...]

    def code(self, column: int) -> list[str]:
        """What stands in backticks in a cell."""
        return re.findall(r"`([^`]+)`", self.cells[column])


def table_rows(path: Path | str) -> list[Row]:
    """The rows of all tables of a Markdown file, without their heads."""
    rows: list[Row] = []
    heading, num_lines = "", 0
    for line in (ROOT / path).read_text("utf-8").splitlines():
        if line.startswith("| "):
            num_lines += 1
            if num_lines > 2:  # the names of the columns, and the line below them
                rows.append(Row(heading, tuple(cell.strip() for cell in line[1:-1].split("|"))))
        elif line.strip():
            heading, num_lines = line.strip(), 0
    return rows
