"""For any sequence of calls and changes, replay equals the forward run op by op, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import sequences
from graphs.fuzz import shrink
from graphs.sequences import Call, Sequence, random_sequence, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_gaudi.graphs import weights

calls = st.builds(
    Call,
    rows=st.sampled_from(sequences.ROWS),
    structure=st.sampled_from(sequences.STRUCTURES),
    factor=st.sampled_from(sequences.FACTORS),
    dtype=st.sampled_from(sequences.DTYPES),
    mode=st.sampled_from(list(sequences.MODES)),
    fail=st.sampled_from([False] * 9 + [True]),
)


@st.composite
def whole_sequences(draw):
    """A few kinds of calls, in any order and number, and changes in between."""
    kinds = draw(st.lists(calls, min_size=1, max_size=3))
    step = st.one_of(
        st.sampled_from(kinds), st.sampled_from(kinds), st.sampled_from(sequences.CHANGES)
    )
    return Sequence(
        module=draw(st.sampled_from(list(sequences.MODULES))),
        steps=tuple(draw(st.lists(step, min_size=1, max_size=12))),
        pad_batch=draw(st.booleans()),
        disable_tensor_cache=draw(st.booleans()),
        clone_outputs=draw(st.booleans()),
        max_graphs=draw(st.sampled_from([1, 2, 8])),
    )


@settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(whole_sequences())
@pytest.mark.slow
def test_any_sequence_equals_op_by_op(sequence):
    run(sequence)


@pytest.mark.slow
def test_random_sequences_cover_what_they_should():
    """The fuzz script's sequences: captured, replayed, padded, evicted, and run op by op."""
    totals: dict[str, int] = {}
    for seed in range(40):
        stats = run(random_sequence(random.Random(seed))).stats
        for name in ("captures", "replays", "eager_calls", "padded_calls", "evictions"):
            totals[name] = totals.get(name, 0) + getattr(stats, name)
    assert all(number >= 3 for number in totals.values()), totals


def test_a_missing_safeguard_is_found_and_shrunk(monkeypatch):
    """That these tests can fail: replaced weights go unnoticed."""
    monkeypatch.setattr(weights.ModuleWatch, "has_changed", lambda self, *args: False)
    call = Call(rows=2)
    sequence = Sequence("Attention", (call, "eval", call, "replace data", "update", call, call))
    with pytest.raises(AssertionError, match="result"):
        run(sequence)
    shortest = shrink(sequence)
    assert shortest.steps == (call, "replace data", call)
    assert str(shortest).startswith("Sequence(module='Attention', steps=(Call(rows=2")


@pytest.mark.slow
def test_the_script_runs_and_says_how_fast():
    script = Path(__file__).with_name("fuzz.py")
    result = subprocess.run(
        [sys.executable, str(script), "--calls", "200", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all as op by op" in result.stdout
    assert "calls per second" in result.stdout


def test_comparing_notices_a_single_bit():
    call = Call()
    x = torch.ones(2, device="hpu")
    nearly = x.clone()
    nearly[0] += torch.finfo(torch.float32).eps
    with pytest.raises(AssertionError, match="result"):
        sequences._assert_same([x], [nearly], "result", False, call)
    sequences._assert_same([x], [nearly], "result", True, call)
