"""Flattening arguments and results, and putting other tensors in."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import pytest
import torch

from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten, rebuild

Pair = namedtuple("Pair", ["first", "second"])


class Colour(Enum):
    RED = 1


@dataclass(frozen=True)
class Frozen:
    tensor: torch.Tensor
    scale: float
    missing: None = None


def describe(value):
    return flatten(value, [])


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2),
        [torch.ones(2), 3, None],
        (torch.ones(2), [torch.zeros(1), {"a": torch.ones(3)}]),
        {"x": torch.ones(2), "n": 1},
        OrderedDict(b=torch.ones(1), a=torch.zeros(1)),
        UserDict({"x": torch.ones(2)}),
        Pair(torch.ones(1), 2),
        Frozen(torch.ones(2), 0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rebuild_keeps_everything_but_the_tensors(value):
    tensors: list[torch.Tensor] = []
    description = flatten(value, tensors)
    others = [tensor + 10 for tensor in tensors]
    result = rebuild(value, iter(others))

    found: list[torch.Tensor] = []
    assert type(result) is type(value)
    assert flatten(result, found) == description
    assert len(found) == len(others) >= 1
    assert all(a is b for a, b in zip(found, others, strict=True))


def test_rebuild_leaves_the_original_alone():
    tensor = torch.ones(2)
    value = {"x": [tensor], "user": UserDict(y=tensor), "frozen": Frozen(tensor, 1.0)}
    rebuild(value, iter([torch.zeros(2)] * 3))
    assert value["x"][0] is tensor
    assert value["user"]["y"] is tensor
    assert value["frozen"].tensor is tensor


def test_model_output_of_transformers_keeps_fields_and_items():
    from transformers.modeling_outputs import BaseModelOutput

    value = BaseModelOutput(last_hidden_state=torch.ones(2), hidden_states=(torch.zeros(1),))
    result = rebuild(value, iter([torch.full((2,), 5.0), torch.full((1,), 6.0)]))
    assert type(result) is BaseModelOutput
    assert result.last_hidden_state.tolist() == [5.0, 5.0]
    assert result["last_hidden_state"] is result.last_hidden_state
    assert result.hidden_states[0].item() == 6.0
    assert result.attentions is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (True, 1.0),
        (-1, -2),
        (0, None),
        (0.0, -0.0),
        ("1", 1),
        ((1,), [1]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({1: 0}, {True: 0}),
        ({(1,): 0}, {(True,): 0}),
        (complex(0.0, 0), complex(-0.0, 0)),
        ({1, 2}, {1, 3}),
        (slice(1), slice(2)),
        (torch.float32, torch.float64),
        (None, torch.ones(1)),
        (Colour.RED, 1),
        (Frozen(torch.ones(1), 1.0), Frozen(torch.ones(1), 2.0)),
    ],
)
def test_different_values_have_different_descriptions(one, other):
    assert describe(one) != describe(other)
    assert describe(one) == describe(one)


def test_nan_equals_itself():
    assert describe(float("nan")) == describe(float("nan"))


def test_descriptions_are_hashable():
    value = ({"a": [1, (2.0, None)]}, slice(None, 3), {3, 4}, torch.Size([1]), Colour.RED)
    assert isinstance(hash(describe(value)), int)


class Holder:
    def __init__(self):
        self.tensor = torch.ones(1)


@dataclass
class Hides:
    shown: torch.Tensor

    def __post_init__(self):
        self.hidden = self.shown * 2


@pytest.mark.parametrize(
    "value",
    [
        Holder(),
        lambda: 1,
        {torch.ones(1)},
        iter([1]),
        MappingProxyType({"x": torch.ones(1)}),
        Hides(torch.ones(1)),
        {torch.ones(1): 1},
    ],
)
def test_what_may_hold_tensors_or_change_is_refused(value):
    with pytest.raises(UnsupportedValueError):
        describe([value])
