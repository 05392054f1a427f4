"""Learning rate over a training."""

import math
from typing import Literal


def learning_rate_factor(
    step: int,
    progress: float,
    *,
    warmup_steps: int,
    schedule: Literal["trapezoid", "cosine", "constant"],
    decay_fraction: float = 0.3,
) -> float:
    """What the highest learning rate is multiplied by, in [0, 1].

    Args:
        step: steps done; the first step of a warm-up of n gets 1 / n.
        progress: part of the training done, in [0, 1].
        warmup_steps: steps of linear warm-up.
        schedule: `trapezoid` is constant, then falls linearly to 0 over the last `decay_fraction`.
        decay_fraction: see `schedule`.
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "trapezoid":
        return warmup * min(1.0, (1 - progress) / decay_fraction)
    if schedule == "cosine":
        return warmup * (0.5 + 0.5 * math.cos(math.pi * progress))
    return warmup
