"""What a model takes of a batch, and checks on the host before the batch moves to the device."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.modules.heads import Head
from lightning_gaudi.modules.losses import IGNORED

_NOT_FOR_FORWARD = ("labels", "start_positions", "end_positions")
_METADATA = {
    *("id", "ids", "idx", "index", "indices", "row", "rows", "example_id"),
    *("length", "lengths", "offset_mapping", "overflow_to_sample_mapping", "special_tokens_mask"),
}
"""Keys of tensors that are often in a batch, and no model takes."""


class BatchCheck:
    """Checks the batches of a module.

    Args:
        head: The head, for the labels.
        accepted: What the model's forward takes.
        main_input: The name of what it cannot do without.
        num_tokens: How many tokens the model knows; None where it takes none.
        num_positions: How many tokens a row may have; None where any number.
    """

    def __init__(
        self,
        head: Head,
        accepted: Set[str],
        main_input: str,
        num_tokens: int | None,
        num_positions: int | None = None,
    ) -> None:
        self._head = head
        self._accepted = accepted
        self._main_input = main_input
        self._num_tokens = num_tokens
        self._num_positions = num_positions
        self._has_warned = False

    def __call__(self, batch: Any, *, needs_labels: bool, stage: str) -> None:
        """Check a batch.

        Args:
            batch: What the dataloader gave.
            needs_labels: Whether it must have labels.
            stage: The stage, for messages.

        Raises:
            TypeError: It is no dict.
            ValueError: Inputs or labels are missing, or a token or label cannot be.
        """
        if not isinstance(batch, Mapping):
            raise TypeError(
                "a batch must be a dict with the names of the model's arguments, such as "
                f"'{self._main_input}' and 'labels', but it is a {type(batch).__name__}. Have the "
                "dataset give dicts, or collate its rows into one."
            )
        if self._main_input not in batch and "inputs_embeds" not in batch:
            raise ValueError(
                f"a batch needs {self._main_input!r}, but it has {_keys(batch)}. The model's "
                f"forward takes {', '.join(map(repr, sorted(self._accepted)))}."
            )
        missing = [key for key in self._head.label_keys if key not in batch]
        if missing and needs_labels:
            raise ValueError(
                f"a batch for {stage} needs {' and '.join(map(repr, missing))}, but it has "
                f"{_keys(batch)}."
            )
        for key in set(self._head.label_keys).intersection(batch) if needs_labels else ():
            if not isinstance(batch[key], Tensor):
                raise TypeError(
                    f"batch[{key!r}] must be a tensor, but it is a {type(batch[key]).__name__}. "
                    "Have the dataset's collate_fn make tensors of labels."
                )
        if not missing and (needs_labels or self._are_tensors(batch)):
            self._head.check(batch)
        self._check_tokens(batch.get("input_ids"))
        self._check_length(batch)
        self._warn_of_unknown(batch)

    def num_rows(self, batch: Mapping[str, Any]) -> int:
        """How many rows a batch has."""
        name = self._main_input if self._main_input in batch else "inputs_embeds"
        return len(batch[name])

    def _are_tensors(self, batch: Mapping[str, Any]) -> bool:
        return all(isinstance(batch[key], Tensor) for key in self._head.label_keys)

    def _check_tokens(self, ids: Any) -> None:
        if self._num_tokens is None or not isinstance(ids, Tensor) or ids.device.type != "cpu":
            return
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self._num_tokens):
            raise ValueError(
                f"batch['input_ids'] must be in 0 to {self._num_tokens - 1}, but it goes from "
                f"{int(ids.min())} to {int(ids.max())}: is the tokenizer another model's?"
            )

    def _check_length(self, batch: Mapping[str, Any]) -> None:
        # A card looks up a position past the last without an error.
        ids = batch.get("input_ids")
        if self._num_positions is None or not isinstance(ids, Tensor) or "position_ids" in batch:
            return
        if ids.ndim == 2 and ids.shape[1] > self._num_positions:
            raise ValueError(
                f"batch['input_ids'] has rows of {ids.shape[1]} tokens, but the model has "
                f"positions for {self._num_positions}. Cut them, with the tokenizer's or "
                f"TextDataModule's max_length={self._num_positions}."
            )

    def _warn_of_unknown(self, batch: Mapping[str, Any]) -> None:
        known = self._accepted | _METADATA | {"labels", *self._head.label_keys}
        unknown = [key for key, v in batch.items() if isinstance(v, Tensor) and key not in known]
        if unknown and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the model's forward takes no {', '.join(map(repr, unknown))}, so it is left out. "
                f"It takes {', '.join(map(repr, sorted(self._accepted)))}.",
                stacklevel=3,
            )


def _keys(batch: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, batch)) or "nothing"


def inputs_of(
    batch: Mapping[str, Any], model: Any, *, accepted: Set[str], writes_text: bool
) -> dict[str, Any]:
    """What a model is called with for a batch: what its forward takes, without labels.

    ``input_ids`` without an ``attention_mask`` get one of ones. ``use_cache`` is False, since a
    cache is for generation. A model that writes another text gets ``decoder_input_ids`` made of
    ``labels`` where there are none.

    Args:
        batch: Tensors by name, on any device.
        model: The model.
        accepted: What its forward takes.
        writes_text: Whether it has a decoder that reads another text than its encoder.

    Returns:
        Arguments by name.

    Raises:
        ValueError: There is nothing to decode.
    """
    inputs = {
        name: value
        for name, value in batch.items()
        if name in accepted and name not in _NOT_FOR_FORWARD
    }
    ids = inputs.get("input_ids")
    if ids is not None and "attention_mask" in accepted and "position_ids" not in inputs:
        # Without a mask, decoders look on the host whether positions start again in a row.
        inputs.setdefault("attention_mask", torch.ones_like(ids))
    if writes_text and "decoder_input_ids" not in inputs:
        if "labels" not in batch:
            raise ValueError(
                "a batch for task='seq2seq-lm' needs 'labels' or 'decoder_input_ids', but it "
                f"has {_keys(batch)}."
            )
        inputs["decoder_input_ids"] = _decoder_inputs(model, batch["labels"])
    if "use_cache" in accepted:
        inputs.setdefault("use_cache", False)
    return inputs


def _decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """What a decoder reads to write ``labels`` int64 [B, T]: the same, one place later."""
    prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if prepare is not None:
        prepared: Tensor = prepare(labels=labels)
        return prepared
    # Models such as M2M100 do this inside their forward, where they are given labels.
    start, padding = model.config.decoder_start_token_id, model.config.pad_token_id
    if start is None or padding is None:
        raise ValueError(
            "the model's config needs decoder_start_token_id and pad_token_id to make "
            f"decoder_input_ids of labels, but has {start} and {padding}. Set them, or give "
            "decoder_input_ids."
        )
    shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=start)
    return torch.where(shifted == IGNORED, padding, shifted)


def arguments_of(model: Any) -> frozenset[str]:
    """The names that a model's forward takes, whatever it is swapped for."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    named = (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return frozenset(p.name for p in named) - {"self"}


def num_tokens_of(model: Any) -> int | None:
    """How many tokens a model knows; None where it takes none."""
    if "input_ids" not in arguments_of(model):
        return None
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # the library's answer where there are none
        return None


def num_positions_of(model: Any) -> int | None:
    """How many tokens a row may have; None where positions are not looked up in a table."""
    sizes = []
    for name, module in model.named_modules():
        is_table = isinstance(module, torch.nn.Embedding)
        if is_table and name.rpartition(".")[2] in (
            "position_embeddings",
            "embed_positions",
            "wpe",
        ):
            # Those of RoBERTa begin after the padding's, those of BART say where.
            padding = getattr(module, "padding_idx", None)
            begin = getattr(module, "offset", 0 if padding is None else padding + 1)
            sizes.append(module.num_embeddings - begin)
    return max(sizes, default=None)
