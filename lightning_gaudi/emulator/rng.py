"""Random numbers: the device's own default generator.

It is a CPU generator, as the Gaudi software's is (bridge 1.19.0, ``hpu/random.py``): after the same
seed its state equals the CPU's. Kernels here are the CPU's, and draw from the CPU's default
generator unless they are given one; so an op that names none is given ours. One that cannot be
given any (``rand_like``, dropout inside attention) runs while the two have changed states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_host = torch.default_generator


class HPUGenerator(torch.Generator):
    """A generator that says it is on the HPU; its numbers are the CPU's for the same seed."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Always ``hpu:0``."""
        return torch.device("hpu", 0)


default_generator: torch.Generator = HPUGenerator()
"""What ops on the device draw from. ``torch.manual_seed`` seeds it along with the CPU's."""


@contextmanager
def drawing() -> Iterator[None]:
    """Within the block, kernels that draw from the CPU's default generator draw from ours."""
    host_state = _host.get_state()
    _host.set_state(default_generator.get_state())
    try:
        yield
    finally:
        default_generator.set_state(_host.get_state())
        _host.set_state(host_state)


def draws_from_device(call: Callable[..., Any], schema: Any) -> Callable[..., Any]:
    """Make a random op draw from the device's generator where its caller names none.

    Args:
        call: The op.
        schema: Its schema.
    """
    names = [argument.name for argument in schema.arguments]
    place = names.index("generator") if "generator" in names else -1
    # Attention draws only with dropout, and changing states would cost it 10 us in every layer.
    chance = names.index("dropout_p") if "dropout_p" in names else -1

    def call_with_ours(*args: Any, **kwargs: Any) -> Any:
        # Cheaper than changing states, and no other thread ever sees the CPU's generator changed.
        if place >= len(args):
            if kwargs.get("generator") is None:
                kwargs["generator"] = default_generator
        elif args[place] is None:
            args = (*args[:place], default_generator, *args[place + 1 :])
        return call(*args, **kwargs)

    def drawing_call(*args: Any, **kwargs: Any) -> Any:
        if chance >= 0 and not (args[chance] if chance < len(args) else kwargs.get("dropout_p")):
            return call(*args, **kwargs)
        with drawing():
            return call(*args, **kwargs)

    return call_with_ours if "generator" in names else drawing_call


def manual_seed(seed: int) -> torch.Generator:
    """Seed the device's default generator; returns it."""
    return default_generator.manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seed every device: one, as a process has one."""
    manual_seed(seed)


def get_rng_state(device: Any = "hpu") -> Tensor:
    """The generator's state: a CPU tensor of bytes.

    Raises:
        RuntimeError: Another device than the first.
    """
    _check(device, "get_rng_state")
    return default_generator.get_state()


def set_rng_state(new_state: Tensor, device: Any = "hpu") -> None:
    """Put a state back that `get_rng_state` gave.

    Raises:
        RuntimeError: Another device than the first.
    """
    _check(device, "set_rng_state")
    default_generator.set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """The state of every device's generator: one, as a process has one device."""
    return [get_rng_state()]


def set_rng_state_all(new_states: Sequence[Tensor]) -> None:
    """Put states back that `get_rng_state_all` gave.

    Raises:
        RuntimeError: Not exactly one state.
    """
    if len(new_states) != 1:
        raise RuntimeError(
            f"set_rng_state_all takes one state, for a process has one HPU, but got "
            f"{len(new_states)}."
        )
    set_rng_state(new_states[0])


def seed() -> int:
    """Seed the generator from the system's entropy; returns the seed."""
    return default_generator.seed()


def seed_all() -> None:
    """Seed every device's generator from the system's entropy."""
    seed()


def initial_seed() -> int:
    """The seed that the generator was last given."""
    return default_generator.initial_seed()


def _check(device: Any, name: str) -> None:
    index = device if isinstance(device, int) else torch.device(device).index
    if index not in (None, 0):
        raise RuntimeError(f"hpu {name}: a process has one device, index 0, but got {device!r}.")
