"""Keeps a scheduler's numbers on the host while its step runs on the device.

A stock scheduler computes a few coefficients from the timestep (0-dim tensors) and combines images
with them. Where the timesteps or tables lie on the device, looking one up is a host read, and
slicing one is a graph of its own for each step. On the host both are free: an operand of no
dimension goes to the device by itself, and its value is no part of the compiled graph. So, for the
duration of one call of the pipeline and on the scheduler's instance only,

- ``set_timesteps`` makes its tables on the host, whatever device the pipeline asks for;
- ``add_noise`` and its kin leave those tables there (stock ones move some to the device);
- within ``step`` a 0-dim tensor that is asked to move to the device stays (UniPC's coefficients,
  which it solves a small linear system for).

The values are those that the stock pipeline computes on the CPU. Nothing is indexed by a count of
our own, so starting in the middle of the schedule and stopping early are the scheduler's business.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_gaudi.modules.diffusion.host_reads import HostReadCounter
from lightning_gaudi.runtime.step import mark_step

_STEPS = ("step", "scale_model_input")
_NOISE = ("add_noise", "scale_noise", "get_velocity")
# By name: others may have wrapped PyTorch's functions by now.
_FACTORIES = frozenset({"ones", "zeros", "full", "tensor", "as_tensor"})


class HostNumbers(TorchFunctionMode):
    """While it is active, tensors of no dimension stay on the host and are made there.

    It costs a few microseconds for each function of PyTorch.

    Attributes:
        num_kept: How many tensors would have gone to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_kept = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "to" and args and _is_host_number(args[0]):
            self.num_kept += 1
            return _without_device(args[0], args[1:], kwargs)
        if name in _FACTORIES and kwargs.get("device") is not None:
            self.num_kept += 1
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made if made.dim() == 0 else made.to(kwargs["device"])
        return func(*args, **kwargs)


def _is_host_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu"


def _without_device(number: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``number.to(...)`` but for the device."""
    for value in (*args, kwargs.get("other"), kwargs.get("dtype")):
        dtype = value.dtype if isinstance(value, Tensor) else value
        if isinstance(dtype, torch.dtype):
            return number.to(dtype)
    return number


@dataclass
class StepCount:
    """Counts the steps of a scheduler.

    Attributes:
        numbers: What they run under.
        num_steps: How many there were.
    """

    numbers: HostNumbers | None
    num_steps: int = 0


@contextmanager
def on_host(
    scheduler: Any, counter: HostReadCounter | None = None, *, keeps_numbers: bool = True
) -> Iterator[StepCount]:
    """Keep a scheduler's numbers on the host, and break the lazy graph after each of its steps.

    Args:
        scheduler: A scheduler of Diffusers. Instance attributes shadow its methods and are removed
            at the end.
        counter: Counts the host reads of its methods where one is given.
        keeps_numbers: Whether its steps run under `HostNumbers`; most schedulers' need not.

    Yields:
        A count of its steps.
    """
    steps = StepCount(numbers=HostNumbers() if keeps_numbers else None)
    with ExitStack() as stack:
        stack.enter_context(_shadowed(scheduler, "set_timesteps", _with_host_tables))
        for name in _NOISE:
            stack.enter_context(
                _shadowed(scheduler, name, functools.partial(_keeping_tables, scheduler, counter))
            )
        for name in _STEPS:
            stack.enter_context(
                _shadowed(
                    scheduler, name, functools.partial(_with_host_numbers, name, counter, steps)
                )
            )
        yield steps


@contextmanager
def _shadowed(
    scheduler: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Shadow a method with an instance attribute of the same signature."""
    method = getattr(scheduler, name, None)
    if method is None:
        yield
        return
    before = vars(scheduler).get(name)
    setattr(scheduler, name, functools.wraps(method)(wrap(method)))
    try:
        yield
    finally:
        if before is None:
            delattr(scheduler, name)
        else:
            setattr(scheduler, name, before)


def _with_host_tables(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        if "device" in signature.parameters:
            call.arguments["device"] = "cpu"
        return method(*call.args, **call.kwargs)

    return set_timesteps


def _keeping_tables(
    scheduler: Any, counter: HostReadCounter | None, method: Callable[..., Any]
) -> Callable[..., Any]:
    def add_noise(*args: Any, **kwargs: Any) -> Any:
        tables = {n: v for n, v in vars(scheduler).items() if isinstance(v, Tensor)}
        with ExitStack() as stack:
            if counter is not None:
                stack.enter_context(counter)
            noisy = method(*args, **kwargs)
        for name, table in tables.items():
            if getattr(scheduler, name).device != table.device:
                setattr(scheduler, name, table)
        return noisy

    return add_noise


def _with_host_numbers(
    name: str, counter: HostReadCounter | None, steps: StepCount, method: Callable[..., Any]
) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if steps.numbers is not None:
                stack.enter_context(steps.numbers)
            if counter is not None:
                stack.enter_context(counter)
            result = method(*args, **kwargs)
        if name == "step":
            steps.num_steps += 1
            # The next iteration begins with the pipeline's own ops: one graph an iteration.
            mark_step()
        return result

    return step
