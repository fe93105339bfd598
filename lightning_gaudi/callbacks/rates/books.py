"""What one stage did and how long it took, in windows, with warm-up left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Work:
    """Batches with the time that they took.

    Attributes:
        batches: How many.
        samples: How many rows they had; None where that is not known of all.
        tokens: How many tokens; None where that is not known of all.
        seconds: Host time.
    """

    batches: int = 0
    samples: int | None = 0
    tokens: int | None = 0
    seconds: float = 0.0

    def add(self, other: Work) -> None:
        """Add another's batches and time."""
        self.batches += other.batches
        self.samples = _sum(self.samples, other.samples)
        self.tokens = _sum(self.tokens, other.tokens)
        self.seconds += other.seconds

    def rates(self) -> dict[str, float]:
        """``batches_per_second``, ``samples_per_second`` and ``tokens_per_second``, those known."""
        if not self.batches or self.seconds <= 0:
            return {}
        return {
            f"{name}_per_second": count / self.seconds
            for name, count in (
                ("batches", self.batches),
                ("samples", self.samples),
                ("tokens", self.tokens),
            )
            if count is not None
        }


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


class StageBooks:
    """Counts one stage's batches, and times them while it runs.

    Time goes from the end of the last warm-up step to the ends of the windows, less the pauses.

    Args:
        num_warmup: The first steps, which are not counted.
        clock: Tells the time in seconds.

    Attributes:
        num_steps: Steps so far, those of the warm-up too.
        window: What has been done since the last `end_window`, without its time.
        total: All windows.
    """

    def __init__(self, num_warmup: int, clock: Callable[[], float]) -> None:
        self._num_warmup = num_warmup
        self._clock = clock
        self._started: float | None = None
        self._is_running = False
        self._seconds = 0.0
        self.num_steps = 0
        self.window = Work()
        self.total = Work()

    @property
    def is_warm(self) -> bool:
        """Whether steps are counted now."""
        return self.num_steps >= self._num_warmup

    @property
    def ends_warmup(self) -> bool:
        """Whether the next step is the last of the warm-up."""
        return self.num_steps + 1 == self._num_warmup

    def run(self) -> None:
        """The stage runs from now on."""
        self._is_running = True
        self._started = self._clock() if self.is_warm else None

    def pause(self) -> None:
        """Other things run from now on."""
        self._take_time()
        self._is_running = False
        self._started = None

    def step(self, samples: int | None, tokens: int | None) -> None:
        """A step has ended.

        Args:
            samples: The rows of its batch, if known.
            tokens: Its tokens, if known.
        """
        was_warm = self.is_warm
        self.num_steps += 1
        if was_warm:
            self.window.add(Work(batches=1, samples=samples, tokens=tokens))
        elif self.is_warm and self._is_running:
            self._started = self._clock()

    def end_window(self) -> Work:
        """End the window; the next one begins.

        Returns:
            What was done in it.
        """
        self._take_time()
        ended, self.window = self.window, Work()
        ended.seconds, self._seconds = self._seconds, 0.0
        self.total.add(ended)
        return ended

    def _take_time(self) -> None:
        if self._started is not None:
            now = self._clock()
            self._seconds += now - self._started
            self._started = now
