"""What an image was made with, as a file's metadata can say it.

Whoever goes on where a run stopped compares this. So all that changes an image has a place in it:
numbers, texts, lists and dicts as they are, and images, tensors and arrays by their digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Arguments that say how images are handed over, not how they are made.
_OF_THE_CALL = ("output_type", "num_images_per_prompt", "batch_size")


def settings_of(arguments: Mapping[str, Any], pipeline_name: str, scheduler: Any) -> dict[str, Any]:
    """Describe what a pipeline makes an image with.

    Args:
        arguments: Of the pipeline, for one image, without its prompt.
        pipeline_name: The pipeline's class.
        scheduler: Its scheduler, of which the class is told and a digest of the configuration.

    Returns:
        A dict that JSON can say. What cannot be described, such as a function, is left out.
    """
    settings = {}
    for name, value in arguments.items():
        told = described(value)
        if told is not None and name not in _OF_THE_CALL:
            settings[name] = told
    settings["pipeline"] = pipeline_name
    settings["scheduler"] = type(scheduler).__name__
    # Names with an underscore tell of the version and the file, not of the schedule.
    config = {n: v for n, v in dict(scheduler.config).items() if not n.startswith("_")}
    settings["scheduler_config"] = _digest(json.dumps(described(config), sort_keys=True).encode())
    return settings


def described(value: Any) -> Any:
    """A value as JSON can say it, images, tensors and arrays by their digest.

    Returns:
        None where there is no way to describe it.
    """
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): described(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten()
        whole = data.view(torch.uint8).numpy().tobytes()
        return _digest(whole, "tensor", tuple(value.shape), value.dtype)
    if isinstance(value, np.ndarray):
        return _digest(value.tobytes(), "array", value.shape, value.dtype)
    # Whoever has an image of PIL has loaded it; nobody else needs to.
    if callable(getattr(value, "tobytes", None)) and hasattr(value, "getpalette"):
        return _digest(value.tobytes(), "image", value.size, value.mode, value.getpalette())
    return None


def _digest(data: bytes, *more: Any) -> str:
    return hashlib.sha256(repr(more).encode() + data).hexdigest()[:16]
