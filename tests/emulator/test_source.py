"""Whose a file is: the user's, a library's or ours."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

import lightning_gaudi
from lightning_gaudi.emulator.source import _classify

PACKAGE = Path(lightning_gaudi.__file__).parent
STDLIB = sysconfig.get_paths()["stdlib"]


@pytest.mark.parametrize(
    ("filename", "origin"),
    [
        (f"{PACKAGE}/strategy.py", "internal"),
        (f"{PACKAGE}_autoload/pytest_plugin.py", "internal"),
        ("/env/lib/site-packages/lightning_gaudi_autoload/pytest_plugin.py", "internal"),
        ("/env/lib/site-packages/torch/nn/modules/linear.py", "internal"),
        (f"{STDLIB}/contextlib.py", "internal"),
        ("<frozen importlib._bootstrap>", "internal"),
        ("<eval_with_key>.3", "internal"),
        ("/env/lib/site-packages/torchmetrics/metric.py", "library"),
        ("/env/lib/site-packages/lightning/pytorch/loops/fit_loop.py", "loop"),
        # Folders whose names begin like ours.
        (f"{PACKAGE}_experiments/train.py", "user"),
        (f"{STDLIB}-course/train.py", "user"),
        ("<ipython-input-3-0123456789ab>", "user"),
        ("<string>", "user"),
        ("<stdin>", "user"),
        ("relative.py", "user"),
    ],
    ids=lambda value: value.rpartition("/")[2],
)
def test_each_file_is_somebodys(filename, origin):
    assert _classify(filename) == origin
