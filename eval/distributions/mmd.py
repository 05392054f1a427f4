"""Maximum mean discrepancy between two sets of features with polynomial kernels, in chunks.

Sources: Gretton et al. 2012 (the estimators); Bińkowski et al. 2018 (KID) and Unterthiner et al. 2018 (KVD), cubic and
unbiased; Luo et al. 2024 (JEDi), square, biased and times 100.

Shapes: features `n d`; sums are float64.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError

_CHUNK = 2048  # rows of a kernel matrix at a time


def polynomial_mmd(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    *,
    degree: int,
    gamma: float | None = None,
    offset: float,
    unbiased: bool,
) -> float:
    """Squared maximum mean discrepancy with the kernel `(gamma x·y + offset)^degree`.

    Args:
        real: One set.
        fake: The other.
        degree: The kernel's power.
        gamma: The kernel's scale; None is `1 / d`.
        offset: What the kernel adds.
        unbiased: Leave the pairs of a feature with itself out; such an estimate may be negative.

    Raises:
        KinemaError: A set of fewer than two features, different dimensions, or values that are not finite.
    """
    if min(real.shape[0], fake.shape[0]) < 2:
        raise KinemaError(f"`real` and `fake` ({real.shape[0]} and {fake.shape[0]} features) must be at least 2 each")
    if real.shape[1] != fake.shape[1]:
        raise KinemaError(f"`real` and `fake` (of {real.shape[1]} and {fake.shape[1]} dimensions) must have as many")
    if not (torch.isfinite(real).all() and torch.isfinite(fake).all()):
        raise KinemaError("`features` (some are NaN or infinite) must be finite")
    scale = 1 / real.shape[1] if gamma is None else gamma

    def total(a: Tensor, b: Tensor) -> float:
        # Only the rows at hand are widened: all of them would take twice the memory of the features.
        return sum(
            float((scale * (rows.double() @ others.double().T) + offset).pow(degree).sum())
            for rows in a.split(_CHUNK)
            for others in b.split(_CHUNK)
        )

    def within(a: Tensor) -> float:
        count = a.shape[0]
        if not unbiased:
            return total(a, a) / count**2
        squares = torch.cat([rows.double().square().sum(1) for rows in a.split(_CHUNK)])
        diagonal = float((scale * squares + offset).pow(degree).sum())
        return (total(a, a) - diagonal) / (count * (count - 1))

    return within(real) + within(fake) - 2 * total(real, fake) / (real.shape[0] * fake.shape[0])


def kernel_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> float:
    """KVD on features of clips, KID on features of pictures: cubic kernel `(x·y / d + 1)³`, unbiased, all pairs."""
    return polynomial_mmd(real, fake, degree=3, offset=1.0, unbiased=True)


def jedi_mmd(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> float:
    """The discrepancy of JEDi: kernel `(x·y / d)²`, biased, times 100; never negative."""
    return max(0.0, 100 * polynomial_mmd(real, fake, degree=2, offset=0.0, unbiased=False))


def make(score: Literal["kvd", "mmd"]) -> Callable[[Tensor, Tensor], Mapping[str, float]]:
    """Returns the metric `score` of real and generated features."""
    distance = {"kvd": kernel_distance, "mmd": jedi_mmd}[score]
    return lambda real, fake: {score: distance(real, fake)}
