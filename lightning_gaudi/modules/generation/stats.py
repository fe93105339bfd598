"""What generation did and how fast, with what happens once left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class GenerationStats:
    """Counts and times of one module since it was made, or since ``reset``.

    Times leave out warm-up: a step in which a graph was captured, and the first of its kind (its
    bucket's first prefill, the first decoding step). Its tokens are left out too.

    Attributes:
        num_batches: Batches as the device had them, filled up to the held batch size.
        num_prompts: Prompts answered.
        num_tokens: New tokens of these, up to the one that ends a row and with it.
        num_steps: Forwards of the model: a prefill a batch, and the decoding steps.
        num_host_reads: Times that the host waited for a value: whether all rows have ended, and at
            the end of each batch the tokens.
        num_captures: Graphs captured.
        measured_tokens: New tokens of the steps that were timed.
        measured_seconds: Host time of these, the device waited for.
        measured_prefills: Prefills that were timed.
        first_token_seconds: Time from a batch's start to its first tokens, summed over these.
    """

    num_batches: int = 0
    num_prompts: int = 0
    num_tokens: int = 0
    num_steps: int = 0
    num_host_reads: int = 0
    num_captures: int = 0
    measured_tokens: int = 0
    measured_seconds: float = 0.0
    measured_prefills: int = 0
    first_token_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens a second, all rows together; None while nothing but warm-up has run."""
        return self.measured_tokens / self.measured_seconds if self.measured_tokens else None

    @property
    def time_to_first_token_s(self) -> float | None:
        """Seconds from a batch's start to its first tokens, on average; None as above."""
        if not self.measured_prefills:
            return None
        return self.first_token_seconds / self.measured_prefills

    def as_dict(self) -> dict[str, float]:
        """Names and numbers for loggers; what is not known is left out."""
        values: dict[str, float | None] = {
            "batches": self.num_batches,
            "prompts": self.num_prompts,
            "tokens": self.num_tokens,
            "steps": self.num_steps,
            "host_reads": self.num_host_reads,
            "captures": self.num_captures,
            "tokens_per_second": self.tokens_per_second,
            "time_to_first_token_s": self.time_to_first_token_s,
        }
        return {name: value for name, value in values.items() if value is not None}


class Stopwatch:
    """Times one batch's steps, but for those of warm-up.

    Consecutive steps are timed together, for waiting for the device after each would slow it down.

    Args:
        synchronize: Waits for the device.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._started = time.perf_counter()
        self._measured: list[int] = []
        self._pending: list[int] = []
        self.seconds = 0.0
        self.first_token_seconds: float | None = None

    def step(self, number: int, *, is_warmup: bool) -> None:
        """A step has been given to the device.

        Args:
            number: Which of the batch, 0 for the prefill.
            is_warmup: Whether it is left out.
        """
        if number == 0 or is_warmup:
            self._synchronize()
        if is_warmup:
            self._pending = []  # not to be told apart from it
            self._started = time.perf_counter()
            return
        self._pending.append(number)
        if number == 0:
            self.settle()
            self.first_token_seconds = self.seconds

    def settle(self) -> None:
        """The device has been waited for."""
        now = time.perf_counter()
        if self._pending:
            self.seconds += now - self._started
            self._measured += self._pending
        self._pending = []
        self._started = now

    def tokens(self, lengths: Sequence[int]) -> int:
        """New tokens that the timed steps have made.

        Args:
            lengths: New tokens of each row that was asked for.
        """
        return sum(number < length for length in lengths for number in self._measured)
