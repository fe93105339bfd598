"""Writes a model as stock Transformers loads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor


def export(model: Any, directory: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Write a model and a tokenizer.

    Args:
        model: The model, on any device. It stays there.
        directory: Where; made if it is not there.
        tokenizer: A tokenizer or image processor, its directory, or None for none.
    """
    on_host: dict[int, Tensor] = {}
    # By parameter, so that one that is used in two places stays one on the host too.
    state = {
        name: on_host.setdefault(id(value), value.detach().cpu())
        for name, value in model.state_dict(keep_vars=True).items()
    }
    # The config that is written says nothing of how masks are built here.
    model.save_pretrained(directory, state_dict=state)
    if isinstance(tokenizer, (str, os.PathLike)):
        from transformers import AutoProcessor

        # Gives the tokenizer or the image processor where there is just one of them.
        load: Callable[..., Any] = AutoProcessor.from_pretrained
        tokenizer = load(tokenizer)
    if tokenizer is not None:
        tokenizer.save_pretrained(Path(directory))
