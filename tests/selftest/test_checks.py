"""Each check passes on the emulated HPU with the figures that it has there."""

from __future__ import annotations

import importlib
import json
from functools import cache

import pytest
import torch

from lightning_gaudi.runtime import capture
from lightning_gaudi.selftest import basics, worker
from lightning_gaudi.selftest.catalogue import CATALOGUE
from lightning_gaudi.selftest.checking import SkippedError, expect_close

# Another process each, or as long as one; the whole run below has them.
SLOW = ("two_cards", "default_mode")
CHECKS = {check.name: check for check in CATALOGUE}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*kinds of arguments, so graphs are dropped"),
]


def run(name):
    """A check's figures, and its answer."""
    torch.manual_seed(0)
    figures = {}
    module = importlib.import_module(f"lightning_gaudi.selftest.{CHECKS[name].module}")
    answer = getattr(module, name)(figures)
    json.dumps([figures, answer])  # types that JSON has
    return figures, answer


@cache
def outcome(name):
    """What `run` gives, once for all tests of this process."""
    return run(name)


JUDGED = [check.name for check in CATALOGUE if not check.is_question and check.name not in SLOW]


@pytest.mark.parametrize("name", JUDGED)
def test_a_check_passes_and_notes_figures(name):
    figures, answer = outcome(name)
    assert figures
    assert answer is None


@pytest.mark.parametrize(
    "name",
    [
        "copies",
        "replay_equals_eager",
        "replay_sees_weights_updated_in_place",
        "outputs_are_the_callers_own",
        "a_partial_batch_is_padded",
        "eviction",
        "without_the_tensor_cache",
        "fit_equals_the_cpu",
        "predict_by_replay",
        "checkpoints",
    ],
)
def test_the_emulated_hpu_is_within_rounding_of_the_cpu(name):
    figures, _ = outcome(name)
    differences = {k: v for k, v in figures.items() if k.endswith("largest difference")}
    assert all(value <= 1e-6 for value in differences.values()), differences


def test_generation_is_exact_here():
    figures, _ = outcome("generation")
    assert figures["tokens that agree"] == 1.0
    assert figures["captures"] == 2


def test_questions_have_the_emulators_answers():
    assert run("mark_step_result")[1] == "None"
    numbers = run("int64_and_float64")[1]
    assert numbers["2**40, copied"] == "[1099511627776]"
    assert numbers["dtypes"] == "['torch.int64', 'torch.float64']"
    assert run("item_in_a_capture")[1] == {
        "raises": "nothing",
        "replay": "None",
        "result; 16 is right, 8 is frozen": "[8.0, 8.0, 8.0, 8.0]",
    }
    fallback = run("cpu_op_in_a_capture")[1]["raises"]
    assert "cpu fallback is not supported during hpu graph capturing" in fallback
    refilled = run("refill_under_inference_mode")[1]
    assert refilled["made inside: True, filled inside: True"] == "[1.0, 1.0, 1.0, 1.0]"
    assert "RuntimeError" in refilled["made inside: True, filled inside: False"]
    adamw = run("fused_adamw")[1]
    assert adamw["eps=1e-12, weight_decay=0.1"] < 1e-5 < adamw["eps=1e-06, weight_decay=0.1"] < 1e-2
    assert run("statistics")[1]["memory_stats"]["Limit"] > 0
    assert run("addresses_of_outputs")[1]["asked"] == 3
    assert all(value > 0 for value in run("times")[1].values())


@pytest.mark.parametrize("name", ["capture_in_a_capture", "replay_in_a_capture"])
def test_misuse_raises_here_and_leaves_the_device_usable(name):
    answer = run(name)[1]
    assert answer["raises"] != "nothing"
    assert not capture.is_capturing()
    run("replay_equals_eager")


def test_two_cards_are_skipped_where_there_is_one():
    with pytest.raises(SkippedError, match="it needs 2 cards, and there is 1"):
        run("two_cards")


def test_the_worker_says_what_came_of_each(monkeypatch, capsys):
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    monkeypatch.setattr(basics, "seeds", lambda figures: figures[0])
    worker.main(["copies", "mark_step_result", "seeds", "two_cards"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(worker.MARK)]
    said = [json.loads(line.removeprefix(worker.MARK)) for line in lines]
    names = ["copies", "mark_step_result", "seeds", "two_cards"]
    assert [message["begin"] for message in said[::2]] == names
    ends = [message["end"] for message in said[1::2]]
    assert [end["name"] for end in ends] == names
    assert [end["status"] for end in ends] == ["passed", "answered", "failed", "skipped"]
    assert ends[1]["answer"] == "None"
    assert ends[2]["reason"] == "KeyError: 0"
    assert "Traceback" in ends[2]["traceback"]
    assert ends[3]["reason"] == "it needs 2 cards, and there is 1"
    assert all(end["seconds"] >= 0 for end in ends)


# --- a check can fail -----------------------------------------------------------------------------


def test_a_replay_that_gives_the_first_result_for_ever_is_found(monkeypatch):
    monkeypatch.setattr(capture.loading.module("torch.hpu").HPUGraph, "replay", lambda *_, **__: 0)
    with pytest.raises(AssertionError, match=r"call 1 against eager: differs by .* expected at mo"):
        run("replay_equals_eager")


def test_stale_weights_are_found(monkeypatch):
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    with pytest.raises(AssertionError, match="the replay still computes with the old weights"):
        run("replay_sees_weights_updated_in_place")


def test_results_that_are_overwritten_are_found(monkeypatch):
    from lightning_gaudi.selftest import replays

    graphed = replays.GraphedForward
    monkeypatch.setattr(
        replays, "GraphedForward", lambda *args, **settings: graphed(*args, clone_outputs=False)
    )
    with pytest.raises(AssertionError, match="result 0: differs by"):
        run("outputs_are_the_callers_own")


def test_a_host_read_that_is_not_found_is_found(monkeypatch):
    from lightning_gaudi.selftest import replays

    monkeypatch.setattr(replays, "HostReadError", ZeroDivisionError)
    with pytest.raises(RuntimeError, match="reads"):
        run("a_host_read_is_found")


def test_expect_close_knows_shapes_and_scale():
    figures = {}
    expect_close(figures, "near", torch.tensor([100.0, 1.0]), torch.tensor([101.0, 1.0]), 0.01)
    assert figures == {"near: largest difference": 1.0}
    with pytest.raises(AssertionError, match="far: differs by 1 where the largest value is 2; exp"):
        expect_close(figures, "far", torch.tensor([1.0]), torch.tensor([2.0]), 0.01)
    with pytest.raises(AssertionError, match=r"s: shape \(1,\), expected \(2,\)"):
        expect_close(figures, "s", torch.zeros(1), torch.zeros(2), 0.1)
    with pytest.raises(AssertionError, match="n: differs by nan"):
        expect_close(figures, "n", torch.tensor([float("nan")]), torch.zeros(1), 0.1)


def test_the_catalogue_names_functions_once():
    names = [check.name for check in CATALOGUE]
    assert len(set(names)) == len(names)
    for check in CATALOGUE:
        module = importlib.import_module(f"lightning_gaudi.selftest.{check.module}")
        assert callable(getattr(module, check.name))
    assert sum(check.is_quick for check in CATALOGUE) >= 8
