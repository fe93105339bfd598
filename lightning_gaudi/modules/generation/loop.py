"""The loop on the host: a prefill, then one token more at a time.

After each step the lazy graph is broken (CARD.md 13), which does nothing after a replay.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from lightning_gaudi.modules.generation.prompts import align_left_padded
from lightning_gaudi.modules.generation.sampling import uniforms
from lightning_gaudi.modules.generation.settings import GenerationSettings
from lightning_gaudi.modules.generation.state import GenerationState
from lightning_gaudi.modules.generation.stats import GenerationStats, Stopwatch
from lightning_gaudi.modules.generation.steps import Decode, GenerationStep, Prefill
from lightning_gaudi.runtime import device as hpu_device
from lightning_gaudi.runtime import step as hpu_step


class GenerationLoop:
    """Generates batch after batch with one held state.

    Args:
        model: The model.
        settings: How tokens are chosen.
        eos_token_ids: Tokens that end a row.
        pad_token_id: What prompts are padded with.

    Attributes:
        state: What the steps write.
        prefill: The forward for prompts.
        decode: The forward for one token more.
        stats: What was done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: GenerationSettings,
        eos_token_ids: tuple[int, ...],
        pad_token_id: int,
    ) -> None:
        self._model = model
        self._settings = settings
        self._eos_token_ids = eos_token_ids
        self._pad_token_id = pad_token_id
        self.state = GenerationState()
        self.prefill = Prefill(model, self.state, settings)
        self.decode = Decode(model, self.state, settings)
        self.stats = GenerationStats()
        # Kinds of steps that have run since the state was made: a bucket, or 0 for decoding.
        self._seen: set[int] = set()

    def prepare(self, model: PreTrainedModel, batch_size: int, length: int) -> None:
        """Have room for batches of that size; nothing happens where there is.

        Args:
            model: The model, on its device; maybe another one than before.
            batch_size: Rows.
            length: Positions of the cache.

        Raises:
            ConfigurationError: The model has no cache of keys and values.
        """
        if model is not self._model:
            self._model = self.prefill.model = self.decode.model = model
        if self.state.allocate(model, batch_size, length, self._settings, self._eos_token_ids):
            hpu_step.mark_step()  # or the first prefill's graph would be this and a prefill
            self._seen = set()

    def run(
        self, token_ids: Sequence[Sequence[int]], seeds: Sequence[int], bucket: int
    ) -> list[list[int]]:
        """Continue prompts.

        Args:
            token_ids: At most as many prompts as there is room for.
            seeds: A seed for each of them, to sample with.
            bucket: The length to pad them to.

        Returns:
            The new token ids of each, up to the one that ends it and with it.
        """
        num_rows, settings, state = len(token_ids), self._settings, self.state
        watch = Stopwatch(self._synchronize)
        arguments = self._arguments(token_ids, seeds, bucket)
        self._step(watch, 0, self.prefill, bucket, *arguments)
        num_tokens = 1
        while num_tokens < settings.max_new_tokens:
            if num_tokens % settings.eos_check_every == 0 and self._has_ended():
                break
            self._step(watch, num_tokens, self.decode, 0)
            num_tokens += 1
        made = state.token_ids.cpu().tolist()[:num_rows]
        watch.settle()
        rows = [self._cut(row[:num_tokens]) for row in made]
        self._count(watch, [len(row) for row in rows], num_tokens)
        return rows

    def _arguments(
        self, token_ids: Sequence[Sequence[int]], seeds: Sequence[int], bucket: int
    ) -> list[Tensor]:
        """A prefill's arguments on the device.

        Missing rows repeat the last one (CARD.md 7), so that they end when it ends.
        """
        missing = self.state.batch_size - len(token_ids)
        filled = [*token_ids, *[token_ids[-1]] * missing]
        arguments = [*align_left_padded(filled, bucket, self._pad_token_id)]
        if self._settings.do_sample:
            numbers = uniforms([*seeds, *[seeds[-1]] * missing], self._settings.max_new_tokens)
            arguments.append(numbers)
        return [tensor.to(self._model.device) for tensor in arguments]

    def _step(
        self, watch: Stopwatch, number: int, forward: GenerationStep, kind: int, *arguments: Tensor
    ) -> None:
        captures = forward.num_captures
        forward(*arguments)
        hpu_step.mark_step()
        is_captured = forward.num_captures > captures
        watch.step(number, is_warmup=is_captured or kind not in self._seen)
        self._seen.add(kind)
        self.stats.num_captures += is_captured
        self.stats.num_steps += 1

    def _has_ended(self) -> bool:
        """Whether all rows have; the one value that the host reads in the loop."""
        if not self._eos_token_ids:
            return False
        self.stats.num_host_reads += 1
        return bool(self.state.has_ended.all())

    def _cut(self, row: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(row) if token in self._eos_token_ids), len(row))
        return row[: end + 1]

    def _count(self, watch: Stopwatch, lengths: Sequence[int], num_tokens: int) -> None:
        stats = self.stats
        stats.num_batches += 1
        stats.num_host_reads += 1
        stats.num_prompts += len(lengths)
        stats.num_tokens += sum(lengths)
        stats.measured_tokens += watch.tokens(lengths)
        stats.measured_seconds += watch.seconds
        if watch.first_token_seconds is not None:
            stats.measured_prefills += 1
            stats.first_token_seconds += watch.first_token_seconds

    def _synchronize(self) -> None:
        if self._model.device.type == "hpu":
            hpu_device.synchronize()
