"""Fréchet Video Distance between two folders of clips, with the protocol that it depends on."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from kinema.apps.commands.eval_common import Outcome, Processes, fetch_in_turn, run_measure
from kinema.apps.commands.eval_options import (
    MeasureOptions,
    OptionalFile,
    OptionalInt,
    OptionalPixels,
    check_outputs,
    check_weights,
    reading_of,
)
from kinema.command_line import check_at_least
from kinema.errors import KinemaError
from kinema.eval.metrics import FEATURE_METRICS
from kinema.files import check_output_file

if TYPE_CHECKING:
    from kinema.eval.clips import ClipFile, ReadableClips
    from kinema.eval.fvd import Protocol, ReferenceStatistics, VideoFeatures
    from kinema.eval.report import Clips

logger = logging.getLogger(__name__)

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """Fréchet Video Distance between two folders of clips, with the protocol that it depends on.

    REAL and FAKE are folders of video files, of folders of frames, or of tensors (.npy, .safetensors); names need not
    pair. REAL may also be a file of statistics that was saved by `--save-statistics`.
    `accelerate launch -m kinema eval fvd ...` shares the work among processes, with the same result.

    Attributes:
        real: A folder of real clips, or a file of their statistics.
        fake: A folder of generated clips.
        protocol: How clips are read (styleganv, styleganv-128f, videogpt, cd-fvd, vidtok, common-metrics).
        num_frames: Frames of a window; else the protocol's.
        stride: Frames from one frame of a window to the next; else the protocol's.
        resolution: Size before the network's own; else the protocol's.
        clips_per_video: Windows of a video; else the protocol's.
        seed: Seed of windows at random places; else the protocol's.
        batch_size: Windows at once.
        weights: I3D weights; else those of `kinema weights fetch i3d`.
        metrics: Scores on the same features besides FVD; without any, memory does not grow with the number of clips:
        statistics_dir: Keep REAL's statistics in this folder, or else in kinema's cache, and use them again.
        save_statistics: Write REAL's statistics to a .safetensors file.
    """

    real: Annotated[Positional[str], arg(metavar="REAL")]
    fake: Annotated[Positional[str], arg(metavar="FAKE")]
    protocol: Annotated[str, arg(metavar="NAME")] = "styleganv"
    num_frames: OptionalInt = None
    stride: OptionalInt = None
    resolution: OptionalPixels = None
    clips_per_video: OptionalInt = None
    seed: OptionalInt = None
    batch_size: Annotated[int, arg(metavar="N")] = 4
    weights: OptionalFile = None
    metrics: Annotated[
        tuple[str, ...] | None,
        arg(metavar="NAME", help_behavior_hint=lambda _: f"{FEATURE_METRICS.describe()} (default: all)"),
    ] = None
    statistics_dir: Annotated[tuple[()] | tuple[str] | None, arg(metavar="[DIR]", help_behavior_hint="")] = None
    save_statistics: OptionalFile = None


def run(options: Options) -> None:
    """Checks, measures, reports."""
    run_measure(options, check, measure)


def make_protocol(options: Options) -> "Protocol":
    """The protocol that was asked for.

    Raises:
        KinemaError: No such protocol, or a value that it cannot have.
    """
    from kinema.eval.fvd import find_protocol

    names = ("num_frames", "stride", "resolution", "clips_per_video", "seed")
    return find_protocol(options.protocol).changed(**{name: getattr(options, name) for name in names})


def check(options: Options) -> None:
    """Raises `KinemaError` over a mistake that shows before the work."""
    check_at_least(options, {"num_frames": 9, "stride": 1, "resolution": 1, "clips_per_video": 0, "batch_size": 1})
    inputs = {"real": options.real, "fake": options.fake, "--weights": options.weights}
    check_outputs(options, inputs, statistics=options.save_statistics)
    check_weights(options.weights)
    for name in options.metrics or ():
        if name not in FEATURE_METRICS:
            raise KinemaError(f"`--metrics` (={name!r}) must be of {', '.join(FEATURE_METRICS)}")
    if options.save_statistics is not None:
        _check_statistics(options.save_statistics, options.real)


def measure(options: Options, state: Processes) -> Outcome:
    """What `run` reports."""
    from kinema.eval.clips import list_clips
    from kinema.eval.fvd import VideoFeatures, evaluate_fvd

    extra = tuple(dict.fromkeys(FEATURE_METRICS if options.metrics is None else options.metrics))
    protocol = make_protocol(options)
    saved = None if Path(options.real).is_dir() else _load_statistics(options.real)
    real = [] if saved is not None else list_clips(options.real, argument="real")
    fake = list_clips(options.fake, argument="fake")
    if options.weights is None:
        fetch_in_turn(state, "i3d")
    features = VideoFeatures(protocol, weights=options.weights, device=state.device, batch_size=options.batch_size)
    real_clips = state.clips(real, options, "real", num_frames=protocol.first_frames)
    fake_clips = state.clips(fake, options, "fake", num_frames=protocol.first_frames)
    reference = saved or _reference(options, real_clips, features, extra, state)
    if saved is not None:
        saved.check_rate(options.fps)
        real_clips.unreadable = dict(saved.unreadable)
    result = evaluate_fvd(reference or real_clips, fake_clips, features=features, extra=extra)
    # Its notes are printed where it is measured, as warnings.
    outcome = Outcome("Fréchet Video Distance", result.describe(), result.as_dict(), notes=list(result.notes))
    real_rates = real_clips.side_rates if reference is None or reference.rates is None else reference.rates
    outcome.add_rates({"real": real_rates, "fake": fake_clips.side_rates}, options.fps)
    for side, clips in (("real", real_clips), ("fake", fake_clips)):
        outcome.unreadable |= {f"{side}/{name}": reason for name, reason in clips.unreadable.items()}
    if options.outputs.html is not None and state.is_main:
        from kinema.eval.report.sections import fvd_headline, fvd_section

        rows = (show_clips("Real clips", real_clips, options), show_clips("Generated clips", fake_clips, options))
        outcome.headline = fvd_headline(result)
        outcome.sections = [fvd_section(result, clips=[row for row in rows if row is not None])]
    return outcome


def _check_statistics(path: str, real: str) -> None:
    if Path(path).suffix != ".safetensors":
        raise KinemaError(f"`--save-statistics` (={path!r}) must end in .safetensors")
    if not Path(real).is_dir():
        raise KinemaError(f"`--save-statistics` (={path!r}) must go with a folder of clips as REAL")


def _load_statistics(path: str) -> "ReferenceStatistics":
    from kinema.eval.fvd import ReferenceStatistics

    if not Path(path).exists():
        raise KinemaError(f"`real` (={path!r}) must be a folder of clips or a file of statistics, and there is none")
    return ReferenceStatistics.load(Path(path))


def _reference(
    options: Options,
    clips: "ReadableClips",
    features: "VideoFeatures",
    extra: Collection[str],
    state: Processes,
) -> "ReferenceStatistics | None":
    """Statistics of the real clips if they are to be kept: those found, or new ones, which are saved.

    The features of single clips are kept only where a score needs them.
    """
    if options.statistics_dir is None and options.save_statistics is None:
        return None

    from kinema.eval.fvd import (
        hash_of_network,
        needs_real_features,
        reference_statistics,
        statistics_path,
    )

    content = content_of(list(clips.clips), options)
    kept = None
    if options.statistics_dir is not None:
        folder = Path(options.statistics_dir[0]) if options.statistics_dir else None
        kept = statistics_path(content, features.protocol, hash_of_network(features.network), folder)
        check_output_file(kept, overwrite=True, name="--statistics-dir")
    keep_features = needs_real_features(extra)
    statistics = None if kept is None else _kept_statistics(kept)
    if statistics is not None and (statistics.features is not None or not keep_features):
        clips.adopt(statistics.unreadable)
    else:
        made = reference_statistics(clips, content, features, keep_features=keep_features)
        statistics = replace(made, unreadable=clips.unreadable, fps=options.fps, rates=clips.side_rates)
        if kept is not None and state.is_main:
            statistics.save(kept)
    if options.save_statistics is not None and state.is_main:
        statistics.save(Path(options.save_statistics))
    return statistics


def _kept_statistics(path: Path) -> "ReferenceStatistics | None":
    """The statistics that were kept; None if there are none, or they are damaged and must be measured again."""
    from kinema.eval.fvd import ReferenceStatistics

    if not path.is_file():
        return None
    try:
        return ReferenceStatistics.load(path)
    except KinemaError as error:
        logger.warning("measured anew: %s", error)
        return None


def content_of(clips: "list[ClipFile]", options: Options) -> str:
    """Hash of all clips: their names, what is in their files, and the options by which they are read."""
    import hashlib

    from kinema.eval.fvd import content_key

    total = hashlib.blake2b(digest_size=16)
    for clip in clips:
        files = sorted(clip.path.iterdir()) if clip.path.is_dir() else [clip.path]
        key = content_key(file for file in files if file.is_file())
        total.update(f"{clip.name}\0{key}\0".encode("utf-8", "surrogateescape"))
    settings = {"fps": options.fps, "value_range": options.reading.value_range, "layout": options.reading.layout}
    for name, value in settings.items():
        if value is not None:
            total.update(f"{name}={value}\0".encode())
    return total.hexdigest()


def show_clips(title: str, clips: "ReadableClips", options: Options) -> "Clips | None":
    """Some of the clips, evenly chosen, side by side; None where there are none."""
    from kinema.eval.clips import iterate_clip, read_fps
    from kinema.eval.report.media import MOST_FRAMES, shown_frames, side_by_side

    readable = [clip for clip in clips.clips if clip.name not in clips.unreadable]
    if not readable:
        return None
    step = max(1, len(readable) // _SHOWN)
    chosen = readable[::step][:_SHOWN]
    reading = reading_of(options, num_frames=MOST_FRAMES)
    frames = [shown_frames(iterate_clip(clip, reading)) for clip in chosen]
    return side_by_side(frames, [clip.name for clip in chosen], title, fps=options.fps or read_fps(chosen[0]))
