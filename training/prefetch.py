"""Batches made ahead of the steps that take them, and their way to the device."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic

import torch
from accelerate.utils import recursively_apply, send_to_device

from kinema.training.task import Batch


class Prefetcher(Generic[Batch]):
    """Batches in order, made ahead by threads (`make` is pure, so nothing depends on how they run).

    Args:
        make: the batch of a step.
        start: the first step.
        stop: the step after the last.
        num_workers: threads; 0 makes each batch when it is asked for.
        pin: whether to put batches into page-locked memory, which a CUDA device copies from while it computes.
    """

    def __init__(
        self, make: Callable[[int], Batch], start: int, stop: int, num_workers: int, *, pin: bool = False
    ) -> None:
        self.make = partial(_make_pinned, make) if pin else make
        self.position, self.stop = start, stop
        self.ahead = 2 * num_workers
        self.pool = ThreadPoolExecutor(num_workers, "batch") if num_workers else None
        self.futures: dict[int, Any] = {}

    def next(self) -> Batch:
        """The next batch."""
        step, self.position = self.position, self.position + 1
        if self.pool is None:
            return self.make(step)
        for s in range(step, min(step + self.ahead + 1, max(self.stop, step + 1))):
            if s not in self.futures:
                self.futures[s] = self.pool.submit(self.make, s)
        return self.futures.pop(step).result()

    def __enter__(self) -> "Prefetcher[Batch]":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch (tensors in dictionaries, lists and tuples) on a device."""
    return send_to_device(batch, device, non_blocking=True)


def _make_pinned(make: Callable[[int], Any], step: int) -> Any:
    return recursively_apply(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory(), make(step))
