"""What a sampler is asked for: checked, and spelled out as arguments of a pipeline."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion.assembly import PipelineFacts

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Arguments that the sampler itself fills in.
OURS = (
    "generator",
    "batch_size",
    "num_images_per_prompt",
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "height",
    "width",
    "output_type",
    "return_dict",
    "negative_prompt",
)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The arguments of `DiffusionSampler` that say how to sample; see there.

    Raises:
        ConfigurationError: One has a value that it cannot have.
    """

    num_inference_steps: int
    guidance_scale: float | None
    num_images_per_prompt: int
    batch_size: int
    eta: float
    seed: int | Sequence[int]
    height: int | None
    width: int | None
    output_type: str
    negative_prompt: str | None
    call_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "num_images_per_prompt", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_eta(self.eta)
        is_list = isinstance(self.seed, Sequence) and not isinstance(self.seed, str)
        for seed in self.seed if is_list else [self.seed]:  # type: ignore[union-attr]
            check_seed("seed", seed)
        if self.output_type not in OUTPUT_TYPES:
            raise ConfigurationError(
                f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}, but it is "
                f"{self.output_type!r}."
            )
        if taken := [name for name in self.call_options if name in OURS]:
            raise ConfigurationError(
                f"call_options has {taken[0]!r}, which DiffusionSampler passes itself. "
                + (
                    "Its generators follow from `seed`; a batch may bring its own."
                    if taken[0] == "generator"
                    else "Give it to DiffusionSampler by that name."
                    if taken[0] != "return_dict"
                    else "Leave it out."
                )
            )

    def check_against(self, facts: PipelineFacts) -> None:
        """Check that a pipeline takes what is asked for.

        Raises:
            ConfigurationError: It does not take an argument, or cannot make that size.
        """
        asked: dict[str, Any] = dict(self.call_options)
        if self.eta:
            asked["eta"] = self.eta
        for name in ("height", "width", "negative_prompt"):
            if getattr(self, name) is not None:
                asked[name] = getattr(self, name)
        if unknown := [name for name in asked if name not in facts.arguments]:
            raise ConfigurationError(
                f"{facts.name} takes no {unknown[0]!r}. What it takes: "
                f"{', '.join(facts.arguments)}."
            )
        check_settings(asked, facts)
        if self.output_type == "latent" and facts.decoder is None:
            raise ConfigurationError(
                f"output_type='latent' asks for what a VAE decodes, but {facts.name} has none. Use "
                "'pt'."
            )

    def arguments_for(self, facts: PipelineFacts, number: int) -> dict[str, Any]:
        """The arguments of one call of a pipeline, the same for all images of the call.

        Args:
            facts: The pipeline.
            number: Images of the call.
        """
        wanted: dict[str, Any] = {
            "num_inference_steps": self.num_inference_steps,
            "num_images_per_prompt": 1,
            "eta": self.eta,
            "output_type": self.output_type,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        if facts.condition != "prompt":
            wanted["batch_size"] = number  # of those that take it: class labels do not tell it all
        return {
            **{n: v for n, v in wanted.items() if n in facts.arguments and v is not None},
            **self.call_options,
        }

    def max_sequence_length(self, facts: PipelineFacts) -> int | None:
        """Tokens that the pipeline takes of a tokenizer other than CLIP's; None if it is silent."""
        name = "max_sequence_length"
        found = self.call_options.get(name, facts.arguments.get(name))
        return found if isinstance(found, int) else None


def check_count(name: str, value: Any) -> None:
    """Check a whole number of 1 or more.

    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            f"{name} must be a whole number of 1 or more, but it is {value!r}."
        )


def check_eta(value: Any) -> None:
    """Check DDIM's eta.

    Raises:
        ConfigurationError: It is no number from 0 to 1. Above 1 the noise is more than there is in
            the image, and NaN comes out.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ConfigurationError(
            f"eta must be a number from 0 (DDIM) to 1 (DDPM), but it is {value!r}."
        )


def whole_number(what: str, value: Any) -> int:
    """A whole number of Python's, numpy's or PyTorch's as Python's.

    Raises:
        ConfigurationError: It is none: numbers with a fraction are not rounded.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigurationError(f"{what} must be a whole number, but it is {value!r}.") from None


def check_seed(what: str, value: Any) -> int:
    """Check a seed of a generator.

    Raises:
        ConfigurationError: It is no whole number, or none that PyTorch takes.
    """
    seed = whole_number(what, value)
    if not -(2**63) <= seed < 2**64:
        raise ConfigurationError(f"{what} must be from -2**63 to 2**64 - 1, but it is {seed}.")
    return seed


def check_settings(settings: Mapping[str, Any], facts: PipelineFacts) -> None:
    """Check steps, eta, height and width where they are given.

    Raises:
        ConfigurationError: One has a value that it cannot have, or the pipeline cannot make images
            of that size.
    """
    if settings.get("num_inference_steps") is not None:
        check_count("num_inference_steps", settings["num_inference_steps"])
    if settings.get("eta") is not None:
        check_eta(settings["eta"])
    for name in ("height", "width"):
        value = settings.get(name)
        if value is None:
            continue
        check_count(name, value)
        if value % facts.size_multiple:
            below = value - value % facts.size_multiple
            raise ConfigurationError(
                f"{facts.name} makes images whose {name} is a multiple of {facts.size_multiple} "
                f"pixels, but {name} is {value}. Use {below or facts.size_multiple} or "
                f"{below + facts.size_multiple}."
            )


def make_scheduler(scheduler: Any, pipeline: Any) -> Any:
    """A scheduler by the name of its class, made from the configuration of the pipeline's.

    Args:
        scheduler: The name, or a scheduler, which is returned as it is.
        pipeline: The pipeline.

    Raises:
        ConfigurationError: Diffusers has no scheduler of that name, or it is something else.
    """
    import diffusers

    if isinstance(scheduler, diffusers.SchedulerMixin):
        return scheduler
    cls: Any = getattr(diffusers, scheduler, None) if isinstance(scheduler, str) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ConfigurationError(
            "scheduler must be a scheduler of Diffusers or the name of its class, such as "
            f"'DDIMScheduler', but it is {scheduler!r}."
        )
    return cls.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
