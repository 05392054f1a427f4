"""How long a training has run, and when it ends."""

import time
from typing import Any

import torch
from accelerate import Accelerator

from kinema.training.checkpoint import TrainingState
from kinema.training.config import TrainingConfig


class Clock:
    """The time that a training has taken, and when it ends.

    In several processes, the time of the first one counts for all: learning rates that follow it are the same
    everywhere. They agree on it every few steps, so that the other steps need no word between processes.

    Args:
        accelerator: the processes.
        config: has the limits.
        state: gets the time.
    """

    _AGREE_EVERY = 8

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, state: TrainingState) -> None:
        self._accelerator, self._config, self._state = accelerator, config, state
        self._began, self._before = time.monotonic(), state.elapsed
        self._stopped = False

    def look(self, stop_asked: bool) -> tuple[bool, bool]:
        """Whether the training has ended, and whether it is to stop before that; alike in all processes.

        Args:
            stop_asked: whether this process was asked to stop.
        """
        config, state = self._config, self._state
        if self._accelerator.num_processes == 1:
            self._stopped = stop_asked
        elif state.step % self._AGREE_EVERY == 0 or state.step >= config.num_steps:
            own = [float(stop_asked), self._now() if self._accelerator.is_main_process else 0.0]
            told: Any = self._accelerator.reduce(
                torch.tensor(own, device=self._accelerator.device, dtype=torch.float64), "sum"
            )
            stops, state.elapsed = told.tolist()
            self._stopped = stops > 0
        out_of_time = config.max_minutes is not None and state.elapsed >= 60 * config.max_minutes
        return state.step >= config.num_steps or out_of_time, self._stopped

    def advance(self) -> None:
        """A step was taken."""
        if self._accelerator.num_processes == 1:
            self._state.elapsed = self._now()

    def _now(self) -> float:
        return self._before + time.monotonic() - self._began


def progress(state: TrainingState, config: TrainingConfig) -> float:
    """Part of the training done, in [0, 1], as the schedule counts it."""
    if config.schedule_on == "minutes":
        assert config.max_minutes is not None
        return min(1.0, state.elapsed / (60 * config.max_minutes))
    return min(1.0, state.step / config.num_steps)


def time_left(state: TrainingState, config: TrainingConfig, seconds_per_step: float) -> str:
    """Time until the end of the run, as text."""
    seconds = (config.num_steps - state.step) * seconds_per_step
    if config.max_minutes is not None:
        seconds = min(seconds, 60 * config.max_minutes - state.elapsed)
    minutes = max(0, round(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02d} h left"
