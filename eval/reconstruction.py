"""How much of a clip a tokenizer keeps, or how far the clips of one folder are from those of another.

Clips are compared as the frames of a file, uint8 `t h w 3`: what comes out of a tokenizer is rounded to levels first,
so that a lossless file of it gives the same numbers. They are read one after the other, long ones window by window;
only their numbers are kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips import Frames, LongClip, WindowPicker
from kinema.eval.frames import DEFAULT_METRICS, METRICS, FrameMeasure, SetMeasure
from kinema.eval.frames.features import FrameFeatures, load_features
from kinema.eval.round_trip import LongReconstruction, check_length
from kinema.eval.round_trip import reconstruct_clip as reconstruct_clip
from kinema.eval.summaries import gather, mean, naming, number
from kinema.eval.windows import in_windows, window_length
from kinema.files import counting_order
from kinema.tokenizers.interface import VideoTokenizer


@runtime_checkable
class VideoDistance(Protocol):
    """A distance of sets of clips (`kinema.eval.fvd.FrechetVideoDistance`), for the reconstruction FVD."""

    def update(self, videos: Tensor, real: bool, names: Sequence[str] | None = None) -> None:
        """Counts clips, uint8 `b c t h w`."""
        ...

    def result(self) -> Any:
        """The distance and what belongs to it: an object with `as_dict()`; None: it cannot be had.

        All processes call it, those without a clip, too.
        """
        ...


@runtime_checkable
class WindowedDistance(VideoDistance, Protocol):
    """A video distance that says which frames it looks at, so that long clips need not be in memory for it."""

    def windows(self, name: str, num_frames: int) -> Sequence[Tensor]:
        """Frame numbers of each window of a clip of this name and length."""
        ...

    def update_windows(self, windows: Iterable[tuple[str, Tensor]], real: bool) -> None:
        """Counts windows under their clips' names, uint8 `c t h w`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """What was measured of one clip. A number that is not defined is None.

    Attributes:
        name: The clip's.
        num_frames: Its length.
        height: In pixels.
        width: In pixels.
        metrics: Mean over its frames, by metric.
        curves: One number a frame, by metric.
    """

    name: str
    num_frames: int
    height: int
    width: int
    metrics: Mapping[str, float | None]
    curves: Mapping[str, Sequence[float | None]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """What was measured of all clips. A number that is not defined is None.

    Attributes:
        metrics: By metric, the mean over clips of their frames' mean, or the one number of a set of frames.
        first_frame: The same of first frames alone, which a causal tokenizer codes as images.
        chunk_border: The same of frames at chunk borders (`border_frames`) alone.
        curves: By metric, the mean over clips of every frame index; clips that are shorter count in as far as they go.
        clips: Each clip, in counting order of names.
        temporal_ratio: Frames of a latent step; None: unknown.
        chunk: Frames that went through the tokenizer at once; None: whole clips.
        fvd: Result of the video distance (`FVDResult`); None: not asked for.
    """

    metrics: Mapping[str, float | None]
    first_frame: Mapping[str, float | None]
    chunk_border: Mapping[str, float | None]
    curves: Mapping[str, Sequence[float | None]] = field(repr=False)
    clips: Sequence[ClipScores] = field(repr=False)
    temporal_ratio: int | None = None
    chunk: int | None = None
    fvd: Any = None

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return sum(clip.num_frames for clip in self.clips)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: the metrics by their names, `rfvd` and what belongs to it, then the rest."""
        result: dict[str, Any] = dict(self.metrics)
        if self.fvd is not None:
            details = self.fvd.as_dict()
            result |= {"rfvd": details["fvd"], "rfvd_details": details}
        return result | {
            "num_clips": len(self.clips),
            "num_frames": self.num_frames,
            "temporal_ratio": self.temporal_ratio,
            "chunk": self.chunk,
            "first_frame": dict(self.first_frame),
            "chunk_border": dict(self.chunk_border),
            "curves": {name: list(curve) for name, curve in self.curves.items()},
            "clips": [asdict(clip) for clip in self.clips],
        }


def evaluate_reconstruction(
    tokenizer: VideoTokenizer,
    clips: Iterable[tuple[str, Frames]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
    weights: Mapping[str, Path] | None = None,
    fvd: VideoDistance | None = None,
    watch: Callable[[str, Frames, Frames | LongReconstruction], None] | None = None,
) -> ReconstructionReport:
    """Takes clips through a tokenizer and back, and measures what comes back.

    Args:
        tokenizer: Works where it is.
        clips: Name and frames, of any length and size; in several processes, each its own share.
        metrics: Names of `kinema.eval.frames.METRICS`.
        chunk: Give the tokenizer so many frames at once, each chunk for itself; None: whole clips. A `LongClip` goes
            through kinema's tokenizers as a stream then, which is the same but for round-off.
        device: Where the metrics' networks compute.
        weights: Files of networks' weights, by the networks' names; others come from the cache.
        fvd: A video distance that is updated with both sides, under the clip's name, so that they are cut alike; its
            result is `report.fvd`. For long clips it must be a `WindowedDistance`.
        watch: Is called with every clip's name, frames and reconstruction, to show or keep them; of a long clip's
            reconstruction only the first frames can be taken, `[:n]`.

    Raises:
        KinemaError: No clip, an unknown metric, `chunk` < 1, a clip that a metric cannot take or that is too long for
            the tokenizer (the message names it), or weights that cannot be had.
    """
    if chunk is not None and chunk < 1:
        raise KinemaError(f"`chunk` (={chunk}) must be >= 1")
    return compare_clips(
        _reconstructed(tokenizer, clips, chunk),
        metrics,
        temporal_ratio=tokenizer.temporal_compression_ratio,
        chunk=chunk,
        device=device,
        weights=weights,
        fvd=fvd,
        watch=watch,
    )


def _reconstructed(
    tokenizer: VideoTokenizer, clips: Iterable[tuple[str, Frames]], chunk: int | None
) -> Iterator[tuple[str, Frames, Frames | LongReconstruction]]:
    for name, frames in clips:
        with naming(name):
            if isinstance(frames, LongClip):
                clip = LongReconstruction(tokenizer, frames, chunk)
            else:
                clip = reconstruct_clip(tokenizer, frames, chunk=chunk)
        yield name, frames, clip


def compare_clips(
    pairs: Iterable[tuple[str, Frames, Frames | LongReconstruction]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    temporal_ratio: int | None = None,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
    weights: Mapping[str, Path] | None = None,
    fvd: VideoDistance | None = None,
    watch: Callable[[str, Frames, Frames | LongReconstruction], None] | None = None,
) -> ReconstructionReport:
    """Measures clips against their references.

    With torch.distributed, each process takes its share, and all get the whole report.

    Args:
        pairs: Name, reference and clip; the two are of one length and size.
        metrics: Names of `kinema.eval.frames.METRICS`.
        temporal_ratio: Frames of a latent step, for the column of chunk borders.
        chunk: Frames that went through a tokenizer at once, for the same column.
        device: Where the metrics' networks compute.
        weights: Files of networks' weights, by the networks' names; others come from the cache.
        fvd: As of `evaluate_reconstruction`.
        watch: Is called with every name, reference and clip.

    Raises:
        KinemaError: As `evaluate_reconstruction`, or a pair differs in shape.
    """
    measures = Measures.load(metrics, device, weights or {})
    scores: list[ClipScores] = []
    for name, reference, clip in pairs:
        with naming(name):
            both = () if fvd is None else _counters(fvd, name, reference, clip)
            scores.append(measures.score(name, reference, clip, also=both))
        if watch is not None:
            watch(name, reference, clip)
    shares = gather(scores)
    everything = sorted((score for share in shares for score in share), key=lambda score: counting_order(score.name))
    if not everything:
        raise KinemaError("`clips` (=0 of them) must be at least one clip")
    if not all(shares) and measures.sets:  # known to all processes, so that none waits for another
        raise KinemaError(
            f"`clips` (={len(everything)} of them) must be at least one for each of {len(shares)} processes"
        )
    return _summarize(
        everything,
        tuple(metrics),
        {name: number(measure.compute()) for name, measure in measures.sets.items()},
        temporal_ratio,
        chunk,
        None if fvd is None else fvd.result(),
    )


def border_frames(num_frames: int, temporal_ratio: int | None, chunk: int | None = None) -> list[int]:
    """Indices of the frames at chunk borders: multiples of the temporal ratio, and the first of every later chunk.

    A causal tokenizer codes frame 0, then steps of `temporal_ratio` frames: multiples of it are the last frames of
    steps. Frame 0 is no border. Chunks that went through the tokenizer one by one are counted each from its own start.
    """
    length, ratio = chunk or num_frames, temporal_ratio or 1
    return [i for i in range(1, num_frames) if i % length == 0 or (ratio > 1 and i % length % ratio == 0)]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures that were asked for, loaded.

    Attributes:
        frames: Those with a number a frame, by name.
        sets: Those with one number for all frames.
        features: What a set compares, by its name; one object where several compare the same.
    """

    frames: Mapping[str, FrameMeasure]
    sets: Mapping[str, SetMeasure]
    features: Mapping[str, FrameFeatures]

    @classmethod
    def load(cls, metrics: Sequence[str], device: torch.device | str, weights: Mapping[str, Path]) -> "Measures":
        """Loads what the table says.

        Raises:
            KinemaError: An unknown metric, or weights that cannot be had.
        """
        METRICS.check(metrics)
        frames, sets, networks = {}, {}, {}
        for name in metrics:
            network = METRICS[name].network
            path = weights.get(network) if network else None
            if METRICS[name].inputs == "frame pairs":
                frames[name] = METRICS[name].make(torch.device(device), path)
                continue
            assert network is not None
            sets[name] = METRICS[name].make(torch.device(device))
            if network not in networks:
                networks[network] = load_features(network, device, path)
        return cls(frames=frames, sets=sets, features={n: networks[str(METRICS[n].network)] for n in sets})

    def score(
        self,
        name: str,
        reference: Frames,
        clip: Frames | LongReconstruction,
        also: Sequence[Callable[[UInt8[Tensor, "t h w 3"]], None]] = (),
    ) -> ClipScores:
        """Measures one pair, and counts it in the sets.

        Args:
            name: Of the clip.
            reference: As it should be.
            clip: As it is.
            also: Two functions that are called with the next frames of the reference, and of the clip.

        Raises:
            KinemaError: Shapes differ, or a metric cannot take the clip.
        """
        if reference.shape != clip.shape:
            raise KinemaError(
                f"`clip` (of shape {tuple(clip.shape)}) must have the shape of its reference, {tuple(reference.shape)}"
            )
        check_length(clip)
        length = window_length(clip.shape[1], clip.shape[2])
        pieces = zip(reference.split(length), clip.split(length), strict=True)
        before = max((METRICS[key].before for key in self.frames), default=0)
        after = max((METRICS[key].after for key in self.frames), default=0)
        curves: dict[str, list[float | None]] = {key: [] for key in self.frames}
        for counted, (a, b) in in_windows(pieces, length, before=before, after=after):
            x, y = _batch(a), _batch(b)
            for key, measure in self.frames.items():
                curves[key] += _numbers(measure(x, y)[0, counted])
            self._count(x[:, :, counted], y[:, :, counted])
            for count, frames in zip(also, (a, b), strict=bool(also)):
                count(frames[counted])
        return ClipScores(
            name=name,
            num_frames=len(clip),
            height=clip.shape[1],
            width=clip.shape[2],
            metrics={key: mean(curve) for key, curve in curves.items()},
            curves=curves,
        )

    def _count(self, reference: UInt8[Tensor, "1 3 t h w"], clip: UInt8[Tensor, "1 3 t h w"]) -> None:
        """Counts frames in the sets; what two of them compare is computed once."""
        done: dict[int, tuple[Tensor, Tensor]] = {}
        for key, measure in self.sets.items():
            features = self.features[key]
            if id(features) not in done:
                done[id(features)] = features(reference), features(clip)
            measure.update(*done[id(features)])


def _counters(
    fvd: VideoDistance, name: str, reference: Frames, clip: Frames | LongReconstruction
) -> Sequence[Callable[[UInt8[Tensor, "t h w 3"]], None]]:
    """What counts both clips in a distance: at once where they are in memory, else as their frames come."""
    if isinstance(reference, Tensor) and isinstance(clip, Tensor):
        fvd.update(_batch(reference), True, [name])
        fvd.update(_batch(clip), False, [name])
        return ()
    if not isinstance(fvd, WindowedDistance):
        raise KinemaError(f"`fvd` (={type(fvd).__name__}) must take windows, for a clip of {len(reference)} frames")
    windows = fvd.windows(name, len(reference))

    def counter(real: bool) -> Callable[[UInt8[Tensor, "t h w 3"]], None]:
        picker = WindowPicker(windows)
        return lambda frames: fvd.update_windows(
            ((name, rearrange(window, "t h w c -> c t h w")) for window in picker.push(frames)), real
        )

    return counter(True), counter(False)


def _batch(frames: UInt8[Tensor, "t h w 3"]) -> UInt8[Tensor, "1 3 t h w"]:
    return rearrange(frames, "t h w c -> 1 c t h w")


def _numbers(values: Tensor) -> list[float | None]:
    return [number(value) for value in values.tolist()]


def _summarize(
    clips: Sequence[ClipScores],
    metrics: Sequence[str],
    sets: Mapping[str, float | None],
    temporal_ratio: int | None,
    chunk: int | None,
    fvd: Any,
) -> ReconstructionReport:
    names = [name for name in metrics if name not in sets]
    longest = max(clip.num_frames for clip in clips)

    def over_clips(name: str, frames: Callable[[int], Sequence[int]]) -> float | None:
        return mean(mean(clip.curves[name][i] for i in frames(clip.num_frames)) for clip in clips)

    return ReconstructionReport(
        metrics={n: sets[n] if n in sets else mean(clip.metrics[n] for clip in clips) for n in metrics},
        first_frame={n: over_clips(n, lambda _: [0]) for n in names},
        chunk_border={n: over_clips(n, lambda t: border_frames(t, temporal_ratio, chunk)) for n in names},
        curves={n: [mean(c.curves[n][i] for c in clips if i < c.num_frames) for i in range(longest)] for n in names},
        clips=clips,
        temporal_ratio=temporal_ratio,
        chunk=chunk,
        fvd=fvd,
    )
