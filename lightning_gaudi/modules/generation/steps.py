"""The two forwards of generation, each of which is one graph: a prompt, and one token more.

Both read and write the state in place, on whole tensors (the card captures no writes to views),
and return nothing. So a step has no results to clone, nothing comes back to the host, and a replay
takes up where the last one ended.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation.sampling import choose
from lightning_gaudi.modules.generation.settings import GenerationSettings
from lightning_gaudi.modules.generation.state import GenerationState
from lightning_gaudi.runtime import capture


class GenerationStep(nn.Module):
    """What both steps share.

    Args:
        model: The model.
        state: What the steps write; allocated before a call.
        settings: How tokens are chosen.

    Attributes:
        num_captures: How often the forward was captured as a graph.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        state: GenerationState,
        settings: GenerationSettings,
    ) -> None:
        super().__init__()
        self.model = model
        self.state = state
        self.settings = settings
        self.num_captures = 0

    def _next_logits(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Run the model on what follows the cache; logits of shape (B, V) after the last token."""
        if not torch.compiler.is_compiling():
            self.num_captures += capture.is_capturing()  # a replay does not come by here
        cache: Any = self.state.cache
        output: Any = self.model(
            input_ids=input_ids,
            attention_mask=self.state.mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **self.state.arguments(cache, input_ids.shape[1]),
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _take(self, logits: Tensor) -> None:
        """Choose the next token of each row and write it down."""
        state = self.state
        uniform = None
        if self.settings.do_sample:
            uniform = state.uniform.index_select(1, state.num_tokens)[:, 0]
        token = choose(logits, self.settings, uniform)
        ends = (token[:, None] == state.eos_token_ids).any(-1)
        state.has_ended.copy_(state.has_ended | ends)
        state.token.copy_(token[:, None])
        state.token_ids.index_copy_(1, state.num_tokens, token[:, None])
        state.num_tokens.add_(1)


class Prefill(GenerationStep):
    """Reads the prompts, from an empty cache, and chooses the first new token."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        uniform: Tensor | None = None,
    ) -> None:
        """Begin a batch.

        Args:
            input_ids: Prompts, padded on the left, of shape (B, bucket), int64.
            attention_mask: 1 for tokens and 0 for padding, of the same shape, int64.
            uniform: Random numbers of shape (B, N), float32, to sample with.

        Raises:
            ConfigurationError: There is no room for a batch yet.
        """
        state = self.state
        cache: Any = state.cache
        if cache is None:
            raise ConfigurationError(
                "there is no cache yet to read prompts into: the first batch makes it, and its "
                "calls are captured. Leave warmup out of HPUGraphCallback for TextGenerationModule."
            )
        cache.reset()  # zeroed, so that nothing infinite of an earlier batch stays behind
        to_come = torch.ones_like(state.mask[:, input_ids.shape[1] :])
        state.mask.copy_(torch.cat([attention_mask, to_come], 1))
        state.position.copy_(attention_mask.sum(1, keepdim=True))
        state.has_ended.zero_()
        state.num_tokens.zero_()
        if uniform is not None:
            state.uniform.copy_(uniform)
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        self._take(self._next_logits(input_ids, position_ids))


class Decode(GenerationStep):
    """Feeds the latest token and chooses the next."""

    def forward(self) -> None:
        """Make one token more."""
        state = self.state
        logits = self._next_logits(state.token, state.position)
        state.position.add_(1)
        self._take(logits)
