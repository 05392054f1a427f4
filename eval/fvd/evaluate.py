"""FVD of two sets of clips, from names and frames to a result."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.eval.clips import LongClip
from kinema.eval.fvd.features import NamedClips, VideoFeatures
from kinema.eval.fvd.metric import EXTRAS, FrechetVideoDistance
from kinema.eval.fvd.protocols import Protocol
from kinema.eval.fvd.result import FVDResult
from kinema.eval.fvd.statistics import ReferenceStatistics

_log = logging.getLogger(__name__)


def evaluate_fvd(
    real: NamedClips | ReferenceStatistics,
    fake: NamedClips,
    protocol: str | Protocol = "styleganv",
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 4,
    extra: Collection[str] = EXTRAS,
    hash_pixels: bool = True,
    resamples: int = 32,
    features: VideoFeatures | None = None,
) -> FVDResult:
    """Fréchet Video Distance of two sets of clips, and what can be said on the same features.

    Clips are read one after the other, of any sizes. In several processes (`torch.distributed`) each gives its own
    part of the clips, and all get the result of the whole.

    Args:
        real: Names and frames of the real clips, or their statistics (`reference_statistics`).
        fake: Names and frames of the fake clips.
        protocol: How clips are read, by name or as a whole.
        weights: A file of I3D weights; None fetches them.
        device: Where the network runs.
        batch_size: Windows a pass.
        extra: Scores besides FVD, of `EXTRAS`; without any, memory does not grow with the number of clips.
        hash_pixels: Hash the pixels of each window on the CPU, so that the same clips on both sides have a distance of
            exactly 0, instead of round-off.
        resamples: Draws of the bootstrap for the interval; 0 for none.
        features: The pass to use, with its protocol; it takes the place of `protocol`, `weights`, `device` and
            `batch_size`.

    Raises:
        KinemaError: Fewer than two clips, a clip that is too short, no such protocol, no weights, or statistics of
            another protocol.
    """
    features = features or VideoFeatures(protocol, weights=weights, device=device, batch_size=batch_size)
    metric = FrechetVideoDistance(features=features, extra=extra, hash_pixels=hash_pixels)
    if isinstance(real, ReferenceStatistics):
        metric.add_reference(real)
    else:
        metric.update_clips(_watched(real, "real"), real=True)
    metric.update_clips(_watched(fake, "fake"), real=False)
    result = metric.result(resamples=resamples)
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank() > 0):
        for note in result.notes:
            _log.warning("FVD: %s", note)
    return result


def reference_statistics(
    clips: NamedClips, content: str, features: VideoFeatures, *, keep_features: bool = True
) -> ReferenceStatistics:
    """Statistics of real clips, with hashes of their pixels, to save and to use as `real` of `evaluate_fvd`.

    In several processes each gives its own part of the clips, and all get the statistics of the whole.

    Args:
        clips: Names and frames.
        content: What identifies the set, as `content_key` of its files.
        features: The pass, with its protocol.
        keep_features: Keep the features, 1.6 kB a clip, which all scores but FVD need.

    Raises:
        KinemaError: Fewer than two clips, or a clip that is too short.
    """
    metric = FrechetVideoDistance(features=features, extra=EXTRAS if keep_features else (), hash_pixels=True)
    metric.update_clips(_watched(clips, "real"), real=True)
    statistics = metric.real_statistics(content)
    if statistics.num_clips < 2:
        raise KinemaError(f"`real` (={statistics.num_clips} clips) must be at least 2 clips")
    return statistics


def _watched(clips: NamedClips, side: str) -> Iterator[tuple[str, Tensor | LongClip]]:
    """The clips as they come, with a progress bar on a terminal."""
    for name, frames in tqdm(clips, desc=f"{side} clips", unit="clip", disable=None):
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
            raise KinemaError(
                f"clip {name!r} (of shape {tuple(frames.shape)}, {frames.dtype}) must be `t h w 3` in uint8"
            )
        yield name, frames
