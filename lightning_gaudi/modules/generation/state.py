"""What is held from one decoding step to the next, at fixed places in memory.

Shapes: B rows, L positions of the cache, N new tokens, E tokens that end a row.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, StaticCache

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation.settings import GenerationSettings

# Tokens of a first run, padding included; as many as show that a query sees what it must not.
_NUM_PROBED = 4
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

        The model runs for a few tokens, so that the cache takes each layer's number of heads, their
        size and dtype from the keys and values themselves. What comes of it must be what the model
        gives without a cache and padding.

        Args:
            model: The model, on its device.
            batch_size: B.
            length: L.
            settings: N, and whether tokens are sampled.
            eos_token_ids: Tokens that end a row.

        Returns:
            Whether anything was made: graphs of before are worthless then.

        Raises:
            ConfigurationError: The model keeps no keys and values, or others than a static cache,
                or goes wrong with it.
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
        # A few tokens in two forwards as a batch has them, one column of padding before them.
        num_columns = min(_NUM_PROBED, length - 1)
        num_padding = int(num_columns > 1)
        vocabulary: Any = model.get_input_embeddings()
        ids = torch.arange(num_columns + 1).neg() % vocabulary.weight.shape[0]
        positions = (torch.arange(num_columns + 1) - num_padding).clamp(min=0)
        mask = (torch.arange(length) >= num_padding).long()
        rows = [each.repeat(batch_size, 1).to(model.device) for each in (ids, positions, mask)]
        self.register_buffer("mask", rows[2], persistent=False)
        if torch.is_autocast_enabled(model.device.type):
            _give_dtypes(cache, model, rows[0][:, :1], rows[1][:, :1])
        found = []
        for part in (slice(num_columns), slice(num_columns, None)):
            output: Any = model(
                input_ids=rows[0][:, part].contiguous(),
                attention_mask=self.mask,
                position_ids=rows[1][:, part].contiguous(),
                past_key_values=cache,
                use_cache=True,
                **self.arguments(cache, len(ids[part])),
            )
            if getattr(output, "past_key_values", None) is None or not _is_filled(cache):
                raise _no_cache(model, "keeps none")
            found.append(output.logits[:, -1])
        if not model.training:  # dropout would give something else each time
            output = model(
                input_ids=rows[0][:1, num_padding:].contiguous(),
                position_ids=rows[1][:1, num_padding:].contiguous(),
                use_cache=False,
            )
            if not _are_close(torch.stack(found, 1), output.logits[:, -2:]):
                raise _no_cache(
                    model, "gives other logits with one that is longer than the text or padded left"
                )
        cache.reset()
        return cache  # type: ignore[no-any-return]


def _are_close(found: Tensor, expected: Tensor) -> bool:
    """Whether logits are the same but for rounding, by what lies between the highest and lowest."""
    is_rounded = expected.dtype.itemsize < 4 or torch.is_autocast_enabled(expected.device.type)
    spread = expected.max() - expected.min()
    error = (found - expected).abs().max()
    return not error > spread * (0.1 if is_rounded else 0.01)  # also where there is none: NaN


class _Given(DynamicCache):
    """A cache that keeps what each layer gives it first, by the layer's number."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        self.given.setdefault(layer_idx, (key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _give_dtypes(cache: Any, model: PreTrainedModel, ids: Tensor, positions: Tensor) -> None:
    """Make each layer's memory with the dtypes that autocast gives its keys and its values.

    Left to itself a static layer takes the keys' dtype for both. They differ where the rotation of
    the keys is not among the ops of lower precision, as on a CPU.
    """
    seen = _Given()
    model(
        input_ids=ids.contiguous(),
        position_ids=positions.contiguous(),
        past_key_values=seen,
        use_cache=True,
    )
    for number, (keys, values) in seen.given.items():
        layer = cache.layers[number]
        takes_values = len(inspect.signature(layer.lazy_initialization).parameters) > 1
        layer.lazy_initialization(*((keys, values) if takes_values else (keys,)))
        layer.values = layer.values.to(values.dtype)


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
