"""What the user reads where a callable cannot be captured."""

from __future__ import annotations

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs.structure import UnsupportedValueError

# What the bridge says where an op without a kernel runs under capture (HABANA.md, "HPU graphs").
_FALLBACK_TEXT = "cpu fallback is not supported during hpu graph capturing"
_WITHOUT_GRAPHS = "To run it without graphs: on_failure='eager'."


class CannotRerunError(CaptureError):
    """A capture failed, and running the callable once more would not be right either."""


class ReplacedWeightError(CaptureError):
    """A forward has put something else in the place of a weight; by then that is undone."""


def refusal_of(name: str, error: Exception, line: str) -> CaptureError | None:
    """What to raise in place of an error from a capture.

    Args:
        name: What is being captured.
        error: What came out of it.
        line: The user's line of the op that failed.

    Returns:
        The error itself where it says it all; None where it is the user's own.
    """
    if isinstance(error, CaptureError):
        return error
    if isinstance(error, UnsupportedValueError):
        cache = " For Transformers to return no cache, pass use_cache=False."
        return CaptureError(
            f"cannot capture {name} as an HPU graph: it returns {error.what}, and only tensors in "
            "tuples, lists, mappings and dataclasses can be refreshed by a replay."
            f"{cache if 'Cache' in error.what else ''} {_WITHOUT_GRAPHS}"
        )
    if _FALLBACK_TEXT in str(error):
        return CaptureError(
            f"cannot capture {name} as an HPU graph, at {line}: {error} {_WITHOUT_GRAPHS}"
        )
    return None


def cannot_rerun(refusal: CaptureError) -> CannotRerunError:
    """What to raise where ``on_failure="eager"`` would run a forward twice that wrote in place."""
    return CannotRerunError(
        f"{refusal} But on_failure='eager' cannot help here: until then the forward had written "
        "to the module's parameters, and would write twice."
    )


def replaced_weight(name: str, weight: str) -> ReplacedWeightError:
    """What to raise where a forward puts another tensor in the place of a weight.

    Args:
        name: What is being captured.
        weight: The name of the weight in its module.
    """
    return ReplacedWeightError(
        f"cannot capture {name} as an HPU graph: it replaces {weight!r} in its module, which a "
        f"replay does not. Write to it in place (self.{weight}.copy_(...)). {_WITHOUT_GRAPHS}"
    )


def shared_memory(name: str, with_what: str) -> CaptureError:
    """What to raise where an in-place write would show in another argument or in a weight.

    Args:
        name: What is being captured.
        with_what: What shares memory, in words.
    """
    return CaptureError(
        f"cannot capture {name} as an HPU graph: it writes in place, and {with_what}, which the "
        f"private copies in a graph do not. Pass clones. {_WITHOUT_GRAPHS}"
    )
