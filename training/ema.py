"""Exponential moving average of the weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from kinema.machine import readable
from kinema.training.foreach import foreach_add_, foreach_copy_, foreach_lerp_, foreach_mul_, foreach_sub, in_chunks
from kinema.training.sharding import gather, local, shard


class EMA:
    """An averaged copy of a model, in float32, on the model's device.

    After update number k (from 1) the average is `d avg + (1 - d) weights` with `d = min(decay, k / (k + 9))`: early
    on the average is short, so that the first weights are soon forgotten. Buffers are copied.

    Attributes:
        model: the averaged copy, in evaluation mode, without gradients; where it is split over processes (`shard`),
            only good for reading weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._num_updates: Tensor | int = 0
        self._is_split, self._skeleton = False, None

    def shard(self, mesh: DeviceMesh, keep_whole: bool) -> None:
        """Splits the average over processes.

        Args:
            mesh: the processes, along one axis.
            keep_whole: whether `whole` gives this process a model; it takes memory of the CPU.
        """
        self._is_split, self._skeleton = True, copy.deepcopy(self.model).cpu() if keep_whole else None
        shard(self.model, mesh)

    @contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        """The averaged model with all of its weights, to compute with.

        Where they are split over processes, all must enter; those that keep no whole model get None.
        """
        if not self._is_split:
            yield self.model
            return
        tensors = gather(self.model.state_dict(), keep=self._skeleton is not None)
        if self._skeleton is None:
            yield None
            return
        self._skeleton.load_state_dict(tensors)
        try:
            yield self._skeleton.to(next(self.model.parameters()).device)
        finally:
            self._skeleton.cpu()

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
        mine, theirs = ([local(parameter) for parameter in m.parameters()] for m in (self.model, model))
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
