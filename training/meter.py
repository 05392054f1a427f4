"""What the log says about the last steps: means of the losses, and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Meter:
    """Means since the last line of the log, and the time that steps take.

    Sums stay on the device until they are asked for.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._steps, self._seconds, self._waited, self._clips = 0, 0.0, 0.0, 0

    def start(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def got_batch(self) -> None:
        """The step has its batch; time since `start` was spent waiting for data."""
        self._waited += time.monotonic() - self._began

    def add(self, terms: dict[str, Tensor], taken: Tensor) -> None:
        """Adds terms of the step.

        Args:
            terms: one number each.
            taken: 1 where they count, 0 where the step was left out.
        """
        for name, value in terms.items():
            value = torch.where(taken > 0, value.detach().float(), 0.0)
            total, count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + value, count + taken)

    def end(self, num_clips: int) -> None:
        """A step of so many clips ends."""
        self._steps += 1
        self._clips += num_clips
        self._seconds += time.monotonic() - self._began

    @contextmanager
    def catching_up(self) -> Iterator[None]:
        """Within it, the device finishes steps: time that belongs to them."""
        began = time.monotonic()
        yield
        self._seconds += time.monotonic() - began

    def means(self) -> dict[str, float]:
        """Means since the last call; then starts anew.

        Returns:
            The mean of each term over the steps that were taken, `clips_per_second`, `seconds_per_step`, and
            `data_wait`, the share of the time in which the loop waited for a batch.
        """
        began = time.monotonic()
        totals, counts = self._read()
        seconds = self._seconds + time.monotonic() - began  # the device may have had steps to finish
        numbers = {
            name: total / count for name, total, count in zip(self._sums, totals, counts, strict=True) if count > 0
        }
        numbers["clips_per_second"] = self._clips / max(seconds, 1e-9)
        numbers["seconds_per_step"] = seconds / self._steps
        numbers["data_wait"] = self._waited / max(seconds, 1e-9)
        self.reset()
        return numbers

    def _read(self) -> tuple[list[float], list[float]]:
        """Totals and counts of all terms, in one transfer."""
        if not self._sums:
            return [], []
        totals, counts = zip(*self._sums.values(), strict=True)
        read = torch.stack((torch.stack(totals), torch.stack(counts))).tolist()
        return read[0], read[1]
