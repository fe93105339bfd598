"""Images as pipelines give them, as images of PIL."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_gaudi.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image

# Rounding in half precision leaves [0, 1] by less than this; latents by far more.
_TOLERANCE = 0.02
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def to_pil(images: Any) -> list[Image]:
    """Turn a batch of images into images of PIL, which share no memory with arrays or tensors.

    Floats are rounded to 8 bits as Diffusers does it, NaN becomes black with a warning.

    Args:
        images: A tensor [B, C, H, W] or array [B, H, W, C], or a sequence of images of PIL, of
            tensors [C, H, W] and of arrays [H, W, C] or [H, W]. Floats are in [0, 1], whole
            numbers uint8. In a sequence None may stand for an image that is not there; it is left
            out.

    Raises:
        ConfigurationError: It is something else.
    """
    if isinstance(images, Tensor):
        images = _on_host(images)  # one copy from the device for the batch
    if not isinstance(images, (Sequence, np.ndarray, Tensor)) or isinstance(images, str):
        raise ConfigurationError(
            "predictions have 'images' of type "
            f"{type(images).__name__}, but ImageWriter takes a tensor, an array or a list with an "
            "image for each row."
        )
    return [_one(image) for image in images if image is not None]


def _on_host(image: Tensor) -> Tensor:
    image = image.detach()
    # numpy has no bfloat16
    return (image.float() if image.is_floating_point() else image).cpu()


def _one(image: Any) -> Image:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        if image.dim() != 3:
            raise _no_image(f"a tensor of shape {tuple(image.shape)}")
        pixels = _on_host(image).permute(1, 2, 0).numpy()
    elif isinstance(image, np.ndarray):
        if image.ndim not in (2, 3):
            raise _no_image(f"an array of shape {image.shape}")
        pixels = image if image.ndim == 3 else image[:, :, None]
    else:
        raise _no_image(f"of type {type(image).__name__}")
    mode = _MODES.get(pixels.shape[2])
    if mode is None or not pixels.size:
        raise _no_image(f"of {pixels.shape[2]} channels and {pixels.size} values")
    data = _eight_bits(pixels)
    return Image.frombytes(mode, (data.shape[1], data.shape[0]), data.tobytes())


def _eight_bits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise _no_image(f"of dtype {pixels.dtype}")
    pixels = pixels.astype(np.float32)
    if np.isnan(pixels).any():
        warnings.warn(
            "an image has NaN, which is written as black. A VAE in half precision may be the "
            "cause: keep it in float32.",
            stacklevel=6,
        )
        pixels = np.nan_to_num(pixels, nan=0.0)
    low, high = float(pixels.min()), float(pixels.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise _no_image(f"of values from {low:.3g} to {high:.3g}, as latents have")
    rounded: npt.NDArray[np.uint8] = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return rounded


def _no_image(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"an image of the predictions is {what}. ImageWriter takes images of PIL, arrays [H, W, C] "
        "and tensors [C, H, W] of 1 to 4 channels, with floats in [0, 1] or uint8. With "
        "DiffusionSampler use output_type='pil', 'np' or 'pt'."
    )
