"""Sequences of calls and of changes in between, run on a graphed forward and op by op.

`Sequence` says what to run; `run` runs it on a module behind `GraphedForward` and on its twin, and
asserts after each step that results, arguments, buffers, gradients and random states are the same,
bit for bit. Only a padded result may differ by `padding.TOLERANCES`.
"""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from graphs.sequence_modules import MODULES, WIDTH, Answer, Base
from torch import Tensor, nn

from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs.padding import differs

STRUCTURES = ("x", "keyword", "pair", "same twice", "shared", "options", "cache", "strided")
FACTORS = (None, 1, True, 1.0, -1, -2, 0.0, -0.0, "text")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
ROWS = (1, 2, 3, 5, 8)
MODES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("hpu", dtype=torch.bfloat16),
}
CHANGES = (
    "train",
    "eval",
    "freeze",
    "update",
    "replace data",
    "replace parameter",
    "assign",
    "move",
    "hook",
    "no hook",
    "clear",
)


@dataclass(frozen=True)
class Call:
    rows: int = 2
    structure: str = "x"
    factor: object = None
    dtype: torch.dtype = torch.float32
    mode: str = "no_grad"
    fail: bool = False


@dataclass(frozen=True)
class Sequence:
    module: str
    steps: tuple[Call | str, ...]
    pad_batch: bool = False
    disable_tensor_cache: bool = False
    clone_outputs: bool = True
    max_graphs: int = 3


@dataclass
class Pair:
    """The module behind graphs and its twin, with what has been done to them."""

    sequence: Sequence
    module: Base = field(init=False)
    twin: Base = field(init=False)
    graphed: GraphedForward = field(init=False)
    hooks: list[object] = field(default_factory=list)

    def __post_init__(self):
        torch.manual_seed(7)
        self.module = MODULES[self.sequence.module]().to("hpu").eval()
        self.twin = copy.deepcopy(self.module)
        self.graphed = GraphedForward(
            self.module,
            max_graphs=self.sequence.max_graphs,
            pad_batch=self.sequence.pad_batch,
            disable_tensor_cache=self.sequence.disable_tensor_cache,
            clone_outputs=self.sequence.clone_outputs,
            on_failure="eager",
        )


def run(sequence: Sequence) -> GraphedForward:
    """Run a sequence on both; returns the graphed one.

    Raises:
        AssertionError: They differ.
    """
    pair = Pair(sequence)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for number, step in enumerate(sequence.steps):
            if isinstance(step, Call):
                _call_both(pair, step, number)
            else:
                _change_both(pair, step)
    for handle in pair.hooks:
        handle.remove()
    return pair.graphed


def num_calls(sequence: Sequence) -> int:
    return sum(isinstance(step, Call) for step in sequence.steps)


def _call_both(pair: Pair, call: Call, number: int) -> None:
    state = torch.hpu.get_rng_state()
    padded_before = pair.graphed.stats.padded_calls
    eager_before = pair.graphed.stats.eager_calls
    ours, our_arguments = _attempt(pair.graphed, call, number)
    our_state = torch.hpu.get_rng_state()
    torch.hpu.set_rng_state(state)
    weights = {name: value.clone() for name, value in pair.twin.state_dict().items()}
    theirs, their_arguments = _attempt(pair.twin, call, number)
    was_eager = pair.graphed.stats.eager_calls > eager_before
    if call.fail and pair.sequence.disable_tensor_cache and not was_eager:
        # A dry run computes nothing: an error half-way is as if the call had not been made.
        pair.twin.load_state_dict(weights)
        their_arguments = _arguments(call, number)[2]
        torch.hpu.set_rng_state(state)
    assert torch.equal(our_state, torch.hpu.get_rng_state()), "random state"
    was_padded = pair.graphed.stats.padded_calls > padded_before
    _assert_same(ours, theirs, "result", was_padded, call)
    _assert_same(our_arguments, their_arguments, "arguments", False, call)
    for name, value in pair.twin.state_dict().items():
        assert torch.equal(pair.module.state_dict()[name].cpu(), value.cpu()), name
    parameters = zip(pair.module.parameters(), pair.twin.parameters(), strict=True)
    for one, other in parameters:
        assert (one.grad is None) == (other.grad is None), "gradients"
        if one.grad is not None:
            assert torch.equal(one.grad.cpu(), other.grad.cpu()), "gradients"
            one.grad = other.grad = None


def _attempt(fn: Callable[..., object], call: Call, number: int) -> tuple[object, list[Tensor]]:
    with MODES[call.mode]():
        args, kwargs, tensors = _arguments(call, number)
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            return (type(error), str(error)), tensors
        found = list(_tensors(result))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in found):
            sum(t.float().sum() for t in found if t.requires_grad).backward()
        return result, tensors


def _arguments(
    call: Call, number: int
) -> tuple[tuple[object, ...], dict[str, object], list[Tensor]]:
    generator = torch.Generator().manual_seed(number)
    values = torch.randn(call.rows, WIDTH, generator=generator).to(call.dtype)
    x = values.to("hpu")
    kwargs: dict[str, object] = {} if call.factor is None else {"factor": call.factor}
    if call.fail:
        kwargs["fail"] = True
    if call.structure == "keyword":
        return (), {**kwargs, "x": x}, [x]
    if call.structure == "pair":
        y = (values + 1).to("hpu")
        return (), {**kwargs, "pair": (x, y)}, [x, y]
    if call.structure == "same twice":
        return (), {**kwargs, "pair": (x, x)}, [x]
    if call.structure == "shared":
        return (), {**kwargs, "pair": [x, x[:1]]}, [x]
    if call.structure == "options":
        return (), {**kwargs, "options": {"x": x, "name": "options"}}, [x]
    if call.structure == "cache":
        cache = torch.zeros(call.rows, WIDTH).to("hpu")
        return (x,), {**kwargs, "cache": cache}, [x, cache]
    if call.structure == "strided":
        x = torch.cat([values, values], 1).to("hpu")[:, ::2]
    return (x,), kwargs, [x]


def _change_both(pair: Pair, change: str) -> None:
    if change == "clear":
        pair.graphed.clear()
    elif change == "no hook":
        while pair.hooks:
            pair.hooks.pop().remove()
    else:
        for module in (pair.module, pair.twin):
            _change(pair, module, change)


def _change(pair: Pair, module: Base, change: str) -> None:
    name, parameter = next(module.named_parameters())
    owner = module.get_submodule(name.rpartition(".")[0])
    attribute = name.rpartition(".")[2]
    if change in ("train", "eval"):
        module.train(change == "train")
    elif change == "freeze":
        module.requires_grad_(not parameter.requires_grad)
    elif change == "update":
        for weight in module.parameters():
            weight.mul_(0.75)
    elif change == "replace data":
        parameter.data = parameter.data * 1.25
    elif change == "replace parameter":
        setattr(owner, attribute, nn.Parameter(parameter.detach() + 0.5, parameter.requires_grad))
    elif change == "assign":
        state = {k: v.clone() * 0.5 for k, v in module.state_dict().items()}
        module.load_state_dict(state, assign=True)
    elif change == "move":
        module.to("cpu")
        parameter.data.mul_(2)
        module.to("hpu")
    elif change == "hook":
        for child in list(module.children())[:1]:
            pair.hooks.append(child.register_forward_hook(lambda *call: call[2] * 2))
    else:
        raise ValueError(change)


def _assert_same(ours: object, theirs: object, what: str, was_padded: bool, call: Call) -> None:
    one, other = list(_tensors(ours)), list(_tensors(theirs))
    assert len(one) == len(other), what
    for a, b in zip(one, other, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device), what
        assert a.requires_grad == b.requires_grad, what
        if was_padded:
            low = torch.bfloat16 if call.mode == "autocast" else None
            difference = differs(a.detach(), b.detach(), low)
            assert difference is None, f"{what}: {difference}"
        else:
            assert torch.equal(a.isnan().cpu(), b.isnan().cpu()), what
            assert torch.equal(a.cpu().nan_to_num(), b.cpu().nan_to_num()), what
    assert _shape_of(ours) == _shape_of(theirs), what


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Answer):
        yield value.scores


def _shape_of(value: object) -> object:
    """Everything but the tensors, with types."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, dict):
        return {key: _shape_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [_shape_of(item) for item in value]
    if isinstance(value, Answer):
        return Answer, value.rows, value.nothing
    return type(value), value


def random_sequence(source: random.Random, num_steps: int = 24) -> Sequence:
    """A sequence drawn from a seeded source: a few kinds of calls, over and over, and changes."""
    kinds = [random_call(source) for _ in range(source.randint(1, 4))]
    steps: list[Call | str] = []
    for _ in range(num_steps):
        chance = source.random()
        if chance < 0.15:
            steps.append(source.choice(CHANGES))
        elif chance < 0.2:
            steps.append(random_call(source))
        elif chance < 0.3:
            steps.append(replace(source.choice(kinds), rows=source.choice(ROWS)))
        else:
            steps.append(source.choice(kinds))
    return Sequence(
        module=source.choice([*MODULES, *list(MODULES)[:-1]]),
        steps=tuple(steps),
        pad_batch=source.random() < 0.4,
        disable_tensor_cache=source.random() < 0.4,
        clone_outputs=source.random() < 0.8,
        max_graphs=source.choice([1, 2, 3, 8]),
    )


def random_call(source: random.Random) -> Call:
    return Call(
        rows=source.choice(ROWS),
        structure=source.choice(STRUCTURES),
        factor=source.choice(FACTORS),
        dtype=source.choice([torch.float32, *DTYPES]),
        mode=source.choice(["no_grad", "no_grad", "inference", *MODES]),
        fail=source.random() < 0.08,
    )
