"""A few dozen ops that between them reach every way that `dispatch` handles one, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emulator.opinfo import harness
from emulator.opinfo.comparison import Mismatch, compare
from emulator.opinfo.differences import DIFFERENT, OTHER_ROUNDING, UNINITIALIZED
from emulator.opinfo.harness import Pair, check_pair, pairs

import lightning_gaudi.emulator

SMOKE = frozenset(
    [
        "add",
        "addcmul",
        "cat",
        "split",
        "unbind",
        "reshape",
        "contiguous",
        "to",
        "clone",
        "view_as_real",
        "conj_physical",
        "resolve_conj",
        "real",
        "__getitem__",
        "index_put",
        "masked_select",
        "nonzero",
        "unique",
        "repeat_interleave",
        "resize_",
        "new_zeros",
        "zeros_like",
        "arange",
        "eye",
        "triu_indices",
        "empty_like",
        "normal",
        "nn.functional.dropout",
        "nn.functional.rrelu",
        "copysign",
        "cumprod",
        "linalg.det",
        "linalg.matrix_rank",
        "linalg.svdvals",
        "msort",
        "istft",
        "quantile",
        "softmax.with_dtype",
        "nn.functional.one_hot",
        "nn.functional.scaled_dot_product_attention",
        "nn.functional.layer_norm",
        "nn.functional.conv2d",
        "nn.functional.pad.circular",
        "combinations",
        "to_sparse",
        "prod",
        "histc",
        "item",
        "allclose",
    ]
)
SMOKE_PAIRS = [
    pair
    for pair in pairs()
    if pair.name in SMOKE and (pair.dtype is not torch.bfloat16 or pair.name in ("add", "to"))
]


def test_the_names_are_in_the_table():
    assert {pair.name for pair in SMOKE_PAIRS} == SMOKE


@pytest.mark.parametrize("pair", SMOKE_PAIRS, ids=lambda pair: pair.id)
def test_an_op_equals_the_cpus(pair: Pair):
    if pair.id in DIFFERENT:
        with pytest.raises(Mismatch):
            check_pair(pair, max_samples=40)
        return
    counts = check_pair(pair, max_samples=40)
    assert counts.num_calls > counts.num_refused


def test_at_most_one_pair_in_a_hundred_differs():
    ids = [pair.id for pair in pairs()]
    names = {pair.name for pair in pairs()}
    assert len(set(ids)) == len(ids)
    assert DIFFERENT.keys() <= set(ids)
    assert len(DIFFERENT) <= len(ids) / 100
    assert OTHER_ROUNDING.keys() | UNINITIALIZED <= names


def test_the_readme_lists_what_differs():
    readme = Path(lightning_gaudi.emulator.__file__).with_name("README.md").read_text("utf-8")
    section = readme.split("\n## Ops that differ\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:4] for line in section.splitlines() if line.startswith("| `")]
    listed = {}
    for name, dtypes, reason in rows:
        for dtype in dtypes.split(","):
            listed[f"{name.strip().strip('`')}-{dtype.strip()}"] = reason.strip()
    assert listed == DIFFERENT
    without_cpu = {f"`{name}`" for name in harness.entries_without_cpu()}
    assert all(name in section for name in without_cpu)
    assert all(f"`{name}`" in section for name in OTHER_ROUNDING)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (lambda: torch.tensor([1.0, 3.0], device="hpu"), "Tensor-likes are not equal"),
        (lambda: torch.tensor([1.0, 2.0]), "a plain tensor on the host"),
        (lambda: torch.tensor([1.0, 2.0], device="hpu").double(), "dtype torch.float64"),
        (lambda: torch.tensor([[1.0, 2.0]], device="hpu"), r"shape torch.Size\(\[1, 2\]\)"),
        (lambda: torch.tensor([1.0, 0, 2.0], device="hpu")[::2], r"strides \(2,\)"),
        (lambda: torch.tensor([1.0, 2.0], device="hpu").requires_grad_(), "requires_grad True"),
        (lambda: [torch.tensor([1.0, 2.0], device="hpu")], "<class 'list'> where the CPU gives"),
    ],
)
def test_the_comparison_can_fail(found, text):
    expected = torch.tensor([1.0, 2.0])
    compare(expected, expected.to("hpu"), "result")
    with pytest.raises(Mismatch, match=text):
        compare(expected, found(), "result")


def test_the_comparison_sees_what_is_the_same_only_on_the_surface():
    with pytest.raises(Mismatch, match="True where the CPU gives False"):
        compare(False, True, "result")
    with pytest.raises(Mismatch, match="<class 'int'> where the CPU gives <class 'bool'>"):
        compare(True, 1, "result")
    nan = torch.tensor([float("nan")])
    compare(nan, nan.to("hpu"), "result")
    conjugate = torch.tensor([1j]).conj()
    with pytest.raises(Mismatch, match=r"is_conj\(\) False where the CPU has True"):
        compare(conjugate, conjugate.resolve_conj().to("hpu"), "result")
