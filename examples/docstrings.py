"""Real English text that every Python carries: the docstrings of the standard library.

The sources are parsed, not imported, so nothing of the library runs.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
_SHORTEST = 40  # characters; below that a docstring says little


class Docstring(NamedTuple):
    """A docstring and where it stands: ``name`` is ``"json.decoder.JSONDecoder.decode"``."""

    name: str
    text: str


def load_docstrings(limit: int | None = None) -> list[Docstring]:
    """Docstrings of the standard library's modules, classes and functions, in a fixed order.

    Args:
        limit: How many to return, taken evenly from all over the library; None for all.

    Raises:
        ValueError: There are fewer than asked for.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [docstring for path in sorted(root.rglob("*.py")) for docstring in _read(root, path)]
    unique = list({docstring.text: docstring for docstring in found}.values())
    if limit is None:
        return unique
    if limit < 1 or limit > len(unique):
        raise ValueError(
            f"{limit} docstrings were asked for, but this Python's standard library in {root} has "
            f"{len(unique)} of at least {_SHORTEST} characters. Ask for 1 to {len(unique)}."
        )
    return [unique[position * len(unique) // limit] for position in range(limit)]


def _read(root: Path, path: Path) -> Iterator[Docstring]:
    parts = path.relative_to(root).with_suffix("").parts
    if _SKIPPED.intersection(parts):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old sources
            tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # templates and samples lie there too
        return
    name = ".".join(part for part in parts if part != "__init__")
    yield from _walk(tree, name)


def _walk(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text is not None and len(text) >= _SHORTEST:
            yield Docstring(name, text)
        for child in node.body:
            yield from _walk(child, f"{name}.{getattr(child, 'name', '')}")
