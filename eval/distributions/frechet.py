"""Fréchet distance between Gaussians fitted to features (Dowson and Landau 1982; Heusel et al. 2017, FID).

    |mu_1 - mu_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½)

Shapes: features `n d`; everything here is float64.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError

Covariance = Literal["sample", "population"]
"""What sums of squares are divided by: the number of clips less one, or the number."""

# Eigenvalues below this share of the largest are round-off of a covariance with fewer clips than features.
_RANK_TOLERANCE = 1e-12

Array = npt.NDArray[np.float64]


@dataclass
class GaussianStatistics:
    """Sums over features from which mean and covariance follow; memory does not grow with their number.

    Attributes:
        count: Number of features.
        sum: `d`, float64.
        outer: `d d`, float64, the sum of `x xᵀ`.
    """

    count: int
    sum: Float[Tensor, " d"]
    outer: Float[Tensor, "d d"]

    @classmethod
    def empty(cls, dim: int, device: torch.device | str = "cpu") -> "GaussianStatistics":
        """Statistics of no features yet."""
        zeros = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(dim), zeros)

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "GaussianStatistics":
        """Statistics of these features."""
        statistics = cls.empty(features.shape[1], features.device)
        statistics.update(features)
        return statistics

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Take more features in."""
        features = features.detach().to(self.sum.device, torch.float64)
        self.count += features.shape[0]
        self.sum += features.sum(0)
        self.outer += features.T @ features

    def __add__(self, other: "GaussianStatistics") -> "GaussianStatistics":
        return GaussianStatistics(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean."""
        return self.sum / self.count

    def covariance(self, kind: Covariance = "sample") -> Float[Tensor, "d d"]:
        """The covariance.

        Raises:
            KinemaError: Fewer than two features.
        """
        if self.count < 2:
            raise KinemaError(f"`features` ({self.count} of them) must be at least 2")
        centred = self.outer - torch.outer(self.sum, self.sum) / self.count
        return (centred + centred.T) / (2 * (self.count - (kind == "sample")))

    def equals(self, other: "GaussianStatistics") -> bool:
        """The same sums, bit for bit."""
        return self.count == other.count and torch.equal(self.sum, other.sum) and torch.equal(self.outer, other.outer)


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics, covariance: Covariance = "sample") -> float:
    """Fréchet distance of two sets of features: real, never negative, exactly 0 for the same statistics.

    Args:
        a: One set.
        b: The other.
        covariance: What the sums of squares are divided by.

    Raises:
        KinemaError: A set of fewer than two features, different dimensions, or values that are not finite.
    """
    if a.sum.shape != b.sum.shape:
        raise KinemaError(f"`a` and `b` (of {a.sum.shape[0]} and {b.sum.shape[0]} dimensions) must have as many")
    if a.equals(b):
        a.covariance(covariance)  # two features at least, here too
        return 0.0
    return gaussian_distance(a.mean, a.covariance(covariance), b.mean, b.covariance(covariance))


def gaussian_distance(
    mean_a: Float[Tensor, " d"],
    covariance_a: Float[Tensor, "d d"],
    mean_b: Float[Tensor, " d"],
    covariance_b: Float[Tensor, "d d"],
) -> float:
    """Fréchet distance of two Gaussians given by their moments; >= 0.

    Raises:
        KinemaError: A value is not finite.
    """
    difference = (mean_a.double() - mean_b.double()).square().sum()
    traces = covariance_a.trace().double() + covariance_b.trace().double()
    if not torch.isfinite(difference + traces):
        raise KinemaError("`features` (some are NaN or infinite) must be finite")
    distance = difference + traces - 2 * _trace_of_root(covariance_a.double(), covariance_b.double())
    return max(0.0, float(distance))


def _trace_of_root(a: Tensor, b: Tensor) -> float:
    """tr (A B)^½ of two covariances; no complex numbers can come up.

    With A = L Lᵀ it is the sum of the square roots of the eigenvalues of Lᵀ B L, which needs no root of a matrix. That
    squares the values, though: where A has fewer directions than dimensions (fewer clips than features), roots of
    round-off would add up. There it is the sum of the singular values of L_Aᵀ L_B, of roots without those directions.
    """
    # numpy, as its eigenvalues of symmetric matrices took a fifth of torch's time on a CPU.
    first, second = a.cpu().numpy(), b.cpu().numpy()
    lower = _cholesky(first)
    if lower is None:
        return float(np.linalg.svd(_thin_root(first).T @ _thin_root(second), compute_uv=False).sum())
    product = lower.T @ second @ lower
    return float(np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum())


def _cholesky(matrix: Array) -> Array | None:
    """L with L Lᵀ the matrix, or None where a direction is missing."""
    try:
        lower: Array = np.linalg.cholesky(matrix).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return None
    pivots = lower.diagonal() ** 2
    return lower if pivots.min() > _RANK_TOLERANCE * pivots.max() else None


def _thin_root(matrix: Array) -> Array:
    """L (`d r`) with L Lᵀ the matrix, without the columns that are round-off alone."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > max(values[-1], 0.0) * _RANK_TOLERANCE
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance_of_features(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], covariance: Covariance = "sample"
) -> float:
    """Fréchet distance of features at hand; for fewer than `d` of them through `tr (S_1 S_2)^½ = |X_c Y_cᵀ|_*`.

    `X_c` and `Y_c` are the centred features over the roots of their numbers: an `n m` matrix instead of a `d d` one.

    Args:
        a: One set.
        b: The other.
        covariance: What the sums of squares are divided by.

    Raises:
        KinemaError: A set of fewer than two features, or values that are not finite.
    """
    if max(a.shape[0], b.shape[0]) >= a.shape[1] or (a.shape == b.shape and torch.equal(a, b)):
        return frechet_distance(GaussianStatistics.of(a), GaussianStatistics.of(b), covariance)
    centred: list[Tensor] = []
    for features in (a.double(), b.double()):
        if features.shape[0] < 2:
            raise KinemaError(f"`features` ({features.shape[0]} of them) must be at least 2")
        scale = (features.shape[0] - (covariance == "sample")) ** 0.5
        centred.append((features - features.mean(0)) / scale)
    x, y = centred
    difference = (a.double().mean(0) - b.double().mean(0)).square().sum()
    if not torch.isfinite(difference + x.square().sum() + y.square().sum()):
        raise KinemaError("`features` (some are NaN or infinite) must be finite")
    root = torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, float(difference + x.square().sum() + y.square().sum() - 2 * root))


def gaussian_bias(covariance: Float[Tensor, "d d"], count_a: int, count_b: int, *, draws: int = 2) -> float:
    """What finite numbers add: the expected distance of two samples of one Gaussian, whose true distance is 0.

    Simulated, with a fixed seed: sample moments of a Gaussian are drawn from a normal and a Wishart distribution
    (Bartlett 1933), so the cost does not grow with the numbers.

    Args:
        covariance: The Gaussian's.
        count_a: Features in one sample.
        count_b: Features in the other.
        draws: Pairs of samples to average over.
    """
    generator = np.random.default_rng(0)
    root = _thin_root(covariance.double().cpu().numpy())
    if root.shape[1] == 0:
        return 0.0
    total = 0.0
    for _ in range(draws):
        first, second = (_sample_moments(root, count, generator) for count in (count_a, count_b))
        total += gaussian_distance(*first, *second)
    return total / draws


def _sample_moments(root: Array, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mean and covariance of `count` draws from the Gaussian whose covariance is `root rootᵀ`."""
    rank = root.shape[1]
    normal = generator.standard_normal((rank, min(rank, count - 1)))
    if count > rank:
        # Bartlett: normals below the diagonal, roots of chi-squares with falling degrees of freedom on it.
        chi_squares = generator.chisquare(np.arange(count - 1, count - 1 - rank, -1))
        normal = np.tril(normal, -1) + np.diag(np.sqrt(chi_squares))
    factor = root @ normal / (count - 1) ** 0.5
    mean = root @ generator.standard_normal(rank) / count**0.5
    return torch.from_numpy(mean), torch.from_numpy(factor @ factor.T)
