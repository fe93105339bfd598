"""A pipeline from a path, from an object or from its parts, and what can be said about it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lightning_gaudi.errors import ConfigurationError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Condition = Literal["prompt", "class_labels", "nothing"]

_DENOISERS = ("unet", "transformer")
_AUTOENCODERS = ("vae", "vqvae", "movq")
# Parts that stock pipelines have no default for, and run without.
_OPTIONAL_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
_BY_DENOISER = {
    "DiTTransformer2DModel": "DiTPipeline",
    "FluxTransformer2DModel": "FluxPipeline",
    "PixArtTransformer2DModel": "PixArtAlphaPipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
}


@dataclass(frozen=True, kw_only=True)
class PipelineFacts:
    """What a pipeline takes and what it is made of.

    Attributes:
        name: Its class.
        arguments: Names and defaults of what calling it takes.
        condition: What each image is made from.
        denoiser: The name of the part that predicts the noise.
        decoder: The submodule that turns latents into images, by its path; None without one.
        size_multiple: Height and width must be multiples of this many pixels.
    """

    name: str
    arguments: dict[str, Any]
    condition: Condition
    denoiser: str
    decoder: str | None
    size_multiple: int


def assemble(
    pipeline: str | Path | DiffusionPipeline | Mapping[str, Any],
    pipeline_class: str | type | None = None,
) -> Any:
    """Load or build a pipeline.

    Args:
        pipeline: A folder that ``save_pretrained`` wrote (or a name that Diffusers knows), a
            pipeline, or its parts by name.
        pipeline_class: The class to build of parts or to load as; None finds it out.

    Raises:
        ConfigurationError: It is none of these, parts are missing, or the class is unknown.
    """
    import diffusers

    cls = _class_named(pipeline_class)
    if isinstance(pipeline, (str, Path)):
        return (cls or diffusers.DiffusionPipeline).from_pretrained(pipeline)
    if isinstance(pipeline, Mapping):
        return _from_parts(dict(pipeline), cls)
    if isinstance(pipeline, diffusers.DiffusionPipeline):
        if cls is not None and not isinstance(pipeline, cls):
            raise ConfigurationError(
                f"pipeline_class is {cls.__name__}, but the pipeline is a loaded "
                f"{type(pipeline).__name__}. Leave pipeline_class out, or pass "
                "pipeline.components to build another pipeline of the same parts."
            )
        return pipeline
    raise ConfigurationError(
        "pipeline must be a path, a diffusers.DiffusionPipeline or a dict of its parts, but it is "
        f"of type {type(pipeline).__name__}."
    )


def _class_named(pipeline_class: str | type | None) -> Any:
    if not isinstance(pipeline_class, str):
        return pipeline_class
    import diffusers

    found = getattr(diffusers, pipeline_class, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ConfigurationError(
            f"pipeline_class is {pipeline_class!r}, but diffusers {diffusers.__version__} has no "
            "pipeline of that name."
        )
    return found


def _from_parts(parts: dict[str, Any], cls: Any) -> Any:
    import diffusers

    if cls is None:
        cls = getattr(diffusers, _guess_class(parts))
    expected = dict(inspect.signature(cls.__init__).parameters)
    expected.pop("self")
    if unknown := [name for name in parts if name not in expected]:
        raise ConfigurationError(
            f"{cls.__name__} has no part {unknown[0]!r}. It is made of: {', '.join(expected)}."
        )
    for name in _OPTIONAL_PARTS:
        if name in expected:
            parts.setdefault(name, None)
    if parts.get("safety_checker") is None and "requires_safety_checker" in expected:
        parts.setdefault("requires_safety_checker", False)
    missing = [
        name
        for name, parameter in expected.items()
        if name not in parts and parameter.default is parameter.empty
    ]
    if missing:
        raise ConfigurationError(
            f"{cls.__name__} needs the parts {', '.join(expected)}, but there is no "
            f"{', '.join(map(repr, missing))} in what was passed."
        )
    return cls(**parts)


def _guess_class(parts: Mapping[str, Any]) -> str:
    """The stock pipeline that is usually made of such parts."""
    for name in _DENOISERS:
        kind = type(parts.get(name)).__name__
        if kind in _BY_DENOISER:
            return _BY_DENOISER[kind]
        if kind == "UNet2DModel":
            is_ddim = type(parts.get("scheduler")).__name__ == "DDIMScheduler"
            return "DDIMPipeline" if is_ddim else "DDPMPipeline"
        if kind == "UNet2DConditionModel":
            is_xl = "text_encoder_2" in parts
            return "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    raise ConfigurationError(
        f"no pipeline is known for the parts {', '.join(map(repr, parts)) or '(none)'}. A pipeline "
        "has a denoiser called 'unet' or 'transformer'; say which pipeline it is with "
        "pipeline_class."
    )


def facts_of(pipeline: Any) -> PipelineFacts:
    """Look at a pipeline.

    Raises:
        ConfigurationError: It has no denoiser.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    arguments = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }
    name = type(pipeline).__name__
    denoiser = next((n for n in _DENOISERS if _is_module(pipeline, n)), None)
    if denoiser is None:
        parts = ", ".join(module_parts(pipeline)) or "none"
        raise ConfigurationError(
            f"{name} has no denoiser: none of its modules is called 'unet' or 'transformer'. Its "
            f"modules are: {parts}."
        )
    condition: Condition = "nothing"
    if "prompt" in arguments:
        condition = "prompt"
    elif "class_labels" in arguments:
        condition = "class_labels"
    decoder = next(
        (
            f"{n}.decoder"
            for n in _AUTOENCODERS
            if _is_module(getattr(pipeline, n, None), "decoder")
        ),
        None,
    )
    return PipelineFacts(
        name=name,
        arguments=arguments,
        condition=condition,
        denoiser=denoiser,
        decoder=decoder,
        size_multiple=_size_multiple(pipeline, denoiser),
    )


def module_parts(pipeline: Any) -> dict[str, nn.Module]:
    """The parts of a pipeline that have weights, by name."""
    return {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _is_module(owner: Any, name: str) -> bool:
    return isinstance(getattr(owner, name, None), nn.Module)


def _size_multiple(pipeline: Any, denoiser: str) -> int:
    """What height and width must be multiples of.

    The autoencoder halves the size a number of times, and a transformer cuts latents into patches.
    Stock U-Net pipelines ask for multiples of 8 whatever the autoencoder.
    """
    of_latents = int(getattr(pipeline, "vae_scale_factor", 1))
    if denoiser == "unet":
        return math.lcm(of_latents, 8)
    patch = int(getattr(getattr(pipeline, denoiser).config, "patch_size", 1) or 1)
    if type(pipeline).__name__.startswith("Flux"):
        patch = 2  # its pipeline packs 2 x 2 latents, and its transformer's own patches are 1
    return of_latents * patch
