"""Every entry of PyTorch's table of ops, on all its samples: the HPU gives what the CPU gives."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from emulator.opinfo.comparison import Mismatch
from emulator.opinfo.differences import DIFFERENT
from emulator.opinfo.harness import Pair, check_pair, pairs


@pytest.mark.opinfo
@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: pair.id)
def test_an_op_equals_the_cpus(pair: Pair, record_property):
    record_property("opinfo_entry", pair.name)
    record_property("opinfo_listed", pair.id in DIFFERENT)
    if pair.id not in DIFFERENT:
        for name, count in asdict(check_pair(pair)).items():
            record_property(name, count)
        return
    try:
        check_pair(pair)
    except Mismatch:
        return
    pytest.fail(f"{pair.id} is equal now: take it off the list in differences.py and README.md")
