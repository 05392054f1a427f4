"""Steps that are left out because a loss or gradient is not finite, counted without waiting for the device."""

import logging
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.machine import readable
from kinema.training.checkpoint import TrainingState
from kinema.training.config import TrainingConfig

logger = logging.getLogger(__name__)

_LAG = 8
"""Steps after which a flag is read: the device has computed it by then, and is not waited for."""


@dataclass
class _Pending:
    step: int
    flags: Tensor
    """On the CPU, once `ready`: whether the model's and the discriminator's step were taken."""
    ready: torch.cuda.Event | None


class SkippedSteps:
    """Counts skipped steps in a `TrainingState`.

    Flags on the CPU are read at once; those of another device `_LAG` steps later, or in `finish`.

    Args:
        state: where they are counted.
        config: has the limit, `max_skipped_steps`.
    """

    def __init__(self, state: TrainingState, config: TrainingConfig) -> None:
        self.state, self.config = state, config
        self._pending: deque[_Pending] = deque()

    def add(self, step: int, taken: Tensor, discriminator_taken: Tensor | None) -> None:
        """Notes a step.

        Args:
            step: its number, from 1.
            taken: 1 where the model's step was taken, else 0.
            discriminator_taken: likewise for the discriminator; None if it was not trained.

        Raises:
            KinemaError: too many steps in a row were left out.
        """
        flags = torch.stack((taken, taken if discriminator_taken is None else discriminator_taken))
        ready = None
        if flags.device.type == "cuda":
            flags = torch.empty_like(flags, device="cpu", pin_memory=True).copy_(flags, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append(_Pending(step, flags, ready))
        while self._pending and (readable(taken) or len(self._pending) > _LAG):
            self._count(self._pending.popleft())

    def finish(self) -> None:
        """Counts all steps noted so far, waiting for the device where it must.

        Raises:
            KinemaError: too many steps in a row were left out.
        """
        while self._pending:
            self._count(self._pending.popleft())

    def _count(self, pending: _Pending) -> None:
        if pending.ready is not None:
            pending.ready.synchronize()
        model, discriminator = pending.flags.tolist()
        state, config, step = self.state, self.config, pending.step
        if model and discriminator:
            state.skipped_in_a_row = 0
            return
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        left_out = "the discriminator's step" if model else "it"
        logger.warning("step %d: %s was left out, its loss or gradient is not finite", step, left_out)
        if state.skipped_in_a_row >= config.max_skipped_steps:
            raise KinemaError(
                f"`max_skipped_steps` (={config.max_skipped_steps}) must be above the number of steps in a row whose "
                f"loss or gradient is not finite, and step {step} reached it: try a lower `learning_rate`, "
                f"`mixed_precision` no, or other data; {config.run_dir / 'checkpoints'} holds the state before"
            )
