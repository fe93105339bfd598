"""Add to an error that means "no memory left" what is known, and what helps."""

from __future__ import annotations

from lightning_gaudi.graphs.kept import kept
from lightning_gaudi.runtime import device
from lightning_gaudi.runtime.out_of_memory import is_out_of_memory

_GIB = 2**30
_MARK = "_lightning_gaudi_note"


def explain_out_of_memory(error: BaseException) -> None:
    """Add a note to the error, if it says that the HPU has no memory left; once.

    The error stays the same object of the same type. Python 3.11 and newer show the note below its
    message; before that it becomes a part of the message.

    Args:
        error: Any exception. Ask where it was caught: later, graphs and tensors may be gone.
    """
    if not is_out_of_memory(error) or hasattr(error, _MARK):
        return
    note = _note()
    setattr(error, _MARK, note)
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])


def _note() -> str:
    stats = device.memory_stats()
    used, peak, limit = (_gib(stats.get(name, 0)) for name in ("InUse", "MaxInUse", "Limit"))
    number, num_bytes = kept()
    lines = [
        f"The HPU is out of memory: {used} in use, {peak} at the peak, {limit} in all."
        + (f" {number} HPU graphs hold {_gib(num_bytes)} of it." if number else ""),
        "What helps: a smaller batch (lightning.pytorch.tuner.Tuner.scale_batch_size finds one); "
        "precision='bf16-true' or 'bf16-mixed'; in a fit accumulate_grad_batches with a smaller "
        "batch, or gradient checkpointing.",
    ]
    if number:
        lines.append(
            "For graphs: disable_tensor_cache=True, with which they keep their outputs alone; a "
            "smaller max_graphs; fewer or smaller buckets; no warmup of shapes that do not come."
        )
    return "\n".join(lines)


def _gib(num_bytes: int) -> str:
    return (
        f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
    )
