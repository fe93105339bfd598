"""Images per second, of real images only, after the first batch and with the device waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(kw_only=True)
class SamplingStats:
    """What sampling has done so far.

    Attributes:
        images: Images that were returned.
        filler_images: Images that filled a last batch up and were dropped.
        batches: Calls of the pipeline.
        denoising_steps: Steps of the scheduler.
        timed_images: Images after the warm-up, which is the first call of the pipeline in a run.
        seconds: Time that they took, the wait for the device included.
        scheduler_host_reads: Device values that the scheduler read on the host in the first batch.
    """

    images: int = 0
    filler_images: int = 0
    batches: int = 0
    denoising_steps: int = 0
    timed_images: int = 0
    seconds: float = 0.0
    scheduler_host_reads: int = 0
    _started: float | None = None
    _images_before: int = 0

    @property
    def images_per_second(self) -> float | None:
        """None until an image was timed."""
        if not self.timed_images or self.seconds <= 0:
            return None
        return self.timed_images / self.seconds

    @property
    def is_timing(self) -> bool:
        """Whether images are being timed."""
        return self._started is not None

    def restart_timing(self) -> None:
        """Forget a start whose end never came; what was timed before stays."""
        self._started = None

    def start_timing(self) -> None:
        """The warm-up is over and the device has been waited for."""
        self._started = time.perf_counter()
        self._images_before = self.images

    def stop_timing(self) -> None:
        """All is done and the device has been waited for."""
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self.timed_images += self.images - self._images_before
            self._started = None

    def as_dict(self) -> dict[str, float]:
        """The figures by name, for a logger."""
        figures: dict[str, float] = {
            name: getattr(self, name)
            for name in ("images", "filler_images", "batches", "denoising_steps")
        }
        figures["scheduler_host_reads"] = self.scheduler_host_reads
        rate = self.images_per_second
        if rate is not None:
            figures["images_per_second"] = rate
        return figures
