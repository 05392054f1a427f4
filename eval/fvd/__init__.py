"""Fréchet Video Distance: protocols by name, streaming sums, and results that say how they were measured."""

from kinema.eval.fvd.evaluate import evaluate_fvd, reference_statistics
from kinema.eval.fvd.features import VideoFeatures
from kinema.eval.fvd.lenient import LenientDistance
from kinema.eval.fvd.metric import EXTRAS, FrechetVideoDistance, needs_real_features
from kinema.eval.fvd.protocols import PROTOCOLS, Protocol, Resize, find_protocol
from kinema.eval.fvd.result import FVDResult
from kinema.eval.fvd.statistics import ReferenceStatistics, content_key, hash_of_network, statistics_path

__all__ = [
    "EXTRAS",
    "PROTOCOLS",
    "FVDResult",
    "FrechetVideoDistance",
    "LenientDistance",
    "Protocol",
    "ReferenceStatistics",
    "Resize",
    "VideoFeatures",
    "content_key",
    "evaluate_fvd",
    "find_protocol",
    "hash_of_network",
    "needs_real_features",
    "reference_statistics",
    "statistics_path",
]
