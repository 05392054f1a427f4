"""FVD as a torchmetrics metric: sums alone, so memory does not grow with the number of clips."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchmetrics import Metric

from kinema.errors import KinemaError
from kinema.eval.distributions import frechet_distance, gaussian_bias
from kinema.eval.fvd.features import NamedClips, NamedWindow, VideoFeatures
from kinema.eval.fvd.groups import MIN_CLIPS, GroupedSums, fvd_at_infinity, fvd_interval
from kinema.eval.fvd.protocols import Protocol
from kinema.eval.fvd.result import FVDResult
from kinema.eval.fvd.statistics import ReferenceStatistics, hash_of_network
from kinema.eval.metrics import FEATURE_METRICS as EXTRAS
from kinema.eval.summaries import gather, place_state


def needs_real_features(extra: Iterable[str]) -> bool:
    """Whether some scores of `EXTRAS` need the features of the real clips, and not only their sums."""
    return any(EXTRAS[name].inputs == "feature sets" for name in extra)


class FrechetVideoDistance(Metric):
    """Fréchet Video Distance (Unterthiner et al. 2018) between real and fake videos.

    The state is sums of features in 16 groups of clips, in float64; processes add theirs, and one may have no clip.

    Args:
        protocol: How videos become what the network sees, by name or as a whole.
        extra: Scores of `EXTRAS` to compute too; they keep the features.
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
    fake_count: Int64[Tensor, " g"]
    fake_sum: Float[Tensor, "g d"]
    fake_outer: Float[Tensor, "g d d"]
    fake_digest: Int64[Tensor, ""]
    fake_features: list[Tensor]

    def __init__(
        self,
        protocol: str | Protocol = "styleganv",
        *,
        extra: Collection[str] = (),
        features: VideoFeatures | None = None,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name in extra:
            if name not in EXTRAS:
                raise KinemaError(f"`extra` (={name!r}) must be of {', '.join(EXTRAS)}")
        self.extra = tuple(extra)
        self.video_features = features or VideoFeatures(protocol, weights=weights, device=device, batch_size=batch_size)
        self.protocol = self.video_features.protocol
        self._weights_hash = hash_of_network(self.video_features.network)
        for side in ("real", "fake"):
            sums = GroupedSums.empty(self.video_features.network.num_features)
            self.add_state(f"{side}_count", sums.count, dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", sums.sum, dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", sums.outer, dist_reduce_fx="sum")
            self.add_state(f"{side}_digest", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")
        self._sizes: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
        place_state(self, self.video_features.device)

    def update(
        self,
        videos: UInt8[Tensor, "b 3 t h w"] | Float[Tensor, "b 3 t h w"],
        real: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        """Take clips in.

        Args:
            videos: uint8 0..255, or floats in [-1, 1]; the protocol's windows are cut from them.
            real: Whether they are real.
            names: Of the clips: they decide random windows and the group of a clip, and are best the same for a video
                and what was made from it. Without them a clip is named by a hash of what it shows.

        Raises:
            KinemaError: A clip is too short, or has values out of range or NaN.
        """
        if names is not None and len(names) != videos.shape[0]:
            raise KinemaError(f"`names` ({len(names)} of them) must be one for each of {videos.shape[0]} videos")
        windows: list[NamedWindow] = []
        for index, video in enumerate(videos):
            name = f"{digest_of(video):x}" if names is None else names[index]
            windows += [(name, video[:, frames]) for frames in self.protocol.windows(name, video.shape[1])]
        for batch, features in self.video_features.stream(windows):
            self._accumulate(batch, features, real)

    def windows(self, name: str, num_frames: int) -> list[Int64[Tensor, " t"]]:
        """Frame numbers of each window that the protocol takes of a clip of this name and length.

        Raises:
            KinemaError: The clip is too short, or too long for a protocol that takes whole clips.
        """
        return self.protocol.windows(name, num_frames)

    def update_windows(self, windows: Iterable[NamedWindow], real: bool) -> None:
        """Take windows in that come one by one, of any sizes; see `VideoFeatures.windows`."""
        for batch, features in self.video_features.stream(windows):
            self._accumulate(batch, features, real)
        # Counted as an update of torchmetrics', which this is, so that `compute` does not warn.
        self._update_count += 1
        self._computed = None

    def update_clips(self, clips: NamedClips, real: bool) -> None:
        """Take whole clips in that come one by one, of any sizes: the protocol's windows are cut from them."""
        self.update_windows(self.video_features.windows(clips), real)

    def _accumulate(self, batch: list[NamedWindow], features: Float[Tensor, "b d"], real: bool) -> None:
        self._sums(real).update(features, [name for name, _ in batch])
        digest = self.real_digest if real else self.fake_digest
        digest += sum(digest_of(clip) for _, clip in batch)
        self._sizes[real] |= {(int(clip.shape[-2]), int(clip.shape[-1])) for _, clip in batch}
        if needs_real_features(self.extra) if real else self.extra:
            (self.real_features if real else self.fake_features).append(features.to(digest.device))

    def add_reference(self, reference: ReferenceStatistics) -> None:
        """Take saved statistics of real videos in; in several processes the first one does.

        Raises:
            KinemaError: They were made under another protocol or with other weights, or lack the features that `extra`
                needs.
        """
        reference.check(self.protocol, self._weights_hash)
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
        """Forget all clips."""
        super().reset()
        self._sizes = {True: set(), False: set()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics', for processes without a clip, too: they must have something of the same width to gather."""
        if not self._is_synced:
            self._fill()
        super().sync(*args, **kwargs)

    def compute(self) -> Float[Tensor, ""]:
        """The distance.

        Raises:
            KinemaError: Fewer than two clips on a side.
        """
        return torch.tensor(self._value(), dtype=torch.float64, device=self.real_sum.device)

    def result(self, *, resamples: int = 32) -> FVDResult:
        """The distance with all that belongs to it; in several processes all must call this.

        Args:
            resamples: Draws of the bootstrap for the interval; 0 for none.

        Raises:
            KinemaError: Fewer than two clips on a side.
        """
        sizes = self._all_sizes()
        with self._whole():
            return self._result(resamples, sizes[True] | sizes[False])

    def real_statistics(self, content: str) -> ReferenceStatistics:
        """Statistics of the real clips, to be saved; in several processes all must call this.

        Args:
            content: What identifies the set, as `content_key` of its files.
        """
        sizes = self._all_sizes()
        with self._whole():
            sums = self._sums(True)
            features = _joined(self.real_features)
            return ReferenceStatistics(
                protocol=self.protocol,
                weights=self._weights_hash,
                content=content,
                digest=int(self.real_digest),
                sums=GroupedSums(sums.count.clone(), sums.sum.clone(), sums.outer.clone()),
                features=features.cpu() if needs_real_features(self.extra) else None,
                sizes=frozenset(sizes[True]),
            )

    def _whole(self) -> AbstractContextManager[None]:
        """Inside, the state is that of all processes."""
        self._fill()
        return self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync)

    def _fill(self) -> None:
        for features in (self.real_features, self.fake_features):
            if isinstance(features, list) and not features:
                features.append(self.real_sum.new_empty(0, self.real_sum.shape[1], dtype=torch.float32))

    def _all_sizes(self) -> dict[bool, set[tuple[int, int]]]:
        """Heights and widths of the clips of all processes."""
        shares = gather(self._sizes) if self._to_sync else [self._sizes]
        return {side: {size for share in shares for size in share[side]} for side in (True, False)}

    def _result(self, resamples: int, sizes: set[tuple[int, int]]) -> FVDResult:
        value = self._value()
        real, fake, covariance = self._sums(True), self._sums(False), self.protocol.covariance
        num_real, num_fake = int(real.count.sum()), int(fake.count.sum())
        same = self._identical()
        bias = 0.0 if same else gaussian_bias(real.total.covariance(covariance), num_real, num_fake)
        return FVDResult(
            value=value,
            protocol=self.protocol,
            weights=self._weights_hash,
            num_real=num_real,
            num_fake=num_fake,
            bias=bias,
            infinity=0.0 if same else fvd_at_infinity(real, fake, covariance),
            interval=(0.0, 0.0) if same else fvd_interval(real, fake, covariance, resamples=resamples),
            scores=self._scores(same),
            notes=() if same else _notes(num_real, num_fake, value, bias, sizes),
        )

    def _sums(self, real: bool) -> GroupedSums:
        if real:
            return GroupedSums(self.real_count, self.real_sum, self.real_outer)
        return GroupedSums(self.fake_count, self.fake_sum, self.fake_outer)

    def _identical(self) -> bool:
        """The same clips on both sides, in whatever order: sums of the clips' hashes are equal, and their numbers."""
        return (
            torch.equal(self.real_digest, self.fake_digest) and int(self.real_count.sum() - self.fake_count.sum()) == 0
        )

    def _value(self) -> float:
        for side in ("real", "fake"):
            count = int(getattr(self, f"{side}_count").sum())
            if count < 2:
                raise KinemaError(f"`{side}` (={count} clips) must be at least 2 clips")
        if self._identical():
            return 0.0
        return frechet_distance(self._sums(True).total, self._sums(False).total, self.protocol.covariance)

    def _scores(self, same: bool) -> dict[str, float | None]:
        if not self.extra:
            return {}
        real, fake = (_joined(features) for features in (self.real_features, self.fake_features))
        scores: dict[str, float | None] = {}
        for name in self.extra:
            if same and EXTRAS[name].direction == "lower":
                scores[name] = 0.0  # an unbiased estimate of a distance would be a little below
            elif name not in scores:
                scores |= EXTRAS[name].make()(real, fake)
        return {name: scores[name] for name in self.extra}


def digest_of(clip: Tensor) -> int:
    """A number of 40 bits that says what a clip shows: sums of 8 million of them fit into int64."""
    pixels = clip.detach().cpu().contiguous().numpy()
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=5).digest(), "big")


def _joined(features: list[Tensor] | Tensor) -> Tensor:
    return features if isinstance(features, Tensor) else torch.cat(features)


def _notes(num_real: int, num_fake: int, value: float, bias: float, sizes: set[tuple[int, int]]) -> tuple[str, ...]:
    notes: list[str] = []
    number = min(num_real, num_fake)
    if number < MIN_CLIPS and value < bias:
        notes.append(
            f"{number} clips are fewer than {MIN_CLIPS}: two independent sets of so few would be {bias:.3g} apart, but "
            "these share clips, or one is made from the other; compare the value only with values of such sets"
        )
    elif number < MIN_CLIPS:
        notes.append(
            f"{number} clips are fewer than {MIN_CLIPS}: the value is too high, by {bias:.0f} at least for two "
            "independent sets that are alike; compare it only with values of as many clips"
        )
    if num_real != num_fake:
        notes.append(f"{num_real} real and {num_fake} fake clips: all are measured, and none is resampled")
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:5])
        more = ", ..." if len(sizes) > 5 else ""
        notes.append(f"clips have {len(sizes)} sizes ({listed}{more}): sharpness differs with them")
    return tuple(notes)
