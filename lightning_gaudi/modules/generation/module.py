"""`TextGenerationModule`: continues prompts, with static shapes.

How it works. Prompts are padded on the left to one of a few lengths (buckets), so that all end in
the same column and every new token of a batch lies in one column too. A batch always has the same
number of rows. Keys and values go into one static cache that is held from batch to batch. So there
are few kinds of forward: one for the prompts of each bucket and one for a token more. Each writes
everything in place and returns nothing; `HPUGraphCallback` captures each once.

The host loops, and looks at the device only to see whether all rows have ended, every few tokens,
at the end of a batch for its tokens, and once where the cache is made.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_gaudi.data.tokenizing import find_tokenizer
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation.loading import load_model
from lightning_gaudi.modules.generation.loop import GenerationLoop
from lightning_gaudi.modules.generation.masks import build_masks_of_prompts
from lightning_gaudi.modules.generation.prompts import PromptReader, bucket_for, check_buckets
from lightning_gaudi.modules.generation.sampling import row_seed
from lightning_gaudi.modules.generation.settings import (
    GenerationSettings,
    check_arguments,
    check_count,
    check_generation_config,
    find_eos_token_ids,
    find_pad_token_id,
    most_positions,
    vocab_size,
)
from lightning_gaudi.modules.generation.stats import GenerationStats
from lightning_gaudi.modules.generation.steps import Decode, Prefill

_STEPS = {
    TrainerFn.FITTING: "training_step",
    TrainerFn.VALIDATING: "validation_step",
    TrainerFn.TESTING: "test_step",
}


class TextGenerationModule(LightningModule):
    """Generates text in ``predict_step`` with a decoder-only Transformers model.

    Greedy tokens are those of stock ``model.generate(do_sample=False)``. With `HPUGraphCallback`
    each bucket's prefill is captured once, and the decoding step once for all buckets; in eager and
    compile mode they are compiled. Without it, and on any other device, the same runs op by op.

    The model's config is changed: from now on its attention builds masks on the device, which
    computes the same (see `masks`).

    Args:
        model: A decoder-only model with its head; or a path, a ``.gguf`` file or a config to make
            one of. Its parameters are in the state_dict under ``model.``.
        tokenizer: A tokenizer, or its path; for prompts that are texts, and for ``text`` in the
            results.
        max_new_tokens: The most new tokens of a row.
        do_sample: Whether tokens are drawn at random; else the most likely one is taken.
        temperature: What logits are divided by before drawing.
        top_k: Draw among so many of the most likely tokens; None for all.
        top_p: Draw among the most likely tokens that make up this much probability; None for all.
        seed: Of the drawing. A row's random numbers come from this seed and its own prompt, so that
            they do not depend on its place in the batch or in the data, on other rows or on ranks.
            The same prompt gives the same text every time; for several texts of one prompt the
            batch's ``"seed"`` has a whole number for each row, which is taken in place of that.
        buckets: Lengths in tokens that prompts are padded to. None takes the attribute ``buckets``
            of the dataloader's ``batch_sampler`` or ``collate_fn`` or of the datamodule, else
            powers of two; then a longer prompt than before makes the cache anew.
        batch_size: Rows that a batch is filled up to, and split into where it has more. None takes
            the largest batch so far; a larger one makes the cache anew.
        eos_check_every: After how many tokens the host looks whether all rows have ended. Up to one
            less than that are made in vain; each look waits for the device.
        pad_token_id: What prompts are padded with. By default the model's, the tokenizer's, or the
            first EOS token: attention never sees it.
        eos_token_id: Tokens that end a row. By default those of the model's generation config.
        chat: Whether a text is a user's message, put into the tokenizer's chat template.
        **unsupported: Further arguments of ``generate``: an error says that they are not supported,
            unless their value changes nothing.

    Raises:
        ConfigurationError: An argument has a value that it cannot have, or the model cannot be
            generated with.
    """

    def __init__(
        self,
        model: str | Path | PretrainedConfig | PreTrainedModel,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        buckets: Sequence[int] | None = None,
        batch_size: int | None = None,
        eos_check_every: int = 8,
        pad_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        chat: bool = False,
        **unsupported: Any,
    ) -> None:
        super().__init__()
        check_arguments(unsupported)
        self.settings = GenerationSettings(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos_check_every=eos_check_every,
        )
        ignored = self.settings.ignored()
        if ignored:
            warnings.warn(
                f"TextGenerationModule: {', '.join(ignored)} means nothing without do_sample=True.",
                stacklevel=2,
            )
        self.buckets = check_buckets(buckets)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        self.batch_size = batch_size
        self.model = load_model(model)
        self.tokenizer = find_tokenizer(tokenizer)
        check_generation_config(self.model.generation_config, do_sample=do_sample)
        self.eos_token_ids = find_eos_token_ids(self.model, eos_token_id)
        self.pad_token_id = find_pad_token_id(
            self.model, self.tokenizer, pad_token_id, self.eos_token_ids
        )
        self._reader = PromptReader(
            tokenizer=self.tokenizer,
            chat=chat,
            pad_token_id=self.pad_token_id,
            vocab_size=vocab_size(self.model),
        )
        if self.buckets:
            self._check_positions(self.buckets[-1])
        build_masks_of_prompts(self.model)
        # The steps hold the model; as they are no children, its parameters have one name each.
        self._loop = GenerationLoop(
            self.model, self.settings, self.eos_token_ids, self.pad_token_id
        )

    # --- what HPUGraphCallback captures ---------------------------------------------------------

    @property
    def prefill(self) -> Prefill:
        """The forward for prompts: one graph for each bucket."""
        return self._loop.prefill

    @property
    def decode(self) -> Decode:
        """The forward for one token more: one graph."""
        return self._loop.decode

    @property
    def hpu_graph_targets(self) -> tuple[str, ...]:
        """Names of the forwards that are called."""
        return ("prefill", "decode") if self.settings.max_new_tokens > 1 else ("prefill",)

    @property
    def stats(self) -> GenerationStats:
        """Counts, tokens per second and time to first token so far; logged after a prediction."""
        return self._loop.stats

    # --- generation -----------------------------------------------------------------------------

    # In compile mode the loop stays the host's; what is compiled is what the callback swaps in.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @override
    def predict_step(
        self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0
    ) -> dict[str, list[Any]]:
        """Continue the prompts of a batch.

        Args:
            batch: A mapping with ``input_ids`` of shape (B, T) and ``attention_mask`` of the same
                shape, padded on either side; or, with a tokenizer, a list of strings or of
                ``{"prompt": string}``, or a mapping with ``"prompt"``. It may have ``"seed"``.
            batch_idx: Its number.
            dataloader_idx: Which of several dataloaders it is from.

        Returns:
            ``token_ids``: for each row the list of its new tokens, up to the EOS token and with it,
            or `max_new_tokens` of them. With a tokenizer also ``text``: the same as a string,
            without special tokens.

        Raises:
            ConfigurationError: The batch is none of these, a prompt is empty or too long, or the
                model has no cache of keys and values.
        """
        prompts = self._reader(batch)
        rows = prompts.token_ids
        if not rows:
            return {"token_ids": []} if self.tokenizer is None else {"token_ids": [], "text": []}
        seeds = prompts.seeds or [row_seed(self.settings.seed, row) for row in rows]
        size = self.batch_size or max(len(rows), self._loop.state.batch_size)
        buckets = self.buckets or self._buckets_of_data(dataloader_idx)
        known, _ = most_positions(self.model)
        limit = None if known is None else known - self.settings.max_new_tokens
        chosen = [bucket_for(longest, buckets, limit) for longest in map(len, rows)]
        longest = max([*(buckets or ()), *chosen])
        self._check_positions(longest)
        length = max(longest + self.settings.max_new_tokens, self._loop.state.length)
        token_ids: list[list[int]] = []
        with torch.no_grad():
            self._loop.prepare(self.model, size, length)
            for start in range(0, len(rows), size):
                part = slice(start, start + size)
                bucket = max(chosen[part])
                token_ids += self._loop.run(rows[part], seeds[part], bucket)
        results: dict[str, list[Any]] = {"token_ids": token_ids}
        if self.tokenizer is not None:
            results["text"] = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return results

    @override
    def configure_callbacks(self) -> list[Callback]:
        """No callbacks; but before Lightning misses a step, say that there is none on purpose.

        Raises:
            ConfigurationError: The trainer is to train or evaluate, and no subclass has the step.
        """
        kind = self.trainer.state.fn
        step = _STEPS.get(kind) if kind is not None else None
        if step is not None and not is_overridden(step, self):
            raise ConfigurationError(
                f"{type(self).__name__} only predicts: it has no {step}. Use trainer.predict; to "
                "train or evaluate the model, TransformersModule(model, task='causal-lm')."
            )
        return []

    @override
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave prompts on the host, which aligns them; later only the aligned ones are moved."""
        if self.trainer.predicting:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @override
    def on_predict_end(self) -> None:
        """Log this process's counts, tokens per second and time to first token."""
        metrics = {f"generation/{name}": value for name, value in self.stats.as_dict().items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    @override
    def teardown(self, stage: str) -> None:
        """Let go of the cache, since the model leaves the device."""
        self._loop.state.release()

    def _buckets_of_data(self, dataloader_idx: int) -> list[int] | None:
        """What the trainer's data says of the lengths of its batches."""
        trainer = self._trainer
        if trainer is None:
            return None
        loaders: Any = trainer.predict_dataloaders
        places: list[Any] = [getattr(trainer, "datamodule", None)]
        if isinstance(loaders, (list, tuple)):
            loaders = loaders[dataloader_idx] if dataloader_idx < len(loaders) else None
        for name in ("collate_fn", "batch_sampler"):
            places.insert(0, getattr(loaders, name, None))
        found = next((p.buckets for p in places if getattr(p, "buckets", None)), None)
        return check_buckets(found)

    def _check_positions(self, longest: int) -> None:
        num_new = self.settings.max_new_tokens
        known, name = most_positions(self.model)
        if known is not None and longest + num_new > known:
            raise ConfigurationError(
                f"prompts of up to {longest} tokens and max_new_tokens={num_new} make "
                f"{longest + num_new} positions, but {type(self.model).__name__} has "
                f"{known} ({name}). Pass smaller buckets or fewer new tokens."
            )
