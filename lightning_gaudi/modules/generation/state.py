"""What is held from one decoding step to the next, at fixed places in memory.

Shapes: B rows, L positions of the cache, N new tokens, E tokens that end a row.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, StaticCache

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation.settings import GenerationSettings

_WINDOWED = ("sliding_attention", "chunked_attention")


class GenerationState(nn.Module):
    """Keys, values and everything else that the steps write, all of it buffers.

    As buffers they belong to the captured modules, so that a graph may write to them, and a
    replacement is noticed. They are in no state_dict.

    Attributes:
        cache: Transformers' own static cache, whose tensors are the buffers; None before `allocate`
            and after `release`.
        batch_size: B.
        length: L.
        mask: 1 where a position may be looked at, of shape (B, L), int64. New tokens' positions
            are 1 from the start, since the causal mask hides what is still to come.
        position: Of the token to come, counted without padding, of shape (B, 1), int64.
        token: The latest token of each row, of shape (B, 1), int64.
        token_ids: All new tokens, of shape (B, N), int64; behind a row's end nothing of meaning.
        num_tokens: How many of them there are, of shape (1,), int64.
        has_ended: Whether a row has ended, of shape (B,), bool.
        uniform: Random numbers, of shape (B, N), float32; nothing where tokens are not sampled.
        eos_token_ids: Tokens that end a row, of shape (E,), int64.
    """

    mask: Tensor
    position: Tensor
    token: Tensor
    token_ids: Tensor
    num_tokens: Tensor
    has_ended: Tensor
    uniform: Tensor
    eos_token_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cache: StaticCache | None = None
        self.batch_size = 0
        self.length = 0
        self._made_for: tuple[Any, ...] = ()
        self._accepted: frozenset[str] = frozenset()

    def allocate(
        self,
        model: PreTrainedModel,
        batch_size: int,
        length: int,
        settings: GenerationSettings,
        eos_token_ids: tuple[int, ...],
    ) -> bool:
        """Make room for a batch; nothing happens where there is the same already.

        The model runs for one token, so that the cache takes each layer's number of heads, their
        size and dtype from the keys and values themselves.

        Args:
            model: The model, on its device.
            batch_size: B.
            length: L.
            settings: N, and whether tokens are sampled.
            eos_token_ids: Tokens that end a row.

        Returns:
            Whether anything was made: graphs of before are worthless then.

        Raises:
            ConfigurationError: The model keeps no keys and values, or others than a static cache.
        """
        device = model.device
        autocast = torch.is_autocast_enabled(device.type)
        made_for = (
            *(id(model), device, model.dtype, batch_size, length, settings, eos_token_ids),
            torch.get_autocast_dtype(device.type) if autocast else None,
        )
        if made_for == self._made_for:
            return False
        self.release()
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        # Outside inference mode, or they could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            cache = self._static_cache(model, batch_size, length)

            def make(name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
                zeros = torch.zeros(shape, dtype=dtype, device=device)
                self.register_buffer(name, zeros, persistent=False)

            make("position", batch_size, 1)
            make("token", batch_size, 1)
            make("token_ids", batch_size, settings.max_new_tokens)
            make("num_tokens", 1)
            make("has_ended", batch_size, dtype=torch.bool)
            num_uniform = settings.max_new_tokens if settings.do_sample else 0
            make("uniform", batch_size, num_uniform, dtype=torch.float32)
            eos = torch.tensor(eos_token_ids, dtype=torch.int64).to(device)
            self.register_buffer("eos_token_ids", eos, persistent=False)
        for number, layer in enumerate(cache.layers):
            for name, value in vars(layer).items():
                if isinstance(value, Tensor):
                    self.register_buffer(f"cache_{number}_{name}", value, persistent=False)
        self.cache, self.batch_size, self.length = cache, batch_size, length
        self._made_for = made_for
        return True

    def release(self) -> None:
        """Let go of all memory."""
        self.cache, self.batch_size, self.length, self._made_for = None, 0, 0, ()
        for name in list(self._buffers):
            delattr(self, name)

    def arguments(self, cache: StaticCache, num_tokens: int) -> dict[str, Any]:
        """Arguments of the model's forward that some models have and others have not.

        Args:
            cache: Where it writes.
            num_tokens: How many tokens it is given.
        """
        found: dict[str, Any] = {}
        if "logits_to_keep" in self._accepted:
            found["logits_to_keep"] = 1
        # Before Transformers 5 a model had to be told where in the cache to write; a cache of today
        # counts on the device.
        if "cache_position" in self._accepted:
            device = self.mask.device
            found["cache_position"] = torch.arange(num_tokens, device=device) + (
                cache.get_seq_length()
            )
        return found

    def _static_cache(self, model: PreTrainedModel, batch_size: int, length: int) -> StaticCache:
        """An empty static cache with its memory."""
        config = model.config.get_text_config(decoder=True)
        cache: Any = StaticCache(_without_windows(config), max_cache_len=length)
        if not cache.is_compileable or any(getattr(cache, "is_linear", ())):
            raise _no_cache(
                model,
                "keeps something else from one token to the next (a recurrent or convolutional "
                "state)",
            )
        one = torch.zeros(batch_size, 1, dtype=torch.int64, device=model.device)
        self.register_buffer("mask", torch.ones_like(one).repeat(1, length), persistent=False)
        output: Any = model(
            input_ids=one,
            attention_mask=self.mask,
            position_ids=one,
            past_key_values=cache,
            use_cache=True,
            **self.arguments(cache, 1),
        )
        if getattr(output, "past_key_values", None) is None or not _is_filled(cache):
            raise _no_cache(model, "keeps none")
        cache.reset()
        return cache  # type: ignore[no-any-return]


def _is_filled(cache: Any) -> bool:
    own_layers = [layer for layer in cache.layers if hasattr(layer, "max_cache_len")]
    return bool(own_layers) and all(layer.is_initialized for layer in own_layers)


def _without_windows(config: PretrainedConfig) -> PretrainedConfig:
    """A copy after which every layer's cache is of full length.

    The library's cache for a sliding window counts in a Python number, which a graph would freeze.
    What a layer sees stays the matter of the masks, which follow the model's own config.
    """
    config = copy.deepcopy(config)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        for name in ("sliding_window", "attention_chunk_size"):
            if getattr(config, name, None) is not None:
                setattr(config, name, None)
    elif any(each in _WINDOWED for each in layer_types):
        config.layer_types = ["full_attention" if t in _WINDOWED else t for t in layer_types]
    return config


def _no_cache(model: PreTrainedModel, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{type(model).__name__} cannot generate with static shapes: that takes a cache of keys "
        f"and values, and this model {what}. Use a decoder-only attention model (for a model of "
        "the BERT family, is_decoder=True in its config), or stock model.generate()."
    )
