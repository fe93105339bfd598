"""What the emulated HPU has compiled for other tests counts for nothing in these."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_gaudi.emulator import accounting


@pytest.fixture(autouse=True)
def _no_recipes() -> Iterator[None]:
    with accounting.cache.emptied():
        yield
