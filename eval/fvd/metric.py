"""FVD as a metric of torchmetrics. Its state is sums, so memory does not grow with the number of clips."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchmetrics import Metric

from kinema.errors import KinemaError
from kinema.eval.fvd.accumulator import FeatureAccumulator, distance
from kinema.eval.fvd.features import NamedClips, NamedWindow, VideoFeatures
from kinema.eval.fvd.groups import GroupedSums
from kinema.eval.fvd.protocols import Protocol
from kinema.eval.fvd.report import make_report
from kinema.eval.fvd.result import FVDResult
from kinema.eval.fvd.statistics import ReferenceStatistics, hash_of_network
from kinema.eval.metrics import FEATURE_METRICS as EXTRAS
from kinema.eval.summaries import gather, gather_states, place_state

_STATES = ("count", "sum", "outer", "digest", "features")


def needs_real_features(extra: Iterable[str]) -> bool:
    """Whether some scores of `EXTRAS` need the features of the real clips, and not only their sums."""
    return any(EXTRAS[name].inputs == "feature sets" for name in extra)


class FrechetVideoDistance(Metric):
    """Fréchet Video Distance (Unterthiner et al. 2018) between real and fake videos.

    The state is sums of features in 16 groups of clips, in float64; processes add theirs, and one may have no clip.

    Args:
        protocol: How videos become what the network sees, by name or as a whole.
        extra: Scores of `EXTRAS` for `result`; they need the features themselves, 1.6 kB a window.
        hash_pixels: Hash the pixels of each window on the CPU, so that equal sets of windows have a distance of
            exactly 0, instead of round-off.
        features: The pass to use, with its protocol; it takes the place of the arguments that follow.
        weights: A file of I3D weights; None fetches them.
        device: Where the network runs, and on a GPU the sums, too; `.to` moves them.
        batch_size: Windows a pass.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        KinemaError: No such protocol or score, or no weights.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    real_count: Int64[Tensor, " g"]
    real_sum: Float[Tensor, "g d"]
    real_outer: Float[Tensor, "g d d"]
    real_digest: Int64[Tensor, ""]
    real_features: list[Tensor]

    def __init__(
        self,
        protocol: str | Protocol = "styleganv",
        *,
        extra: Collection[str] = (),
        hash_pixels: bool = False,
        features: VideoFeatures | None = None,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dist_sync_fn": gather_states, **kwargs})
        for name in extra:
            if name not in EXTRAS:
                raise KinemaError(f"`extra` (={name!r}) must be of {', '.join(EXTRAS)}")
        self.extra = tuple(extra)
        self.hash_pixels = hash_pixels
        self.video_features = features or VideoFeatures(protocol, weights=weights, device=device, batch_size=batch_size)
        self.protocol = self.video_features.protocol
        self.weights_hash = hash_of_network(self.video_features.network)
        for side in ("real", "fake"):
            sums = GroupedSums.empty(self.video_features.network.num_features)
            digest = torch.zeros((), dtype=torch.int64)
            for state, value in zip(_STATES, (sums.count, sums.sum, sums.outer, digest), strict=False):
                self.add_state(f"{side}_{state}", value, dist_reduce_fx="sum")
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")
        self.reset()
        place_state(self, self.video_features.device)

    def update(
        self,
        videos: UInt8[Tensor, "b 3 t h w"] | Float[Tensor, "b 3 t h w"] | Iterable[NamedWindow],
        real: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        """Adds clips.

        Args:
            videos: uint8 0..255, or floats in [-1, 1], from which the protocol's windows are cut; or such windows, one
                by one and of any sizes, with the names of their clips.
            real: Whether they are real.
            names: Of the clips: they decide random windows and the group of a clip, and are best the same for a video
                and what was made from it. Without names, the clips of each side are numbered.

        Raises:
            KinemaError: A clip is too short, or has values out of range or NaN.
        """
        windows = self._cut(videos, real, names) if isinstance(videos, Tensor) else videos
        side = self._side(real)
        keep = needs_real_features(self.extra) if real else bool(self.extra)
        for batch, features in self.video_features.stream(windows):
            hashed = [window for _, window in batch] if self.hash_pixels else []
            side.update(features, [name for name, _ in batch], keep=keep, windows=hashed)
            self._sizes[real] |= {(int(window.shape[-2]), int(window.shape[-1])) for _, window in batch}

    def _cut(self, videos: Tensor, real: bool, names: Sequence[str] | None) -> list[NamedWindow]:
        if names is None:
            first = self._num_unnamed[real]
            self._num_unnamed[real] += len(videos)
            names = [str(first + index) for index in range(len(videos))]
        if len(names) != len(videos):
            raise KinemaError(f"`names` ({len(names)} of them) must be one for each of {len(videos)} videos")
        return [
            (name, video[:, frames])
            for name, video in zip(names, videos, strict=True)
            for frames in self.protocol.windows(name, video.shape[1])
        ]

    def windows(self, name: str, num_frames: int) -> list[Int64[Tensor, " t"]]:
        """Frame numbers of each window that the protocol takes of a clip of this name and length.

        Raises:
            KinemaError: The clip is too short, or too long for a protocol that takes whole clips.
        """
        return self.protocol.windows(name, num_frames)

    def update_windows(self, windows: Iterable[NamedWindow], real: bool) -> None:
        """Adds windows that come one by one, of any sizes; see `VideoFeatures.windows`."""
        self.update(windows, real)

    def update_clips(self, clips: NamedClips, real: bool) -> None:
        """Adds whole clips that come one by one, of any sizes: the protocol's windows are cut from them."""
        self.update(self.video_features.windows(clips), real)

    def add_reference(self, reference: ReferenceStatistics) -> None:
        """Adds saved statistics of real videos; in several processes the first one does.

        Raises:
            KinemaError: They were made under another protocol or with other weights, or lack the features that `extra`
                needs.
        """
        reference.check(self.protocol, self.weights_hash)
        needs_features = needs_real_features(self.extra)
        if needs_features and reference.features is None:
            names = ", ".join(sorted(name for name in self.extra if needs_real_features([name])))
            raise KinemaError(f"`extra` (={names}) must be left out: the reference statistics have no features")
        self._sizes[True] |= reference.sizes
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return
        for mine, theirs in zip(
            (self.real_count, self.real_sum, self.real_outer, self.real_digest),
            (reference.sums.count, reference.sums.sum, reference.sums.outer, torch.tensor(reference.digest)),
            strict=True,
        ):
            mine += theirs.to(mine.device)
        if needs_features and reference.features is not None:
            self.real_features.append(reference.features.to(self.real_sum.device))

    def reset(self) -> None:
        """Forgets all clips."""
        super().reset()
        self._sizes: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
        self._num_unnamed = {True: 0, False: 0}

    def compute(self) -> Float[Tensor, ""]:
        """The distance.

        Raises:
            KinemaError: Fewer than two clips on a side.
        """
        value = distance(self._side(True), self._side(False), self.protocol.covariance)
        return torch.tensor(value, dtype=torch.float64, device=self.real_sum.device)

    def result(self, *, resamples: int = 32) -> FVDResult:
        """The distance with all that belongs to it; in several processes all must call this.

        Args:
            resamples: Draws of the bootstrap for the interval; 0 for none.

        Raises:
            KinemaError: Fewer than two clips on a side.
        """
        real, fake, sizes = self._of_all_processes()
        return make_report(
            real,
            fake,
            protocol=self.protocol,
            weights=self.weights_hash,
            extra=self.extra,
            sizes=sizes[True] | sizes[False],
            resamples=resamples,
        )

    def real_statistics(self, content: str) -> ReferenceStatistics:
        """Statistics of the real clips, to be saved; in several processes all must call this.

        Args:
            content: What identifies the set, as `content_key` of its files.
        """
        real, _, sizes = self._of_all_processes()
        sums = real.sums
        return ReferenceStatistics(
            protocol=self.protocol,
            weights=self.weights_hash,
            content=content,
            digest=int(real.digest),
            sums=GroupedSums(sums.count.clone(), sums.sum.clone(), sums.outer.clone()),
            features=real.all_features().cpu() if needs_real_features(self.extra) else None,
            sizes=frozenset(sizes[True]),
        )

    def _of_all_processes(self) -> tuple[FeatureAccumulator, FeatureAccumulator, dict[bool, set[tuple[int, int]]]]:
        """Both sides, and heights and widths of the clips of each."""
        shares = gather(self._sizes) if self.sync_on_compute else [self._sizes]
        sizes = {side: {size for share in shares for size in share[side]} for side in (True, False)}
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._side(True), self._side(False), sizes

    def _side(self, real: bool) -> FeatureAccumulator:
        side = "real" if real else "fake"
        count, total, outer, digest, features = (getattr(self, f"{side}_{state}") for state in _STATES)
        return FeatureAccumulator(GroupedSums(count, total, outer), features, digest)
