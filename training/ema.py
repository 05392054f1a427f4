"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn


class EMA:
    """An averaged copy of a model, in float32, on the model's device.

    After update number k (from 1) the average is `d avg + (1 - d) weights` with `d = min(decay, k / (k + 9))`: early
    on the average is short, so that the first weights are soon forgotten. Buffers are copied.

    Attributes:
        model: the averaged copy, in evaluation mode, without gradients.
        num_updates: updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 9))
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
