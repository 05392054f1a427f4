"""Sums of features in groups of clips, from which an FVD, its trend over the number of clips and its spread follow.

A clip's group is decided by a hash of its name: the same in every process and run, and equal for a video and its
reconstruction. So nothing needs the features of single clips, and memory does not grow with their number.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinema.eval.distributions.frechet import Covariance, GaussianStatistics, frechet_distance

NUM_GROUPS = 16
_TREND_GROUPS = (8, 10, 12, 14)
_TREND_SUBSETS = 4
MIN_CLIPS = 400
"""Fewer clips than features: covariances lack directions, and the bias no longer falls as 1 / n."""


def group_of(name: str) -> int:
    """The group of a clip."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=1).digest()[0] % NUM_GROUPS


@dataclass
class GroupedSums:
    """Sums of the features of each group.

    Attributes:
        count: Features of each group.
        sum: Their sums, float64.
        outer: Sums of their outer products, float64.
    """

    count: Int64[Tensor, " g"]
    sum: Float[Tensor, "g d"]
    outer: Float[Tensor, "g d d"]

    @classmethod
    def empty(cls, dim: int) -> "GroupedSums":
        """Of no features yet."""
        outer = torch.zeros(NUM_GROUPS, dim, dim, dtype=torch.float64)
        return cls(torch.zeros(NUM_GROUPS, dtype=torch.int64), torch.zeros_like(outer[..., 0]), outer)

    def update(self, features: Float[Tensor, "n d"], names: list[str]) -> None:
        """Adds features of clips of these names."""
        features = features.to(self.sum.device).double()
        groups = torch.tensor([group_of(name) for name in names])
        for group in groups.unique().tolist():
            rows = features[groups == group]
            self.count[group] += rows.shape[0]
            self.sum[group] += rows.sum(0)
            self.outer[group] += rows.T @ rows

    @property
    def total(self) -> GaussianStatistics:
        """All groups together."""
        return self.combined(torch.ones(NUM_GROUPS, dtype=torch.int64))

    def combined(self, weights: Int64[Tensor, " g"]) -> GaussianStatistics:
        """Statistics of a set in which each group is as often as `weights` says."""
        counts = weights.to(self.count.device)
        weights = counts.to(self.sum)
        outer = torch.tensordot(weights, self.outer, 1)
        return GaussianStatistics(int((counts * self.count).sum()), weights @ self.sum, outer)


def fvd_at_infinity(real: GroupedSums, fake: GroupedSums, covariance: Covariance) -> float | None:
    """The value that endlessly many clips would have, by a line through values of parts of them.

    To first order the bias falls as 1/n + 1/m (Chong and Forsyth 2020, "Effectively Unbiased FID", who fix the real
    set; here both sets are parts, because both are samples). Parts are unions of half of the groups and more.

    Returns:
        The line's value at 1/n + 1/m = 0, not below 0; None for sets of fewer than 800 clips: half of one must still
        have as many clips as I3D has features, or the bias falls otherwise.
    """
    full = (real.total, fake.total)
    if min(side.count for side in full) * min(_TREND_GROUPS) < MIN_CLIPS * NUM_GROUPS:
        return None
    generator = torch.Generator().manual_seed(0)
    points = [(1 / full[0].count + 1 / full[1].count, frechet_distance(*full, covariance))]
    for size in _TREND_GROUPS:
        for _ in range(_TREND_SUBSETS):
            chosen = torch.zeros(NUM_GROUPS, dtype=torch.int64)
            chosen[torch.randperm(NUM_GROUPS, generator=generator)[:size]] = 1
            parts = (real.combined(chosen), fake.combined(chosen))
            if min(part.count for part in parts) >= 2:
                value = frechet_distance(*parts, covariance)
                points.append((1 / parts[0].count + 1 / parts[1].count, value))
    x, y = torch.tensor(points, dtype=torch.float64).T
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum().clamp_min(1e-300)
    return max(0.0, float(y.mean() - slope * x.mean()))


def fvd_interval(
    real: GroupedSums, fake: GroupedSums, covariance: Covariance, *, resamples: int = 32
) -> tuple[float, float] | None:
    """95 % interval of the value by a bootstrap over groups: value ± 1.96 standard deviations, not below 0.

    Groups are drawn with repetition, the same ones for both sets: that is right for pairs (videos and their
    reconstructions fall into the same group) and for sets that have nothing to do with each other.

    Says how much other clips would change the value; the bias that all sets of this size share is not in it.

    Returns:
        Low and high; None where clips fill fewer than 4 groups.
    """
    if resamples < 2 or min(int((side.count > 0).sum()) for side in (real, fake)) < 4:
        return None
    generator = torch.Generator().manual_seed(0)
    values: list[float] = []
    for _ in range(resamples):
        drawn = torch.randint(NUM_GROUPS, (NUM_GROUPS,), generator=generator).bincount(minlength=NUM_GROUPS)
        parts = (real.combined(drawn), fake.combined(drawn))
        if min(part.count for part in parts) >= 2:
            values.append(frechet_distance(*parts, covariance))
    if len(values) < 2:
        return None
    value = frechet_distance(real.total, fake.total, covariance)
    spread = 1.96 * float(torch.tensor(values, dtype=torch.float64).std())
    return max(0.0, value - spread), value + spread
