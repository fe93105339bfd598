"""Whether, and how, layers compute in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .recipe import DelayedScaling

is_enabled = False
recipe: DelayedScaling | None = None


@contextmanager
def fp8_autocast(
    enabled: bool = False,
    force_measurement: bool | None = None,
    fp8_recipe: DelayedScaling | None = None,
    fp8_group: Any = None,
) -> Iterator[None]:
    """Layers of this package compute in 8 bits inside."""
    global is_enabled, recipe
    before = is_enabled, recipe
    is_enabled, recipe = enabled, fp8_recipe or DelayedScaling()
    try:
        yield
    finally:
        is_enabled, recipe = before
