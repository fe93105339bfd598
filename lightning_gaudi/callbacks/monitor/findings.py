"""What was found on one source line: how often, in which steps, why, and what to change."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_gaudi.callbacks.monitor import remedies
from lightning_gaudi.runtime.recording import Event

FindingKind = Literal["compilation", "host_read", "host_copy", "cpu_fallback"]

_KINDS: dict[str, FindingKind] = {
    "compile": "compilation",
    "host_read": "host_read",
    "d2h": "host_copy",
    "cpu_fallback": "cpu_fallback",
}
NOUNS = {
    "compilation": ("compilation", "compilations"),
    "host_read": ("host read", "host reads"),
    "host_copy": ("copy to the host", "copies to the host"),
    "cpu_fallback": ("CPU fallback", "CPU fallbacks"),
}
_MAX_TEXTS = 8
_MAX_STEPS = 50

# How a user writes what PyTorch calls by another name.
_SPELLINGS = {
    "_local_scalar_dense": ".item()",
    "item": ".item()",
    "is_nonzero": "bool()",
    "__float__": "float()",
    "__int__": "int()",
    "__bool__": "bool()",
    "__index__": "int()",
    "__complex__": "complex()",
    "tolist": ".tolist()",
    "repr": "print or repr",
    "_to_copy": ".cpu()",
    "index.Tensor": "indexing with a mask",
    "index": "indexing with a mask",
    "_unique2": "unique",
    "tensor": "torch.tensor of device numbers",
    "as_tensor": "torch.as_tensor of device numbers",
}


def count_of(kind: str, count: int) -> str:
    """``"1 host read"``, ``"2 host reads"``."""
    return f"{count} {NOUNS[kind][count != 1]}"


def short_path(line: str) -> str:
    """A source line as people say it: relative to the working folder, or to the package's."""
    path, _, number = line.rpartition(":")
    if not path:
        return line
    parts = Path(path).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            inner = parts[parts.index(folder) + 1 :]
            return "/".join(inner) + f":{number}"
    try:
        return f"{Path(path).relative_to(Path.cwd()).as_posix()}:{number}"
    except ValueError:
        tail = parts[-3:]
        return ("…/" if len(parts) > len(tail) + 1 else "") + "/".join(tail) + f":{number}"


def source_of(line: str) -> str:
    """The text of a source line; empty where the file cannot be read."""
    path, _, number = line.rpartition(":")
    return linecache.getline(path, int(number)).strip() if number.isdecimal() else ""


@dataclass(slots=True, kw_only=True)
class Finding:
    """The same thing on the same line.

    Attributes:
        kind: What happened.
        line: The source line, ``"path:number"``; empty where nobody knows it, as on a card.
        is_library: Whether the line is a library's, which did it without a line of the user.
        cause: The op, or the call as users write it.
        reason: Of compilations the kind of `Reason`; else empty.
        count: How often, in all.
        num_late: How often after the warm-up, in steps: what budgets count.
        texts: Differences in words, the first few.
        shapes: Of compilations for new shapes: (now, before), the first few.
        via: The line of a library that the source line called, and that did it; else empty.
        steps: In which steps, ``"fit 12"``, the first few; ``"fit"`` for between steps.
    """

    kind: FindingKind
    line: str
    is_library: bool
    cause: str
    reason: str = ""
    count: int = 0
    num_late: int = 0
    texts: list[str] = field(default_factory=list)
    shapes: list[tuple[str, str]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    via: str = ""

    @property
    def place(self) -> str:
        """The line for people, and whose it is."""
        if not self.line:
            return "(line unknown)"
        return short_path(self.line) + (" (library)" if self.is_library else "")

    @property
    def remedy(self) -> str:
        """What to change."""
        return remedies.remedy_for(
            self.kind, self.reason, self.cause, self.is_library, self.via or self.line, self.shapes
        )

    def describe(self, count: int | None = None) -> str:
        """In one line: ``"train.py:31 .item() 40 times"``, with why a graph was compiled."""
        number = self.count if count is None else count
        times = "once" if number == 1 else f"{number} times"
        text = f"{self.place} {self.cause} {times}".strip()
        return f"{text}: {self.texts[0]}" if self.texts else text

    def note(self, event: Event, step: str, *, is_late: bool) -> None:
        """One more."""
        self.count += 1
        self.num_late += is_late
        if step not in self.steps and len(self.steps) < _MAX_STEPS:
            self.steps.append(step)
        if event.reason is None:
            self._note_via(event.via)
            return
        text = event.reason.text
        if text not in self.texts and len(self.texts) < _MAX_TEXTS:
            self.texts.append(text)
        for change in event.reason.shapes:
            pair = (change.now, change.before)
            if pair not in self.shapes and len(self.shapes) < _MAX_STEPS:
                self.shapes.append(pair)

    def _note_via(self, via: str) -> None:
        text = f"in {short_path(via)}"
        if via and text not in self.texts and len(self.texts) < _MAX_TEXTS:
            self.via = self.via or via
            self.texts.append(text)


Key = tuple[str, str, bool, str, str]


def key_of(event: Event) -> Key:
    """What makes two events the same finding."""
    kind = _KINDS[event.kind]
    if event.reason is not None:
        reason = event.reason
        return kind, reason.library or reason.line, bool(reason.library), reason.op, reason.kind
    # A card names no op for a compilation; the batch's shapes are all there is to go by.
    cause = event.detail if kind == "compilation" else _SPELLINGS.get(event.cause, event.cause)
    return kind, event.library or event.line, bool(event.library), cause, ""


def others_of(key: Key) -> Key:
    """The finding that takes what there is no room for any more."""
    return key[0], "", False, "in other places", ""


def finding_for(key: Key) -> Finding:
    """A finding that nothing is noted in yet."""
    kind, line, is_library, cause, reason = key
    return Finding(
        kind=kind,  # type: ignore[arg-type]
        line=line,
        is_library=is_library,
        cause=cause,
        reason=reason,
    )
