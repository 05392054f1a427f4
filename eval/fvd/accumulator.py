"""What is accumulated of each set of videos, and the distance between two sets."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.distributions.frechet import Covariance, frechet_distance
from kinema.eval.fvd.groups import GroupedSums


@dataclass
class FeatureAccumulator:
    """Sums over the features of one set of windows, and, if asked for, the features and hashes of the pixels.

    It holds the state tensors of a metric, which `update` changes in place.

    Attributes:
        sums: Of each group of clips, float64.
        features: Batches `b d`, float32, or one tensor after a reduction over processes; empty unless kept.
        digest: Sum of the windows' hashes; 0 unless pixels are hashed.
    """

    sums: GroupedSums
    features: list[Tensor] | Tensor
    digest: Int64[Tensor, ""]

    @property
    def num_windows(self) -> int:
        """Windows so far."""
        return int(self.sums.count.sum())

    def update(self, features: Float[Tensor, "b d"], names: list[str], *, keep: bool, windows: list[Tensor]) -> None:
        """Adds windows.

        Args:
            features: Of the windows, on any device.
            names: Of their clips.
            keep: Whether to keep the features, too.
            windows: Pixels to hash; empty: none.
        """
        self.sums.update(features, names)
        if windows:
            self.digest += sum(map(hash_pixels, windows))
        if keep:
            assert isinstance(self.features, list)
            self.features.append(features.to(self.sums.sum.device))

    def all_features(self) -> Float[Tensor, "n d"]:
        """The features that were kept."""
        if isinstance(self.features, Tensor):
            return self.features
        empty = self.sums.sum.new_empty(0, self.sums.sum.shape[1], dtype=torch.float32)
        return torch.cat([empty, *self.features])


def identical(real: FeatureAccumulator, fake: FeatureAccumulator) -> bool:
    """Whether both sets have the same windows, in any order: equal sums of hashes; False if pixels are not hashed."""
    return bool(real.digest) and int(real.digest) == int(fake.digest) and real.num_windows == fake.num_windows


def distance(real: FeatureAccumulator, fake: FeatureAccumulator, covariance: Covariance) -> float:
    """Fréchet distance of two sets, >= 0; exactly 0 if they are known to be identical.

    Raises:
        KinemaError: A set has fewer than two windows.
    """
    for side, windows in (("real", real), ("fake", fake)):
        if windows.num_windows < 2:
            raise KinemaError(f"`{side}` (={windows.num_windows} clips) must be at least 2 clips")
    return 0.0 if identical(real, fake) else frechet_distance(real.sums.total, fake.sums.total, covariance)


def hash_pixels(window: Tensor) -> int:
    """A hash of 40 bits of the pixels: sums of 8 million of them fit into int64."""
    pixels = window.detach().cpu().contiguous().numpy()
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=5).digest(), "big")
