"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from importlib.resources import files
from typing import Any

from lightning_gaudi.callbacks.monitor.table import COLUMNS, shown_columns

_MAX_STEPS_NAMED = 6


def page_of(facts: dict[str, Any], picture: bytes) -> str:
    """Put facts and picture into the page; everything from the run is escaped.

    Args:
        facts: From `facts_of`.
        picture: The timeline, a PNG.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["steps"] = _steps
    source = files("lightning_gaudi.callbacks.monitor").joinpath("page.html.j2").read_text("utf-8")
    findings = facts["findings"]
    late = [finding for finding in findings if finding["after_warmup"]]
    remedies: dict[str, list[dict[str, Any]]] = {}
    for finding in late:
        remedies.setdefault(finding["remedy"], []).append(finding)
    return environment.from_string(source).render(
        facts=facts,
        columns={name: COLUMNS[name] for name in shown_columns(facts["total"])},
        late=late,
        early=[finding for finding in findings if not finding["after_warmup"]],
        remedies=sorted(
            remedies.items(), key=lambda item: -sum(f["after_warmup"] for f in item[1])
        ),
        picture=base64.b64encode(picture).decode(),
    )


def _steps(steps: list[str]) -> str:
    named = ", ".join(steps[:_MAX_STEPS_NAMED])
    return named + (" …" if len(steps) > _MAX_STEPS_NAMED else "")
