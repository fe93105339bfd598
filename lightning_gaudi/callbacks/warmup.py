"""Which calls to capture before the first batch comes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_gaudi.data.collate import is_target
from lightning_gaudi.errors import ConfigurationError

Call = dict[str, Any] | tuple[Any, ...]


def warmup_calls(
    warmup: Any, forwards: Mapping[str, Callable[..., Any]], trainer: Trainer, stage: str
) -> dict[str, list[Call]]:
    """The calls to capture for each target.

    Args:
        warmup: As for `HPUGraphCallback`; not None.
        forwards: The targets' forwards by name.
        trainer: The trainer, for its dataloaders.
        stage: The stage.

    Returns:
        For each target keyword arguments (a dict) or positional ones (a tuple). Tensors are on the
        ``"meta"`` device.

    Raises:
        ConfigurationError: It names no target, is no shape, or there are no buckets.
    """
    if warmup == "buckets":
        calls = list(_bucket_calls(trainer, stage))
        # A module may say what it makes of a batch before it calls a target.
        own = getattr(trainer.lightning_module, "hpu_graph_arguments", None)
        return {
            name: [own(name, call) if own else _accepted(forward, name, call) for call in calls]
            for name, forward in forwards.items()
        }
    by_target = _by_target(warmup, forwards)
    return {
        name: [_call(call, name) for call in _as_calls(calls)] for name, calls in by_target.items()
    }


def _by_target(warmup: Any, forwards: Mapping[str, Callable[..., Any]]) -> Mapping[str, Any]:
    """The specification of each target: of the only one where no names are given."""
    names = ", ".join(map(repr, forwards))
    is_by_target = isinstance(warmup, Mapping) and (
        any(map(_is_calls, warmup.values())) or warmup.keys() <= forwards.keys()
    )
    if is_by_target:
        unknown = [name for name in warmup if name not in forwards]
        if unknown:
            raise ConfigurationError(
                f"warmup names a target {unknown[0]!r}, but the targets are {names}."
            )
        return dict(warmup)
    if len(forwards) != 1:
        raise ConfigurationError(
            f"warmup must say for which target its shapes are, since there are several: {names}. "
            "Write {target: {argument: shape}}, or name one target with targets=[...]."
        )
    return {next(iter(forwards)): warmup}


def _is_calls(value: Any) -> bool:
    """Whether a value is one call by argument name, or a list of calls."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, (list, tuple)) and any(
        isinstance(item, (Mapping, list, tuple)) for item in value
    )


def _as_calls(spec: Any) -> Sequence[Any]:
    return [spec] if isinstance(spec, Mapping) or _is_shape(spec) else list(spec)


def _is_shape(spec: Any) -> bool:
    return isinstance(spec, (list, tuple)) and bool(spec) and type(spec[0]) is int


def _call(spec: Any, target: str) -> Call:
    if isinstance(spec, Mapping):
        return {str(name): _argument(value, target) for name, value in spec.items()}
    if _is_shape(spec):
        return (_argument(spec, target),)
    if isinstance(spec, (list, tuple)):
        return tuple(_argument(value, target) for value in spec)
    raise ConfigurationError(
        f"warmup for target {target!r}: a call must be a mapping of argument names to shapes, or a "
        f"list of shapes of positional arguments, but it is {spec!r}."
    )


def _argument(value: Any, target: str) -> Any:
    """A tensor on the meta device for a shape, with the dtype's name as its last item if given."""
    if not isinstance(value, (list, tuple, torch.Size)):
        return value  # a constant, or a tensor
    *sizes, last = value or (None,)
    dtype = torch.get_default_dtype()
    if isinstance(last, (str, torch.dtype)):
        found = last if isinstance(last, torch.dtype) else getattr(torch, last, None)
        if not isinstance(found, torch.dtype):
            raise ConfigurationError(
                f"warmup for target {target!r}: {last!r} is no dtype of torch, in {value!r}."
            )
        dtype = found
    else:
        sizes = [*sizes, last]
    if not all(type(size) is int and size >= 0 for size in sizes) or value == []:
        raise ConfigurationError(
            f"warmup for target {target!r}: {value!r} is no shape. A shape is a list of whole "
            "numbers, with the dtype's name at its end where it is not the default one: "
            "[8, 128, 'int64']."
        )
    return torch.empty(sizes, dtype=dtype, device="meta")


def _bucket_calls(trainer: Trainer, stage: str) -> Iterator[dict[str, Any]]:
    """One call for each dataloader and bucket: a batch of the data in each bucket's length."""
    seen: set[Any] = set()
    num_buckets = 0
    for loader in _dataloaders(trainer, stage):
        buckets = _buckets_of(loader, trainer)
        num_buckets += len(buckets)
        for bucket, size in zip(buckets, _batch_sizes_of(loader, buckets), strict=True):
            batch = _example_batch(loader, size)
            for call in _calls_of_bucket(loader, batch, buckets, bucket):
                key = str(
                    [(n, getattr(v, "shape", v), getattr(v, "dtype", 0)) for n, v in call.items()]
                )
                if key not in seen:
                    seen.add(key)
                    yield call
    if not num_buckets:
        raise ConfigurationError(
            "warmup='buckets' needs buckets, and neither the datamodule nor a dataloader's "
            "batch_sampler or collate_fn has an attribute 'buckets'. Use BucketBatchSampler and "
            "BucketCollator, or give the shapes: warmup={'input_ids': [8, 128, 'int64']}."
        )


def _calls_of_bucket(
    loader: Any, batch: Mapping[str, Any], buckets: list[int], bucket: int
) -> Iterator[dict[str, Any]]:
    """Calls of a bucket's length, one for each bucket of targets where these have their own."""
    if not batch:
        return
    length = _length_of(batch, buckets)
    target_buckets = getattr(loader.collate_fn, "label_buckets", None)
    for target_bucket in target_buckets or [None]:
        call = {}
        for name, value in batch.items():
            if target_bucket is not None and is_target(name):
                call[name] = _resized(value, value.shape[1], target_bucket)
            elif name == "labels" and isinstance(value, Tensor) and value.is_floating_point():
                call[name] = _resized(value, -1, -1)  # of rows, however many there are in each
            else:
                call[name] = _resized(value, length, bucket)
        yield call


def _dataloaders(trainer: Trainer, stage: str) -> list[Any]:
    loaders = {
        "validate": trainer.val_dataloaders,
        "test": trainer.test_dataloaders,
        "predict": trainer.predict_dataloaders,
    }.get(stage)
    return list(flat_dataloaders(loaders))


def flat_dataloaders(loaders: Any) -> Iterator[Any]:
    """Yield the dataloaders of a stage one by one, in Lightning's order."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        for loader in loaders:
            yield from flat_dataloaders(loader)
    else:
        yield loaders


def _buckets_of(loader: Any, trainer: Trainer) -> list[int]:
    places: tuple[Any, ...] = (
        getattr(loader, "batch_sampler", None),
        getattr(loader, "collate_fn", None),
        getattr(trainer, "datamodule", None),
    )
    found = next((p.buckets for p in places if getattr(p, "buckets", None)), ())
    return [int(bucket) for bucket in found]


def _batch_sizes_of(loader: Any, buckets: list[int]) -> list[int]:
    """Rows in a batch of each bucket."""
    sampler = getattr(loader, "batch_sampler", None)
    sizes = getattr(sampler, "batch_sizes", None)  # of a token budget, one for each bucket
    if sizes is not None and len(sizes) == len(buckets):
        return [int(size) for size in sizes]
    size = getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None) or 1
    return [size] * len(buckets)


def _length_of(batch: Mapping[str, Any], buckets: list[int]) -> int:
    """The bucket that a batch is in."""
    # The token ids first: another field may be as wide as some bucket.
    fields = [batch.get("input_ids"), *batch.values()]
    lengths = [t.shape[1] for t in fields if isinstance(t, Tensor) and t.dim() > 1]
    for length in lengths:
        if length in buckets:
            return length
    raise ConfigurationError(
        f"warmup='buckets': no tensor of a batch has one of the buckets {buckets} as its "
        f"second dimension; they are {lengths}. Give the shapes themselves."
    )


def _example_batch(loader: Any, size: int) -> Mapping[str, Any]:
    """A batch of the data, made without drawing from the dataloader; empty where there is none."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset):
        raise ConfigurationError(
            "warmup='buckets' makes a batch of rows by their numbers, and "
            f"{type(loader).__name__} over {type(dataset).__name__} has none. Use a DataLoader "
            "with a map-style data set, or give the shapes: "
            "warmup={'input_ids': [8, 128, 'int64']}."
        )
    if not len(dataset):
        return {}
    batch = loader.collate_fn([dataset[index % len(dataset)] for index in range(size)])
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            "warmup='buckets' needs batches that are mappings of argument names to tensors, but "
            f"the dataloader's are of type {type(batch).__name__}. Give the shapes themselves."
        )
    return batch


def _resized(value: Any, length: int, bucket: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    shape = list(value.shape)
    if len(shape) > 1 and shape[1] == length:
        shape[1] = bucket
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _accepted(forward: Callable[..., Any], target: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that the target takes by name."""
    parameters = inspect.signature(forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = {n: v for n, v in call.items() if (n in parameters or takes_any)}
    if not accepted:
        raise ConfigurationError(
            f"warmup='buckets': target {target!r} takes none of a batch's {list(call)} by name. "
            "Name the target that does with targets=[...], or give the shapes themselves."
        )
    return accepted
