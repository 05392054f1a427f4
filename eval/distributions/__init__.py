"""Distances between two sets of feature vectors: Fréchet, kernels, manifolds, and the inception score of one set."""

from kinema.eval.distributions.frechet import (
    GaussianStatistics,
    frechet_distance,
    frechet_distance_of_features,
    gaussian_bias,
)
from kinema.eval.distributions.inception_score import inception_score
from kinema.eval.distributions.manifold import ManifoldScores, manifold_scores
from kinema.eval.distributions.mmd import jedi_mmd, kernel_distance, polynomial_mmd

__all__ = [
    "GaussianStatistics",
    "ManifoldScores",
    "frechet_distance",
    "frechet_distance_of_features",
    "gaussian_bias",
    "inception_score",
    "jedi_mmd",
    "kernel_distance",
    "manifold_scores",
    "polynomial_mmd",
]
