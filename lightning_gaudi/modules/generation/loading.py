"""The model to generate with: from a path, a config, a GGUF file, or as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from lightning_gaudi.data.tokenizing import GGUF_SUFFIX
from lightning_gaudi.errors import ConfigurationError


def load_model(model: str | Path | PretrainedConfig | PreTrainedModel) -> PreTrainedModel:
    """The model, in eval mode if it was loaded here.

    Args:
        model: A folder or a name that ``from_pretrained`` takes, a ``.gguf`` file (whose weights
            become float32), a config (random weights), or a model.

    Raises:
        ConfigurationError: There is none, or it cannot generate token after token.
    """
    auto: Any = AutoModelForCausalLM
    loaded: Any
    if isinstance(model, PreTrainedModel):
        loaded = model
    elif isinstance(model, PretrainedConfig):
        _check_config(model)
        loaded = auto.from_config(model).eval()
    elif not isinstance(model, (str, Path)):
        raise ConfigurationError(
            "model must be a Transformers model, its config, or the path of one, but it is of type "
            f"{type(model).__name__}."
        )
    elif Path(model).suffix == GGUF_SUFFIX:
        loaded = _from_gguf(Path(model)).eval()
    else:
        try:
            loaded = auto.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"there is no model to generate with at {str(model)!r}: {error}. Give a folder "
                "that save_pretrained wrote, a .gguf file, or a model's name."
            ) from error
    _check_config(loaded.config)
    if not loaded.can_generate():
        raise ConfigurationError(
            f"{type(loaded).__name__} cannot generate: it has no language-modeling head that "
            "predicts the next token. Pass a causal language model, such as one from "
            "AutoModelForCausalLM."
        )
    return loaded  # type: ignore[no-any-return]


def _from_gguf(path: Path) -> Any:
    """A model with a GGUF file's weights in float32.

    Transformers' ``from_pretrained(folder, gguf_file=name)`` insists on accelerate, which it does
    not use for that. So the weights are read by the library's own reader, where it is.
    """
    auto: Any = AutoModelForCausalLM
    try:
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    except ImportError:
        return auto.from_pretrained(path.parent, gguf_file=path.name, torch_dtype=torch.float32)
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}.")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    _check_config(config)
    model = auto.from_config(config, dtype=torch.float32)
    read: Any = load_gguf_checkpoint
    tensors = read(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if unexpected or not tied.issuperset(missing):
        raise ConfigurationError(
            f"{path} does not fit {type(model).__name__}: it has no {sorted(set(missing) - tied)} "
            f"and what the model does not know: {unexpected}."
        )
    return model


def _check_config(config: PretrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ConfigurationError(
            f"{type(config).__name__} is that of an encoder-decoder model, which is not supported: "
            "TextGenerationModule continues a prompt with a decoder-only model. Use "
            "model.generate() for it."
        )
