"""Distances between sets of features: values known exactly, laws they obey, and slow reference versions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.eval.distributions import (
    GaussianStatistics,
    frechet_distance,
    frechet_distance_of_features,
    gaussian_bias,
    inception_score,
    jedi_mmd,
    kernel_distance,
    manifold_scores,
    polynomial_mmd,
)
from kinema.eval.distributions.frechet import gaussian_distance

GRID = torch.arange(1.0, 10).view(3, 3)
OTHER = torch.tensor([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])


def normal(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return frechet_distance(GaussianStatistics.of(a), GaussianStatistics.of(b))


@pytest.mark.parametrize(
    ("mean", "first", "second", "expected"),
    [
        ([1.0, 2.0], [[1.0, 0], [0, 1]], [[4.0, 0], [0, 4]], 7.0),
        ([0.0, 0.0], [[2.0, 0.5], [0.5, 1]], [[1.0, -0.3], [-0.3, 3]], 0.92931185),
    ],
)
def test_frechet_distance_of_known_gaussians(mean, first, second, expected):
    arguments = [torch.tensor(value, dtype=torch.float64) for value in ([0.0, 0.0], first, mean, second)]
    assert gaussian_distance(*arguments) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), count=st.integers(2, 30), other=st.integers(2, 30), dim=st.integers(1, 12))
def test_frechet_distance_laws(seed, count, other, dim):
    """Symmetric, blind to order and rotation, quadratic in scale, the same through features, with few clips or many."""
    a, b = normal(count, dim, seed), normal(other, dim, seed + 1) * 2 + 1
    value = distance(a, b)
    close = pytest.approx(value, rel=1e-6, abs=1e-6)
    assert value >= 0
    assert distance(b, a) == close
    assert frechet_distance_of_features(a, b) == close
    rotation = torch.linalg.qr(normal(dim, dim, seed + 2)).Q
    assert distance(a @ rotation, b @ rotation) == close
    assert distance(3 * a, 3 * b) == pytest.approx(9 * value, rel=1e-6, abs=1e-5)
    assert distance(a, a.clone()) == 0
    assert 0 <= distance(a, a.flip(0)) < 1e-6
    assert distance(a, a + 1) == pytest.approx(dim, rel=1e-6)


def test_frechet_distance_streams_and_has_two_covariances():
    a, b = normal(40, 6), normal(50, 6, 1) * 2
    whole = GaussianStatistics.of(b)
    parts = GaussianStatistics.empty(6)
    for part in b.split(7):
        parts.update(part)
    added = GaussianStatistics.of(b[:10]) + GaussianStatistics.of(b[10:])
    assert distance(a, b) == pytest.approx(frechet_distance(GaussianStatistics.of(a), parts), rel=1e-12)
    assert distance(a, b) == pytest.approx(frechet_distance(GaussianStatistics.of(a), added), rel=1e-12)
    torch.testing.assert_close(whole.covariance("sample"), torch.cov(b.T))
    torch.testing.assert_close(whole.covariance("population"), torch.cov(b.T, correction=0))


def test_identical_clips_within_a_set_leave_the_means():
    assert distance(torch.zeros(5, 4), torch.full((6, 4), 3.0)) == pytest.approx(36)


def test_frechet_distance_refuses():
    with pytest.raises(KinemaError, match=r"`features` \(1 of them\) must be at least 2"):
        distance(normal(1, 3), normal(4, 3))
    with pytest.raises(KinemaError, match="must be finite"):
        distance(normal(4, 3).fill_(math.nan), normal(4, 3))
    with pytest.raises(KinemaError, match="3 and 4 dimensions"):
        distance(normal(4, 3), normal(4, 4))


def test_bias_of_finite_samples():
    """Simulated moments behave as moments of samples; 79 is what two samples of 1,024 of N(0, I_400) measured."""
    assert gaussian_bias(torch.eye(400).double(), 1024, 1024) == pytest.approx(79, rel=0.03)
    eye = torch.eye(8).double()
    drawn = sum(distance(normal(40, 8, seed), normal(30, 8, seed + 1000)) for seed in range(40)) / 40
    assert gaussian_bias(eye, 40, 30, draws=40) == pytest.approx(drawn, rel=0.15)
    few = sum(distance(normal(5, 8, seed), normal(6, 8, seed + 1000)) for seed in range(40)) / 40
    assert gaussian_bias(eye, 5, 6, draws=40) == pytest.approx(few, rel=0.15)


def test_known_discrepancies():
    biased = polynomial_mmd(GRID, OTHER, degree=2, gamma=1 / 3, offset=0.0, unbiased=False)
    # (x·y / d)² is the kernel with gamma 1/3 squared: the same numbers, and JEDi's hundredfold.
    assert biased == pytest.approx(270.7222, abs=1e-4)
    assert jedi_mmd(GRID, OTHER) == pytest.approx(100 * biased)
    assert kernel_distance(GRID, OTHER) == pytest.approx(-5062.0432, abs=1e-4)
    assert jedi_mmd(GRID, GRID) == 0


def test_discrepancy_against_loops_in_chunks(monkeypatch):
    monkeypatch.setattr("kinema.eval.distributions.mmd._CHUNK", 4)
    a, b = normal(9, 4), normal(7, 4, 1) + 0.5

    def mean_kernel(first, second, same):
        pairs = [(i, j) for i in range(len(first)) for j in range(len(second)) if not (same and i == j)]
        return sum((float(first[i] @ second[j]) / 4 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected)
    with pytest.raises(KinemaError, match="1 and 7 features"):
        kernel_distance(a[:1], b)


def test_manifold_scores_against_loops(monkeypatch):
    monkeypatch.setattr("kinema.eval.distributions.manifold._CHUNK", 7)
    k, real, fake = 3, normal(20, 3), normal(24, 3, 1) + 0.7
    scores = manifold_scores(real, fake, k=k)

    def reach(points):
        return [sorted(math.dist(p, q) for q in points.tolist())[k] for p in points.tolist()]

    def inside(point, centre, radius):
        return math.dist(point, centre) <= radius

    reals, fakes = list(zip(real.tolist(), reach(real))), list(zip(fake.tolist(), reach(fake)))  # noqa: B905
    reached = [sum(inside(f, r, radius) for r, radius in reals) for f, _ in fakes]
    assert scores.precision == pytest.approx(sum(count > 0 for count in reached) / 24)
    assert scores.density == pytest.approx(sum(reached) / (24 * k))
    recalled = [any(inside(r, f, radius) for f, radius in fakes) for r, _ in reals]
    assert scores.recall == pytest.approx(sum(recalled) / 20)
    covered = [any(inside(f, r, radius) for f, _ in fakes) for r, radius in reals]
    assert scores.coverage == pytest.approx(sum(covered) / 20)
    assert 0 < scores.precision < 1
    assert 0 < scores.recall < 1


def test_manifold_scores_at_the_ends():
    real = normal(20, 3)
    same = manifold_scores(real, real.clone(), k=2)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = manifold_scores(real, real + 100, k=2)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    with pytest.raises(KinemaError, match=r"`k` \(=5\) must be >= 1 and < 4"):
        manifold_scores(real, real[:4])


def test_inception_score():
    certain = torch.eye(5) * 1000
    assert inception_score(certain)[0] == pytest.approx(5)
    assert inception_score(torch.zeros(6, 5))[0] == pytest.approx(1)
    assert inception_score(certain.repeat(2, 1), splits=2) == (pytest.approx(5), pytest.approx(0))
    with pytest.raises(KinemaError, match="`splits`"):
        inception_score(certain, splits=6)
    with pytest.raises(KinemaError, match="finite"):
        inception_score(certain * math.nan)
