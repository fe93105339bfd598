"""From a batch of rows to images: which prompt, which settings, which seed.

A batch may be a string, a list of strings or of dicts, a dict of columns, or whole numbers for
pipelines that take no condition. Each row gives a number of images, one after the other
(prompt-major). Images with the same settings are sampled together, in batches of one fixed size;
the last batch is filled with copies of its last image, which the caller drops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion.assembly import PipelineFacts
from lightning_gaudi.modules.diffusion.options import check_seed, check_settings

Row = dict[str, Any]

_RESERVED = ("index", "seed", "generator")
_PER_CALL = ("batch_size", "num_images_per_prompt", "output_type", "return_dict")
# Fields that say how an image is to be; to hand them on in silence would be wrong.
_TELLING = (
    "class_labels",
    "eta",
    "guidance_scale",
    "height",
    "image",
    "mask_image",
    "negative_prompt",
    "num_inference_steps",
    "strength",
    "width",
)
# Sequences that are one value for the whole call, not one for each image.
_SHARED_SEQUENCES = ("timesteps", "sigmas", "original_size", "target_size")


@dataclass(kw_only=True)
class ImageRequest:
    """One image to sample.

    Attributes:
        index: The row's place in the data set.
        number: Which of the row's images it is, from 0.
        seed: Seed of its generator; None where the row brought a generator.
        generator: Its generator, on the CPU.
        inputs: Arguments of the pipeline that each image has its own of.
        settings: Arguments of the pipeline that are the same for a whole batch.
        extra: The row's other fields.
    """

    index: int
    number: int
    seed: int | None
    generator: torch.Generator
    inputs: Row = field(default_factory=dict)
    settings: Row = field(default_factory=dict)
    extra: Row = field(default_factory=dict)


def rows_of(batch: Any) -> list[Row]:
    """Take a batch apart.

    Args:
        batch: A string; a sequence of strings, of dicts or of whole numbers; a dict of columns, in
            which a string or a number alone holds for every row; a tensor of whole numbers.

    Raises:
        ConfigurationError: It is something else, or its columns differ in length.
    """
    if isinstance(batch, Mapping):
        return _from_columns(batch)
    if isinstance(batch, str):
        return [{"prompt": batch}]
    if isinstance(batch, int):
        return [{"index": batch}]
    if isinstance(batch, Tensor) and not batch.is_floating_point():
        return [{"index": int(number)} for number in batch.reshape(-1)]
    if isinstance(batch, Sequence):
        rows: list[Row] = []
        for item in batch:
            if isinstance(item, str):
                rows.append({"prompt": item})
            elif isinstance(item, Mapping):
                rows.append({name: v for name, v in item.items() if v is not None})
            elif isinstance(item, int):
                rows.append({"index": item})
            else:
                break
        else:
            return rows
    raise ConfigurationError(
        "DiffusionSampler takes a batch of prompts (a list of strings, a list of dicts or a dict "
        "of columns), or {'index': ...} for a pipeline without prompts, but the batch is "
        f"{_describe(batch)}."
    )


def _describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)} and {batch.dtype}"
    if isinstance(batch, Sequence) and batch:
        kinds = sorted({type(item).__name__ for item in batch})
        return f"a {type(batch).__name__} of {', '.join(kinds)}"
    return f"of type {type(batch).__name__}"


def _from_columns(batch: Mapping[str, Any]) -> list[Row]:
    columns = {name: column for name, column in batch.items() if column is not None}
    lengths = {name: len(column) for name, column in columns.items() if _is_column(name, column)}
    if len(set(lengths.values())) > 1 and "generator" not in lengths:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise ConfigurationError(f"the columns of a batch differ in length: {told}.")
    number = next((n for name, n in lengths.items() if name != "generator"), 1)
    rows: list[Row] = [{} for _ in range(number)]
    for name, column in columns.items():
        if name == "generator":
            continue
        for place, row in enumerate(rows):
            value = column[place] if name in lengths else column
            if isinstance(value, Tensor) and value.dim() == 0:
                value = value.item()  # the batch is on the host
            if value is not None:
                row[name] = value
    _share_out(columns.get("generator"), rows)
    return rows


def _is_column(name: str, value: Any) -> bool:
    if name in _SHARED_SEQUENCES and isinstance(value, (list, tuple)):
        if any(isinstance(item, Tensor) for item in value):
            raise ConfigurationError(
                f"the {name} of a batch's rows were taken apart, as PyTorch's default collate_fn "
                "does. Use DataLoader(..., collate_fn=list)."
            )
        return not all(isinstance(item, (int, float)) for item in value)  # else for every row
    if isinstance(value, Tensor):
        return value.dim() > 0
    return hasattr(value, "__len__") and not isinstance(value, (str, Mapping))


def _share_out(generators: Any, rows: list[Row]) -> None:
    """Give each row its part of a list of generators, one for each image."""
    if generators is None:
        return
    generators = generators if isinstance(generators, Sequence) else [generators]
    each, left = divmod(len(generators), len(rows))
    if left or not each:
        raise ConfigurationError(
            f"there are {len(generators)} generators for a batch of {len(rows)} rows. Pass one for "
            "each image, those of a row's images one after the other."
        )
    for place, row in enumerate(rows):
        row["generator"] = list(generators[place * each : (place + 1) * each])


def requests_of(
    rows: Sequence[Row],
    indices: Sequence[int],
    facts: PipelineFacts,
    *,
    num_images: int,
    seed: int | Sequence[int],
) -> list[ImageRequest]:
    """The images of a batch's rows, prompt-major.

    Args:
        rows: From `rows_of`.
        indices: Each row's place in the data set.
        facts: The pipeline.
        num_images: Images of each row.
        seed: Image i of the data set has the seed ``seed + i``; or a seed for each image.

    Raises:
        ConfigurationError: A row lacks what the pipeline needs or brings what it cannot take; or
            the number of seeds or generators is not the number of images.
    """
    requests: list[ImageRequest] = []
    for row, index in zip(rows, indices, strict=True):
        check_row(row, facts)
        seeds = _seeds_of(row, index, num_images, seed)
        generators = row.get("generator")
        if generators is not None and not isinstance(generators, Sequence):
            generators = [generators]
        if generators is not None and len(generators) != num_images:
            raise ConfigurationError(
                f"row {index} has {len(generators)} generators, but num_images_per_prompt="
                f"{num_images} needs {num_images}."
            )
        parts: dict[str, Row] = {"inputs": {}, "settings": {}, "extra": {}}
        for name, value in row.items():
            if name not in _RESERVED:
                parts[_part_of(name, value, facts)][name] = value
        for number in range(num_images):
            requests.append(
                ImageRequest(
                    index=index,
                    number=number,
                    seed=None if generators else seeds[number],
                    generator=(
                        generators[number]
                        if generators
                        else torch.Generator().manual_seed(seeds[number])
                    ),
                    **{part: dict(fields) for part, fields in parts.items()},
                )
            )
    return requests


def check_row(row: Row, facts: PipelineFacts) -> None:
    """Check that a row fits the pipeline.

    Raises:
        ConfigurationError: It lacks the condition, has a field that the pipeline does not take, or
            a setting that cannot be.
    """
    name = facts.condition
    if name == "prompt" and not row.keys() & {"prompt", "prompt_embeds"}:
        raise ConfigurationError(
            f"{facts.name} makes images of prompts, but a row has only "
            f"{', '.join(map(repr, row)) or 'nothing'}. Pass a list of strings, or dicts with "
            "'prompt'."
        )
    if name == "class_labels" and "class_labels" not in row:
        raise ConfigurationError(
            f"{facts.name} makes images of class labels, but a row has only "
            f"{', '.join(map(repr, row)) or 'nothing'}. Pass dicts with 'class_labels'."
        )
    if name != "prompt" and "prompt" in row:
        instead = "'class_labels'" if name == "class_labels" else "{'index': i} for each image"
        raise ConfigurationError(
            f"{facts.name} takes no prompt, but a row has the prompt {row['prompt']!r}. Pass "
            f"{instead}."
        )
    for text in ("prompt", "negative_prompt"):
        if not isinstance(row.get(text, ""), str):
            raise ConfigurationError(
                f"a row's {text} must be a string, but it is {row[text]!r}. Make a row of each "
                "prompt; num_images_per_prompt makes several images of one."
            )
    for field_name in row:
        if field_name in _PER_CALL:
            raise ConfigurationError(
                f"a row has {field_name!r}, which is the same for all rows. Give it to "
                "DiffusionSampler, or take it out of the data."
            )
        if field_name in _TELLING and field_name not in facts.arguments:
            raise ConfigurationError(
                f"a row has {field_name!r}, which {facts.name} does not take. What it takes: "
                f"{', '.join(facts.arguments)}."
            )
    check_settings(row, facts)


def _part_of(name: str, value: Any, facts: PipelineFacts) -> str:
    if name not in facts.arguments:
        return "extra"
    if name == facts.condition:
        return "inputs"
    is_setting = value is None or isinstance(value, (bool, int, float, Mapping))
    is_setting = is_setting or name in _SHARED_SEQUENCES
    return "settings" if is_setting else "inputs"


def _seeds_of(row: Row, index: int, num_images: int, seed: int | Sequence[int]) -> list[int]:
    own = row.get("seed")
    if own is not None:
        if isinstance(own, Tensor):
            own = own.tolist()
        told = f"the seed of row {index}"
        if not isinstance(own, Sequence) or isinstance(own, str):
            return [check_seed(told, own) + number for number in range(num_images)]
        if len(own) != num_images:
            raise ConfigurationError(
                f"row {index} has {len(own)} seeds, but num_images_per_prompt={num_images} needs "
                f"{num_images}; a single seed is counted up."
            )
        return [check_seed(told, each) for each in own]
    first = index * num_images
    if not isinstance(seed, Sequence):
        return [int(seed) + first + number for number in range(num_images)]
    if first + num_images > len(seed):
        raise ConfigurationError(
            f"there are {len(seed)} seeds, but row {index} with num_images_per_prompt={num_images} "
            f"needs at least {first + num_images}. Pass one for each image, or a single seed."
        )
    return [int(each) for each in seed[first : first + num_images]]


def batches_of(requests: Sequence[ImageRequest], batch_size: int) -> list[list[int]]:
    """Places of the images that are sampled together, at most `batch_size` each, in order.

    Images are sampled together that have the same settings and the same kinds of inputs.
    """
    groups: dict[Any, list[int]] = {}
    for place, request in enumerate(requests):
        key = (
            tuple(sorted((n, repr(v)) for n, v in request.settings.items())),
            tuple(sorted(request.inputs)),
        )
        groups.setdefault(key, []).append(place)
    return [
        places[start : start + batch_size]
        for places in groups.values()
        for start in range(0, len(places), batch_size)
    ]


def filled(requests: Sequence[ImageRequest], batch_size: int) -> list[ImageRequest]:
    """The images with copies of the last one behind them, until there are `batch_size`.

    A copy has a generator of its own, so that it takes no numbers from the image's.
    """
    last = requests[-1]
    result = list(requests)
    while len(result) < batch_size:
        generator = torch.Generator()
        generator.set_state(last.generator.get_state())
        result.append(
            ImageRequest(
                index=last.index,
                number=last.number,
                seed=last.seed,
                generator=generator,
                inputs=last.inputs,
                settings=last.settings,
            )
        )
    return result


def collated(requests: Sequence[ImageRequest]) -> dict[str, Any]:
    """The pipeline's arguments for images that are sampled together.

    Returns:
        Tensors stacked to (B, ...), everything else as lists of B; the settings; ``generator``.
    """
    arguments: dict[str, Any] = dict(requests[0].settings)
    for name in requests[0].inputs:
        values = [request.inputs[name] for request in requests]
        is_stack = all(isinstance(value, Tensor) for value in values)
        arguments[name] = torch.stack(values) if is_stack else values
    arguments["generator"] = [request.generator for request in requests]
    return arguments
