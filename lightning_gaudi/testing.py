"""Budgets for what code makes the device do: in tests, in CI, without a card.

With pytest, which finds the marker by itself where this package is installed::

    @pytest.mark.hpu_budget(compilations=3, host_reads=0)
    def test_my_step_keeps_its_shapes(): ...

or around any block::

    with hpu_budget(host_reads=0):
        trainer.fit(module, data)

On the emulated HPU (``LIGHTNING_GAUDI_EMULATOR=1``) the message names the lines and reasons, and a
block begins with an empty recipe cache, so that what it compiles does not depend on what ran
before. A card counts only what it has not compiled earlier in the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_gaudi.callbacks.monitor.budget import LIMITED, exceeded, message_for
from lightning_gaudi.callbacks.monitor.ledger import Ledger
from lightning_gaudi.callbacks.monitor.options import check_limits
from lightning_gaudi.errors import BudgetExceededError, ConfigurationError
from lightning_gaudi.runtime import device
from lightning_gaudi.runtime.recording import Counts, Recording, open_recording
from lightning_gaudi.runtime.step import mark_step

__all__ = ["Spending", "hpu_budget"]

_STAGE = "block"


class Spending:
    """What a block has made the device do so far, with the lines and reasons.

    Attributes:
        ledger: The books.
    """

    def __init__(self, recording: Recording) -> None:
        self.ledger = Ledger(warmup_steps=0)
        self._recording = recording
        self.look()

    @property
    def counts(self) -> Counts:
        """The counts until now; ops that wait for a ``mark_step`` are not compiled yet."""
        self.look()
        return self.ledger.total

    def look(self) -> None:
        """Book what is new."""
        taken = self._recording.take()
        if not self.ledger.rows:
            self.ledger.add_step(_STAGE, taken)
        else:
            self.ledger.add_to_step(_STAGE, taken)


@contextmanager
def hpu_budget(
    *,
    compilations: int | None = None,
    host_reads: int | None = None,
    host_copies: int | None = None,
    cpu_fallbacks: int | None = None,
    where: str = "in the block",
) -> Iterator[Spending]:
    """Limit what a ``with`` block may make the device do.

    In lazy mode pending ops are flushed before the block and at its end, so that it pays for its
    own. Where the block raises, that reaches the caller and no budget is checked.

    Args:
        compilations: How many graphs it may compile; None for any number, as for the others.
        host_reads: How often the host may wait for a value. On a card a dispatch mode counts.
        host_copies: How many tensors may be copied to the host.
        cpu_fallbacks: How many ops may run on the CPU for want of a kernel.
        where: What messages call the block.

    Yields:
        What it has spent so far.

    Raises:
        BudgetExceededError: It did more. The message names the lines and what to change.
        ConfigurationError: A limit is no whole number of 0 or more, or there is none.
        GaudiNotAvailableError: There is neither an HPU nor the emulated one.
    """
    limits = check_limits(
        compilations=compilations,
        host_reads=host_reads,
        host_copies=host_copies,
        cpu_fallbacks=cpu_fallbacks,
    )
    if not limits:
        raise ConfigurationError(
            f"hpu_budget needs a limit: one or more of {', '.join(LIMITED)}, such as host_reads=0."
        )
    device.require()
    mark_step()
    looks = host_reads is not None or host_copies is not None
    recording = open_recording(host_reads=looks, empty_cache=True)
    try:
        spending = Spending(recording)
        yield spending
        mark_step()
        spending.look()
    finally:
        recording.close()
    found = exceeded(limits, spending.ledger.total)
    messages = [
        message_for(
            excess,
            f"hpu_budget({excess.name}={excess.limit})",
            where,
            spending.ledger.worst(excess.kind),
        )
        for excess in found
    ]
    if messages:
        raise BudgetExceededError("\n".join(messages))
