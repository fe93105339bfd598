"""Lets stock Transformers models be captured: they are told that a graph is being made.

Given a 2-D attention mask, most models ask on the host whether anything is padded at all, and leave
the mask out where nothing is (``transformers/masking_utils.py``). A graph would keep the first
batch's answer. The library itself has the remedy: while anything traces or captures the forward
(``is_tracing``), it does not look and always builds the mask. It knows of compilers and of CUDA and
XPU streams that capture; of an HPU it does not. So during a capture one of its questions is
answered with yes:

- ``transformers.utils.import_utils.is_cuda_stream_capturing``, which ``is_tracing`` asks, where
  that function exists;
- else ``is_torchdynamo_compiling`` as ``masking_utils`` sees it (4.53 to 4.56).

And `compile_compatible_method_lru_cache` is told that it is compiling, since what it keeps from one
call to the next would be memory of the graph.

These are names without an underscore, but replacing them is no contract. It happens here only, for
the time of a capture only, and where a version has none of them nothing is replaced: the guard then
refuses the read and names its line. The wider switch, ``torch.compiler._is_compiling_flag``, is
private and not used: it also sends ``nn.TransformerEncoder`` and models of the T5 and BART families
down other paths. All that asks ``is_tracing`` in 5.23 was looked through: masks and flash
attention's lengths, which are computed without a look at the host; a warning about padding without
a mask, which is left out; Pixio's position embeddings, which are resized also where the size is the
same already, to the same values.

The other thing here is hooks. A model that was once asked for hidden states or attentions keeps
hooks of the library's own (``transformers/utils/output_capturing.py``) on its layers. They do
nothing unless a model further out, whose forward is running, gathers its layers' outputs. So they
need not forbid replay, as other hooks do, while nobody gathers. Whether somebody does is told by a
name with an underscore; where a version lacks it, these hooks forbid replay like any other.

The result is that of op by op: a mask that hides nothing adds zero to the scores. Where op by op
leaves such a mask out, another attention kernel may run, and the last bits may differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

# Module and name, best first: the first that exists stops the look at the mask.
_MASK_QUESTIONS = (
    ("transformers.utils.import_utils", "is_cuda_stream_capturing"),
    ("transformers.masking_utils", "is_torchdynamo_compiling"),
)
_CACHE_QUESTION = ("transformers.pytorch_utils", "is_torchdynamo_compiling")
_GATHERING = "transformers.utils.output_capturing"


@contextmanager
def masks_are_built() -> Iterator[None]:
    """Have Transformers build attention masks without looking at them, for the time of the block.

    Does nothing where transformers is not imported. Imports nothing.
    """
    with ExitStack() as stack:
        for module, name in (*_first_known(_MASK_QUESTIONS), *_first_known((_CACHE_QUESTION,))):
            stack.enter_context(patch.object(module, name, _yes))
        yield


def is_idle_hook(hook: Any) -> bool:
    """Whether a forward hook is Transformers' own for gathering outputs, and nobody gathers now."""
    if getattr(hook, "__module__", None) != _GATHERING:
        return False
    collector: Any = getattr(sys.modules.get(_GATHERING), "_active_collector", None)
    return hasattr(collector, "get") and not collector.get()  # None, or asked for nothing


def _first_known(questions: tuple[tuple[str, str], ...]) -> list[tuple[Any, str]]:
    for module_name, name in questions:
        module = sys.modules.get(module_name)
        if callable(getattr(module, name, None)):
            return [(module, name)]
    return []


def _yes(*args: Any, **kwargs: Any) -> bool:
    return True
