"""Fréchet Video Distance between two folders of clips, with the protocol that it depends on.

REAL and FAKE are folders of video files, of folders of frames, or of tensors (.npy, .safetensors); names need not pair.
REAL may also be a file of statistics that was saved by `--save-statistics`.
`accelerate launch -m kinema eval fvd ...` shares the work among processes, with the same result.
"""

import argparse
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
    fetch_in_turn,
    run_measure,
)
from kinema.apps.commands.eval_options import (
    OUTPUT_OPTIONS,
    RATE_OPTIONS,
    READING_OPTIONS,
    add_option,
    add_options,
    check_at_least,
    check_outputs,
    check_weights,
    reading_of,
)
from kinema.errors import KinemaError
from kinema.files import check_output_file

if TYPE_CHECKING:
    from kinema.eval.clips import ClipFile, ReadableClips
    from kinema.eval.fvd import Protocol, ReferenceStatistics, VideoFeatures
    from kinema.eval.report import Clips

logger = logging.getLogger(__name__)

HELP = "Fréchet Video Distance of two folders of clips, with its protocol"

_SHOWN = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("real", metavar="REAL", help="a folder of real clips, or a file of their statistics")
    parser.add_argument("fake", metavar="FAKE", help="a folder of generated clips")
    add_protocol_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="windows at once (%(default)s)")
    add_option(parser, "--weights", help="I3D weights; else those of `kinema weights fetch i3d`")
    add_option(
        parser,
        "--metrics",
        nargs="*",
        help="scores on the same features besides FVD: kvd mmd precision recall density coverage inception_score (all);"
        " without any, memory does not grow with the number of clips",
    )
    parser.add_argument(
        "--statistics-dir",
        nargs="?",
        const="",
        metavar="DIR",
        help="keep REAL's statistics in this folder, or else in kinema's cache, and use them again",
    )
    parser.add_argument("--save-statistics", metavar="FILE", help="write REAL's statistics to a .safetensors file")
    add_options(parser, RATE_OPTIONS, OUTPUT_OPTIONS, READING_OPTIONS)


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the protocol of FVD and what can be changed in it."""
    parser.add_argument(
        "--protocol",
        default="styleganv",
        metavar="NAME",
        help="styleganv, styleganv-128f, videogpt, cd-fvd, vidtok or common-metrics (%(default)s)",
    )
    parser.add_argument("--num-frames", type=int, metavar="N", help="frames of a window; else the protocol's")
    parser.add_argument("--stride", type=int, metavar="N", help="from one frame of a window to the next; likewise")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="size before the network's own; likewise")
    parser.add_argument("--clips-per-video", type=int, metavar="N", help="windows of a video; likewise")
    parser.add_argument("--seed", type=int, metavar="N", help="of windows at random places; likewise")


def make_protocol(arguments: argparse.Namespace) -> "Protocol":
    """The protocol that was asked for.

    Raises:
        KinemaError: No such protocol, or a value that it cannot have.
    """
    from kinema.eval.fvd import find_protocol

    names = ("num_frames", "stride", "resolution", "clips_per_video", "seed")
    return find_protocol(arguments.protocol).changed(**{name: getattr(arguments, name) for name in names})


def run(arguments: argparse.Namespace) -> None:
    """Check, measure, report."""
    run_measure(arguments, check, measure)


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_at_least(arguments, {"num_frames": 9, "stride": 1, "resolution": 1, "clips_per_video": 0, "batch_size": 1})
    check_outputs(arguments, {"real": arguments.real, "fake": arguments.fake, "--weights": arguments.weights})
    check_weights(arguments)
    if arguments.save_statistics is not None:
        _check_statistics(arguments)


def measure(arguments: argparse.Namespace, state: Processes) -> Outcome:
    """What `run` reports."""
    from kinema.eval.clips import list_clips
    from kinema.eval.fvd import EXTRAS, VideoFeatures, evaluate_fvd

    extra = EXTRAS if arguments.metrics is None else tuple(dict.fromkeys(arguments.metrics))
    for name in extra:
        if name not in EXTRAS:
            raise KinemaError(f"`--metrics` (={name!r}) must be of {', '.join(EXTRAS)}")
    protocol = make_protocol(arguments)
    saved = None if Path(arguments.real).is_dir() else _load_statistics(arguments.real)
    real = [] if saved is not None else list_clips(arguments.real, argument="real")
    fake = list_clips(arguments.fake, argument="fake")
    if arguments.weights is None:
        fetch_in_turn(state, "i3d")
    features = VideoFeatures(protocol, weights=arguments.weights, device=state.device, batch_size=arguments.batch_size)
    real_clips = state.clips(real, arguments, "real", num_frames=protocol.first_frames)
    fake_clips = state.clips(fake, arguments, "fake", num_frames=protocol.first_frames)
    reference = saved or _reference(arguments, real_clips, features, extra, state)
    if saved is not None:
        saved.check_rate(arguments.fps)
        real_clips.unreadable = dict(saved.unreadable)
    result = evaluate_fvd(reference or real_clips, fake_clips, features=features, extra=extra)
    # Its notes are printed where it is measured, as warnings.
    outcome = Outcome("Fréchet Video Distance", result.describe(), result.as_dict(), notes=list(result.notes))
    real_rates = real_clips.side_rates if reference is None or reference.rates is None else reference.rates
    outcome.add_rates({"real": real_rates, "fake": fake_clips.side_rates}, arguments.fps)
    for side, clips in (("real", real_clips), ("fake", fake_clips)):
        outcome.unreadable |= {f"{side}/{name}": reason for name, reason in clips.unreadable.items()}
    if arguments.html is not None and state.is_main:
        from kinema.eval.report.sections import fvd_headline, fvd_section

        rows = (show_clips("Real clips", real_clips, arguments), show_clips("Generated clips", fake_clips, arguments))
        outcome.headline = fvd_headline(result)
        outcome.sections = [fvd_section(result, clips=[row for row in rows if row is not None])]
    return outcome


def _check_statistics(arguments: argparse.Namespace) -> None:
    path = arguments.save_statistics
    if Path(path).suffix != ".safetensors":
        raise KinemaError(f"`--save-statistics` (={path!r}) must end in .safetensors")
    if not Path(arguments.real).is_dir():
        raise KinemaError(f"`--save-statistics` (={path!r}) must go with a folder of clips as REAL")


def _load_statistics(path: str) -> "ReferenceStatistics":
    from kinema.eval.fvd import ReferenceStatistics

    if not Path(path).exists():
        raise KinemaError(f"`real` (={path!r}) must be a folder of clips or a file of statistics, and there is none")
    return ReferenceStatistics.load(Path(path))


def _reference(
    arguments: argparse.Namespace,
    clips: "ReadableClips",
    features: "VideoFeatures",
    extra: Collection[str],
    state: Processes,
) -> "ReferenceStatistics | None":
    """Statistics of the real clips, where they are to be kept: those found, or new ones, which are saved.

    The features of single clips are kept only where a score needs them.
    """
    if arguments.statistics_dir is None and arguments.save_statistics is None:
        return None

    from kinema.eval.fvd import (
        hash_of_network,
        needs_real_features,
        reference_statistics,
        statistics_path,
    )

    content = content_of(list(clips.clips), arguments)
    kept = None
    if arguments.statistics_dir is not None:
        folder = Path(arguments.statistics_dir) if arguments.statistics_dir else None
        kept = statistics_path(content, features.protocol, hash_of_network(features.network), folder)
        check_output_file(kept, overwrite=True, name="--statistics-dir")
    keep_features = needs_real_features(extra)
    statistics = None if kept is None else _kept_statistics(kept)
    if statistics is not None and (statistics.features is not None or not keep_features):
        clips.adopt(statistics.unreadable)
    else:
        made = reference_statistics(clips, content, features, keep_features=keep_features)
        statistics = replace(made, unreadable=clips.unreadable, fps=arguments.fps, rates=clips.side_rates)
        if kept is not None and state.is_main:
            statistics.save(kept)
    if arguments.save_statistics is not None and state.is_main:
        statistics.save(Path(arguments.save_statistics))
    return statistics


def _kept_statistics(path: Path) -> "ReferenceStatistics | None":
    """Those that were kept; None where there are none, or they are damaged: they are made anew."""
    from kinema.eval.fvd import ReferenceStatistics

    if not path.is_file():
        return None
    try:
        return ReferenceStatistics.load(path)
    except KinemaError as error:
        logger.warning("measured anew: %s", error)
        return None


def content_of(clips: "list[ClipFile]", arguments: argparse.Namespace) -> str:
    """Hash of all clips: their names, what is in their files, and the options by which they are read."""
    import hashlib

    from kinema.eval.fvd import content_key

    total = hashlib.blake2b(digest_size=16)
    for clip in clips:
        files = sorted(clip.path.iterdir()) if clip.path.is_dir() else [clip.path]
        key = content_key(file for file in files if file.is_file())
        total.update(f"{clip.name}\0{key}\0".encode("utf-8", "surrogateescape"))
    for name in ("fps", "value_range", "layout"):
        if (value := getattr(arguments, name)) is not None:
            total.update(f"{name}={value}\0".encode())
    return total.hexdigest()


def show_clips(title: str, clips: "ReadableClips", arguments: argparse.Namespace) -> "Clips | None":
    """Some of the clips, evenly chosen, side by side; None where there are none."""
    from kinema.eval.clips import iterate_clip, read_fps
    from kinema.eval.report.media import MOST_FRAMES, shown_frames, side_by_side

    readable = [clip for clip in clips.clips if clip.name not in clips.unreadable]
    if not readable:
        return None
    step = max(1, len(readable) // _SHOWN)
    chosen = readable[::step][:_SHOWN]
    reading = reading_of(arguments, num_frames=MOST_FRAMES)
    frames = [shown_frames(iterate_clip(clip, reading)) for clip in chosen]
    return side_by_side(frames, [clip.name for clip in chosen], title, fps=arguments.fps or read_fps(chosen[0]))
