"""What to change, for each cause of a compilation, a host read, a copy or a CPU fallback."""

from __future__ import annotations

import re

_LENGTHS = (
    "Give batches a few fixed lengths: choose_buckets and BucketCollator in lightning_gaudi.data "
    "(with BucketBatchSampler), or pad everything to one length."
)
_ROWS = (
    "The number of rows changes. Drop the smaller last batch (drop_last=True), fill it up "
    "(BucketBatchSampler), or crop on the host before the batch reaches the device."
)
_STRIDES = "Only the memory layout changes. Call .contiguous() before the batch reaches the step."
_DTYPE = "The dtype changes. Convert the batch to one dtype in the dataset or the collate function."
_CONSTANT = (
    "A Python number is part of the graph, so each new value is a new graph. Pass it as a tensor "
    "(a buffer that is filled in place, or torch.tensor(value, device=...)), or keep it the same."
)
_OPS = (
    "The step takes another path. Take the same ops every time (torch.where, masks), or let each "
    "path happen during the warm-up."
)
_FIRST = (
    "Nothing like it ran before. If it comes once, allow for it: in the warm-up, or in the budget. "
    "If it comes again and again, its ops change each time."
)
_FOLLOWS = (
    "A backward, an optimizer step or a metric update is compiled anew because what your step "
    "gives it is new. Fix the lines of yours in the same steps, and this goes away."
)
_VALUE = (
    "Take it out of the step: log the tensor itself (self.log(name, tensor)), add up on the device "
    "and read once an epoch, and decide with torch.where in place of if."
)
_EQUAL = (
    "Where your line compares nothing, it is HPUGraphCallback's check of the first padded batch of "
    "each shape: fill up the smaller last batch (BucketBatchSampler), drop it (drop_last=True), "
    "or allow for it. Else compare on the device and read once an epoch."
)
_SHAPE = (
    "Its result's shape depends on data, so the host must wait. Use a fixed shape: torch.where or "
    "masked_fill in place of selecting, a mask that is multiplied in place of indexing."
)
_PRINT = "Printing waits for the device. Print less often, or outside the step."
_COPY = (
    "The host waits for the device here. Keep the tensor on the device until the epoch's end, or "
    "copy once for many steps."
)
_PREDICTIONS = (
    "The Trainer moves what a predict step returns to the host. Return only what you need; "
    "a BasePredictionWriter with return_predictions=False keeps none of it."
)
_FALLBACK = (
    "The card has no kernel for this op, so each call ends the graph, copies to the host and back. "
    "Use another op, or do it on the host before the batch moves to the device. "
    "PT_HPU_PLACE_ON_CPU=none makes it an error."
)
_PROGRESS_BAR = (
    "The progress bar and logged values are read by Lightning. Log less often "
    "(log_every_n_steps), with prog_bar=False, or refresh the bar less often "
    "(RichProgressBar/TQDMProgressBar(refresh_rate=...), enable_progress_bar=False)."
)
_LIBRARY = "A library does this on its own. See whether it has a setting that turns it off."
_UNKNOWN = (
    "A card does not say why. Run the same script on the emulated HPU "
    "(LIGHTNING_GAUDI_EMULATOR=1), which names the line and the difference."
)
_MASKS = (
    "Transformers looks at the attention mask on the host. TransformersModule in "
    "lightning_gaudi.modules builds masks on the device, and so does any model after "
    "build_masks_on_device(model) from lightning_gaudi.modules.attention."
)
_SHAPE_READS = (
    "nonzero",
    "argwhere",
    "masked_select",
    "unique",
    "where",
    "indexing with a mask",
    "bincount",
    "repeat_interleave",
    "nms",
)


def remedy_for(
    kind: str,
    reason: str,
    cause: str,
    is_library: bool,
    line: str,
    shapes: list[tuple[str, str]],
) -> str:
    """What to change.

    Args:
        kind: Of the finding.
        reason: The kind of reason of a compilation.
        cause: The op or call.
        is_library: Whether a library did it on its own.
        line: The line that did it, of a library perhaps.
        shapes: Shapes that were new, with those before.
    """
    if kind == "compilation":
        if is_library and reason in ("shapes", "constant"):
            return _FOLLOWS
        return _for_compilation(reason, shapes)
    if kind == "cpu_fallback":
        return _FALLBACK
    if kind == "host_copy":
        is_loop = is_library and "/lightning/" in line.replace("\\", "/")
        return _PREDICTIONS if is_loop else _COPY
    if is_library:
        return _PROGRESS_BAR if "/lightning/" in line.replace("\\", "/") else _LIBRARY
    if "/transformers/" in line.replace("\\", "/") and "mask" in line:
        return _MASKS
    if cause.startswith("print"):
        return _PRINT
    if cause == "equal":
        return _EQUAL
    return _SHAPE if cause.split(".")[0].startswith(_SHAPE_READS) else _VALUE


def _for_compilation(reason: str, shapes: list[tuple[str, str]]) -> str:
    if reason == "shapes":
        # A vector does not tell whether rows or lengths change, unless nothing else does.
        telling = [pair for pair in shapes if len(_sizes(pair[0])) > 1] or shapes
        return " ".join(dict.fromkeys(_for_shapes(now, before) for now, before in telling))
    return {"constant": _CONSTANT, "ops": _OPS, "first": _FIRST}.get(reason, _UNKNOWN)


def _for_shapes(now: str, before: str) -> str:
    a, b = _sizes(now), _sizes(before)
    if a == b:
        return _STRIDES if " with strides " in now else _DTYPE
    # The first dimension is the batch's.
    is_rows_only = len(a) == len(b) and len(a) > 1 and a[1:] == b[1:]
    return _ROWS if is_rows_only else _LENGTHS


def _sizes(shape: str) -> list[str]:
    found = re.match(r"\[([^\]]*)\]", shape)
    return found[1].split(", ") if found else []
