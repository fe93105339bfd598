"""The options of `HPUGraphCallback`, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.graphs.replay import OnFailure, check_options

Stage = Literal["fit", "validate", "test", "predict"]
STAGES: tuple[str, ...] = get_args(Stage)

Warmup: TypeAlias = "str | dict[str, Any] | list[Any] | None"


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What the callback passes on to each target. See `HPUGraphCallback`."""

    max_graphs: int = 16
    pad_batch: bool = True
    clone_outputs: bool = True
    asynchronous: bool = False
    disable_tensor_cache: bool = False
    on_failure: OnFailure = "raise"

    def __post_init__(self) -> None:
        check_options(self.max_graphs, self.on_failure)
        for name in ("pad_batch", "clone_outputs", "asynchronous", "disable_tensor_cache"):
            check_switch(name, getattr(self, name))

    def as_dict(self) -> dict[str, Any]:
        """Names and values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def without_meaning_when_compiled(self) -> list[str]:
        """Options that were set, and that only HPU graphs have."""
        default = GraphOptions()
        only_graphs = ("pad_batch", "clone_outputs", "asynchronous", "disable_tensor_cache")
        return [name for name in only_graphs if getattr(self, name) != getattr(default, name)]


def check_switch(name: str, value: Any) -> None:
    """Check an option that is on or off.

    Raises:
        ConfigurationError: It is neither.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, but it is {value!r}.")


def check_stages(stages: Iterable[str] | str) -> tuple[str, ...]:
    """The stages as a tuple.

    Raises:
        ConfigurationError: One is no stage, or there are none.
    """
    chosen = (stages,) if isinstance(stages, str) else tuple(stages)
    known = ", ".join(map(repr, STAGES))
    unknown = [stage for stage in chosen if stage not in STAGES]
    if unknown:
        raise ConfigurationError(f"stages must be of {known}, but {unknown[0]!r} is among them.")
    if not chosen:
        raise ConfigurationError(f"stages is empty: name one or more of {known}.")
    return chosen


def check_targets(targets: Iterable[str] | str | None) -> tuple[str, ...] | None:
    """The targets as a tuple; None to choose.

    Raises:
        ConfigurationError: One is no name, or there are none.
    """
    if targets is None:
        return None
    chosen = (targets,) if isinstance(targets, str) else tuple(targets)
    for name in chosen:
        if not isinstance(name, str):
            raise ConfigurationError(
                f"targets must be names of submodules, but {name!r} is among them. The module's "
                "own forward is 'forward'."
            )
    if not chosen:
        raise ConfigurationError(
            "targets is empty: name one or more submodules, or leave it out to have them chosen."
        )
    return chosen


def check_warmup(warmup: Any) -> None:
    """Check what can be checked of `warmup` before there is a module.

    Raises:
        ConfigurationError: It is neither None, "buckets", a mapping nor a list.
    """
    if warmup is None or warmup == "buckets":
        return
    if isinstance(warmup, (Mapping, list, tuple)) and warmup:
        return
    raise ConfigurationError(
        "warmup must be None, 'buckets', the shapes of one call by argument name "
        "({'input_ids': [8, 128, 'int64']}), or a list of such calls, but it is "
        f"{warmup!r}."
    )
