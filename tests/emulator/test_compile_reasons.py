"""`emulator.record(reasons=True)`: each compilation says what differs, and on which line."""

from __future__ import annotations

import inspect

import habana_frameworks.torch.core as htcore
import pytest
import torch

from lightning_gaudi import emulator
from lightning_gaudi.emulator import accounting
from lightning_gaudi.emulator.compile_reasons import NotedOps
from lightning_gaudi.emulator.source import locate, spell


@pytest.fixture(autouse=True)
def _empty_recipe_cache(monkeypatch):
    htcore.mark_step()
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())


def step(length=6, scale=2.0, power=2, extra=False, read=False, crop=4):
    x = torch.ones(8, length).to("hpu")
    y = x.view(8 * length).view(8, length)  # first
    y = torch.nn.functional.leaky_relu(y, scale)  # scale
    if extra:
        y = y.sigmoid()  # extra
    if read:
        y.sum().item()  # read
    y = y[:, :crop].clamp(-power)  # crop
    y.sum().mul(y)  # last
    htcore.mark_step()


def line_of(text):
    lines, start = inspect.getsourcelines(step)
    (number,) = [i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {text}")]
    return f"{__file__}:{start + number}"


def reasons(events):
    return [event.reason for event in events if event.kind == "compile"]


def reason_for(**changes):
    """The one compilation that a changed step needs."""
    with emulator.record(reasons=True) as events:
        step(**changes)
    (reason,) = reasons(events)
    return reason


def test_the_first_graph_of_its_kind():
    reason = reason_for()
    assert (reason.kind, reason.op, reason.line) == ("first", "view", line_of("first"))
    assert reason.text == "nothing like these 7 ops, from view to mul.Tensor, was compiled before"


def test_a_graph_of_one_op():
    with emulator.record(reasons=True) as events:
        torch.ones(3).to("hpu").sigmoid()
        htcore.mark_step()
    (reason,) = reasons(events)
    assert reason.text == "nothing like sigmoid was compiled before"


def test_a_new_shape_names_what_reads_it_first():
    step()  # before the record: known all the same
    reason = reason_for(length=7)
    assert reason.kind == "shapes"
    assert reason.text == "[8, 7]:float32, before [8, 6]:float32"
    assert (reason.op, reason.line) == ("view", line_of("first"))
    (change,) = reason.shapes
    assert change == emulator.ShapeChange(
        now="[8, 7]:float32", before="[8, 6]:float32", op="view", line=line_of("first")
    )


def test_the_nearest_of_several_shapes_is_the_one_with_the_fewest_changes():
    def add(rows, columns):
        torch.ones(rows, 3).to("hpu") + torch.ones(columns).to("hpu")
        htcore.mark_step()

    add(2, 3)
    add(5, 1)
    with emulator.record(reasons=True) as events:
        add(4, 3)
    (reason,) = reasons(events)
    assert reason.text == "[4, 3]:float32, before [2, 3]:float32"


def test_strides_and_dtypes():
    def double(tensor):
        tensor.to("hpu") * 2
        htcore.mark_step()

    double(torch.ones(3, 3))
    with emulator.record(reasons=True) as events:
        double(torch.ones(3, 3, dtype=torch.int32))
        double(torch.ones(3, 3).t())
    dtype, strides = reasons(events)
    assert dtype.text == "[3, 3]:int32, before [3, 3]:float32"
    assert strides.text == (
        "[3, 3]:float32 with strides [1, 3], before [3, 3]:float32 with strides [3, 1]"
    )


@pytest.mark.parametrize(
    ("changes", "text", "line"),
    [
        ({"crop": 5}, "slice.Tensor: end is 5, before 4", "crop"),
        ({"scale": 0.5}, "leaky_relu: negative_slope is 0.5, before 2.0", "scale"),
        ({"power": 3}, "clamp: min is -3, before -2", "crop"),
    ],
    ids=["size", "float", "whole"],
)
def test_a_changed_constant_names_the_argument(changes, text, line):
    step()
    reason = reason_for(**changes)
    assert (reason.kind, reason.text, reason.line) == ("constant", text, line_of(line))


def test_a_constant_by_keyword():
    def total(dtype):
        torch.ones(3).to("hpu").sum(dtype=dtype)
        htcore.mark_step()

    total(torch.float32)
    with emulator.record(reasons=True) as events:
        total(torch.float64)
    (reason,) = reasons(events)
    assert reason.text == "sum: dtype is float64, before float32"


def test_a_shape_and_a_setting_at_once_name_both():
    step()
    reason = reason_for(length=7, scale=0.5)
    assert reason.kind == "shapes"
    assert reason.text == (
        "[8, 7]:float32, before [8, 6]:float32; besides, leaky_relu: negative_slope is 0.5, before "
        f"2.0 ({line_of('scale').rpartition('/')[2]})"
    )


def test_another_op_in_the_middle():
    step()
    reason = reason_for(extra=True)
    assert (reason.kind, reason.op, reason.line) == ("ops", "sigmoid", line_of("extra"))
    assert reason.text == "op 4 of 8 is sigmoid, where the nearest known graph has slice.Tensor"


def test_a_graph_that_ends_early_names_what_ended_it():
    x = torch.ones(4).to("hpu")
    y = x.sin().cos().tan()
    htcore.mark_step()
    with emulator.record(reasons=True) as events:
        x.sin().cos().tolist()
    (reason,) = reasons(events)
    assert reason.kind == "ops"
    assert reason.text == "ended by d2h after 2 ops, where the nearest known graph goes on with tan"
    assert y.shape == (4,)


def test_a_graph_that_shares_little_with_any_is_a_first():
    torch.ones(4).to("hpu").sin().cos().tan().exp().abs()
    htcore.mark_step()
    with emulator.record(reasons=True) as events:
        torch.ones(4).to("hpu").sin().log().neg()
        htcore.mark_step()
    (reason,) = reasons(events)
    assert reason.kind == "first"
    assert reason.text == "nothing like these 3 ops, from sin to neg, was compiled before"


def test_tensors_from_elsewhere():
    def two_steps(early):
        x = torch.ones(3).to("hpu")
        y = torch.ones(3).to("hpu")
        (x * 2) * (y if early else x)
        htcore.mark_step()

    two_steps(True)
    with emulator.record(reasons=True) as events:
        two_steps(False)
    (reason,) = reasons(events)
    assert reason.kind == "ops"
    assert reason.text.startswith("mul.Tensor takes a tensor from elsewhere")


def test_only_a_record_that_asks_gets_reasons_and_only_then_are_lines_noted():
    with emulator.record() as events:
        step()
    assert reasons(events) == [None]
    assert type(accounting.pending.ops) is list
    with emulator.record(reasons=True):
        assert type(accounting.pending.ops) is NotedOps
        with emulator.record(reasons=True):
            pass
        assert type(accounting.pending.ops) is NotedOps
    assert type(accounting.pending.ops) is list


def test_a_record_may_begin_in_the_middle_of_a_graph():
    def tail(x):
        return x.cos()  # tail

    x = torch.ones(5).to("hpu").sin()
    with emulator.record(reasons=True) as events:
        tail(x)
        htcore.mark_step()
    (reason,) = reasons(events)
    assert (reason.op, reason.line) == ("sin", "<unknown>")
    x = torch.ones(6).to("hpu").sin()
    with emulator.record(reasons=True) as events:
        tail(x).cos()
        htcore.mark_step()
    assert "op 3 of 3 is cos" in reasons(events)[0].text


def test_an_emptied_cache_compiles_again_and_is_put_back():
    def other():
        torch.ones(3).to("hpu").sin()
        htcore.mark_step()

    step()
    other()
    before = accounting.cache.num_compilations, accounting.cache.num_hits
    with emulator.record(reasons=True, empty_cache=True) as events:
        step()
        step()
        step(length=9)
    assert [reason.kind for reason in reasons(events)] == ["first", "shapes"]
    assert (accounting.cache.num_compilations, accounting.cache.num_hits) == (
        before[0] + 2,
        before[1] + 1,
    )
    assert sum(accounting.cache.misses_by_recipe().values()) == accounting.cache.num_compilations
    with emulator.record() as events:
        step()
        step(length=9)  # compiled in the block, known after it
        other()  # and this before it
    assert reasons(events) == []


def test_inputs_refilled_in_one_op_are_named_too():
    targets = [torch.zeros(2).to("hpu"), torch.zeros(3).to("hpu")]

    def refill(sources):
        torch._foreach_copy_(targets, sources)
        targets[1] * targets[1]
        htcore.mark_step()

    refill([torch.ones(2).to("hpu"), torch.ones(3).to("hpu")])
    targets = [torch.zeros(2).to("hpu"), torch.zeros(4).to("hpu")]
    with emulator.record(reasons=True) as events:
        refill([torch.ones(2).to("hpu"), torch.ones(4).to("hpu")])
    (reason,) = reasons(events)
    assert reason.text == "[4]:float32, before [3]:float32"
    assert {change.op for change in reason.shapes} == {"_foreach_copy_"}


def test_a_kept_tensor_does_not_keep_the_lines_of_its_graph():
    kept = []
    with emulator.record(reasons=True):
        for _ in range(3):
            tensor = torch.ones(2, device="hpu")
            for _ in range(10):
                tensor = tensor * 2
            kept.append(tensor.sum())
            htcore.mark_step()
    for tensor in kept:
        graph = tensor._node[0]
        assert not graph.ops
        assert not graph.inputs
        assert not graph.ops.places
        assert not graph.ops.num_inputs


def test_nan_is_a_constant_like_any_other():
    """It differs from itself, but the card compiles by its bits."""
    x = torch.ones(3, device="hpu")
    htcore.mark_step()
    with emulator.record() as recorded:
        for _ in range(3):
            x.nan_to_num(nan=float("nan"))
            htcore.mark_step()
            torch._foreach_mul([x], [float("nan")])
            htcore.mark_step()
    assert len([event for event in recorded if event.kind == "compile"]) == 2


def test_lines_of_a_users_own_code_and_of_none():
    assert spell(locate()).line == f"{__file__}:{inspect.currentframe().f_lineno}"
    assert spell(("", 0, "lib.py", 3, False)) == ("lib.py:3", "lib.py:3", "")
    assert spell(("me.py", 1, "lib.py", 3, False)) == ("me.py:1", "", "lib.py:3")
    assert spell(("me.py", 1, "lib.py", 3, True)) == ("me.py:1", "lib.py:3", "")


@pytest.mark.slow
def test_eager_and_compile_mode(run_python):
    """An op is a graph in eager mode; a graph of torch.compile names its changes as well."""
    result = run_python(
        """
        import torch
        from lightning_gaudi import emulator
        from lightning_gaudi.runtime import loading

        loading.load("eager")
        def step(x, slope=0.5):
            return torch.nn.functional.leaky_relu(x, slope) * 2

        def reasons(events):
            for event in events:
                if event.kind == "compile":
                    line = event.reason.line.rpartition(":")[2]
                    print(event.reason.kind, event.reason.text, "line", line, sep=" | ")

        with emulator.record(reasons=True) as events:
            step(torch.ones(3).to("hpu"))
            step(torch.ones(4).to("hpu"))
        reasons(events)
        loading.module("torch.dynamo.compile_backend")
        compiled = torch.compile(step, backend="hpu_backend", dynamic=False)
        with emulator.record(reasons=True) as events:
            compiled(torch.ones(3).to("hpu"))
            compiled(torch.ones(4).to("hpu"))
            compiled(torch.ones(4).to("hpu"), 0.25)
        reasons(events)
        """,
        PT_HPU_LAZY_MODE="0",
    )
    assert result.stdout.splitlines() == [
        "first | nothing like leaky_relu was compiled before | line | 8",
        "first | nothing like mul.Tensor was compiled before | line | 8",
        "shapes | [4]:float32, before [3]:float32 | line | 8",
        "shapes | [4]:float32, before [3]:float32 | line | 8",
        "first | nothing like these 2 ops, from leaky_relu to mul.Tensor, was compiled before"
        " | line | 8",
        "shapes | [4]:float32, before [3]:float32 | line | 8",
        "constant | leaky_relu: negative_slope is 0.25, before 0.5 | line | 8",
    ]
