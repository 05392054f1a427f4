"""Exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn

from kinema.machine import readable
from kinema.training.foreach import foreach_add_, foreach_copy_, foreach_lerp_, foreach_mul_, foreach_sub, in_chunks


class EMA:
    """An averaged copy of a model, in float32, on the model's device.

    After update number k (from 1) the average is `d avg + (1 - d) weights` with `d = min(decay, k / (k + 9))`: early
    on the average is short, so that the first weights are soon forgotten. Buffers are copied.

    Attributes:
        model: the averaged copy, in evaluation mode, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._num_updates: Tensor | int = 0

    @property
    def num_updates(self) -> int:
        """Updates so far; asking waits for the device where some depended on it."""
        return int(self._num_updates)

    @num_updates.setter
    def num_updates(self, number: int) -> None:
        self._num_updates = number

    @torch.no_grad()
    def update(self, model: nn.Module, taken: Tensor | None = None) -> None:
        """Moves the average towards the model's weights.

        Args:
            model: whose weights.
            taken: 1 where the step was taken, 0 where it was left out and nothing changes; None: it was taken.
        """
        mine, theirs = list(self.model.parameters()), list(model.parameters())
        if taken is None or readable(taken):
            if taken is not None and not bool(taken):
                return
            self.num_updates += 1
            part = 1 - min(self.decay, self.num_updates / (self.num_updates + 9))
            for some, new in in_chunks(mine, theirs):
                foreach_lerp_(some, new, part)
        else:
            self._num_updates = self._num_updates + taken
            part = taken * (1 - (self._num_updates / (self._num_updates + 9)).clamp(max=self.decay))
            for some, new in in_chunks(mine, theirs):
                # Not lerp, which takes a weight for each number, or one that the host knows.
                differences = foreach_sub(new, some)
                foreach_mul_(differences, part)
                foreach_add_(some, differences)
        buffers = list(self.model.buffers())
        if buffers:
            foreach_copy_(buffers, list(model.buffers()))
