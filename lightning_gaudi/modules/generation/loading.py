"""The model to generate with: from a path, a config, or as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from lightning_gaudi.errors import ConfigurationError


def load_model(model: str | Path | PretrainedConfig | PreTrainedModel) -> PreTrainedModel:
    """The model, in eval mode if it was loaded here.

    Args:
        model: A folder or a name that ``from_pretrained`` takes, a ``.gguf`` file (whose weights
            become float32), a config (random weights), or a model.

    Raises:
        ConfigurationError: It cannot generate token after token.
    """
    loaded: Any
    if isinstance(model, PreTrainedModel):
        loaded = model
    elif isinstance(model, PretrainedConfig):
        _check_config(model)
        auto: Any = AutoModelForCausalLM
        loaded = auto.from_config(model).eval()
    elif Path(model).suffix == ".gguf":
        path = Path(model)
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, torch_dtype=torch.float32
        )
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model)
    _check_config(loaded.config)
    if not loaded.can_generate():
        raise ConfigurationError(
            f"{type(loaded).__name__} cannot generate: it has no language-modeling head that "
            "predicts the next token. Pass a causal language model, such as one from "
            "AutoModelForCausalLM."
        )
    return loaded  # type: ignore[no-any-return]


def load_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, loaded where it is a path, a name or a ``.gguf`` file."""
    if not isinstance(tokenizer, (str, Path)):
        return tokenizer
    path = Path(tokenizer)
    if path.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return AutoTokenizer.from_pretrained(tokenizer)


def _check_config(config: PretrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ConfigurationError(
            f"{type(config).__name__} is that of an encoder-decoder model, which is not supported: "
            "TextGenerationModule continues a prompt with a decoder-only model. Use "
            "model.generate() for it."
        )
