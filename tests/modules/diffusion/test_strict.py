"""In strict mode: 32 bits, no op without a kernel, and freed memory filled with NaN."""

from __future__ import annotations

from pathlib import Path

import pytest
from modules.diffusion.test_families import FAMILIES

SCRIPT = """
import lightning_gaudi
import torch
from lightning_gaudi.runtime import loading

loading.load("lazy")
torch.set_num_threads(1)
from modules.diffusion.sampling import assert_images, graphs, recorded
from modules.diffusion.test_families import FAMILIES, expected_of, ours, rows_for

for family in FAMILIES:
    found, events = recorded(ours(family, batch_size=2), rows_for(family, 3), graphs())
    assert_images(found, expected_of(family, 3), 1e-5)
    assert not [event for event in events if event.kind == "cpu_fallback"]
    print("right:", family)
"""


@pytest.mark.slow
def test_every_family_in_strict_mode(run_python):
    tests = Path(__file__).parent.parent.parent
    result = run_python(SCRIPT, LIGHTNING_GAUDI_EMULATOR_STRICT="1", PYTHONPATH=str(tests))
    assert [line for line in result.stdout.splitlines() if line.startswith("right:")] == [
        f"right: {family}" for family in FAMILIES
    ]
