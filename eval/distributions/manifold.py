"""Fidelity and diversity from nearest neighbours in feature space, in chunks.

Precision and recall: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric". Density and coverage: Naeem et
al. 2020, "Reliable Fidelity and Diversity Metrics". Shapes: features `n d`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.errors import KinemaError

NUM_NEIGHBOURS = 5
"""`k` of Naeem et al."""

_CHUNK = 2048  # rows of a distance matrix at a time


@dataclass(frozen=True)
class ManifoldScores:
    """How far two sets of features cover each other.

    Attributes:
        precision: Share of fake features within the reach of a real one: as far as its k-th real neighbour.
        recall: Share of real features within the reach of a fake one.
        density: How many real features reach a fake one, over k: above 1 where fakes crowd where the real ones are.
        coverage: Share of real features that reach a fake one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = NUM_NEIGHBOURS
) -> ManifoldScores:
    """Precision, recall, density and coverage.

    Args:
        real: One set.
        fake: The other.
        k: Which nearest neighbour sets the reach of a feature; 5 as Naeem et al. (Kynkäänniemi et al.: 3).

    Raises:
        KinemaError: A set of `k` features or fewer, different dimensions, or values that are not finite.
    """
    if k < 1 or k >= min(real.shape[0], fake.shape[0]):
        raise KinemaError(
            f"`k` (={k}) must be >= 1 and < {min(real.shape[0], fake.shape[0])}, the size of the smaller set"
        )
    if real.shape[1] != fake.shape[1]:
        raise KinemaError(f"`real` and `fake` (of {real.shape[1]} and {fake.shape[1]} dimensions) must have as many")
    x, y = real.double(), fake.double()
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise KinemaError("`features` (some are NaN or infinite) must be finite")
    reach_real, reach_fake = _reach(x, k), _reach(y, k)
    fakes_reached = torch.zeros(y.shape[0], device=y.device)
    covered: list[Bool[Tensor, " n"]] = []
    recalled: list[Bool[Tensor, " n"]] = []
    for rows, reach in zip(x.split(_CHUNK), reach_real.split(_CHUNK), strict=True):
        distances = _distances(rows, y)
        inside = distances <= reach[:, None]
        fakes_reached += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= reach_fake).any(1))
    return ManifoldScores(
        precision=float((fakes_reached > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(fakes_reached.double().mean() / k),
        coverage=float(torch.cat(covered).double().mean()),
    )


def _reach(features: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Distance of each feature to its k-th neighbour; the first of k + 1 is the feature itself."""
    return torch.cat([_distances(rows, features).kthvalue(k + 1, 1).values for rows in features.split(_CHUNK)])


def _distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    # Not through |a|² + |b|² - 2ab: its round-off would let a feature miss its own copy.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def make() -> Callable[[Tensor, Tensor], Mapping[str, float | None]]:
    """Returns the four scores of real and generated features; None of sets that are too small."""

    def scores(real: Tensor, fake: Tensor) -> Mapping[str, float | None]:
        if min(len(real), len(fake)) <= NUM_NEIGHBOURS:
            return dict.fromkeys(ManifoldScores.__dataclass_fields__)
        return asdict(manifold_scores(real, fake))

    return scores
