"""How well generated clips match their prompts, and how they move; against real clips, STREAM and FVD too.

A model makes the clips (`--prompts FILE`, a prompt a line), or they are there already (`--clips DIR --prompts FILE`:
the first clip by name is the first line's).
`accelerate launch -m kinema eval generation ...` shares the work among processes, with the same result.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
    fetch_in_turn,
    make_distance,
    run_measure,
)
from kinema.apps.commands.eval_options import (
    OUTPUT_OPTIONS,
    READING_OPTIONS,
    add_option,
    add_options,
    check_at_least,
    check_outputs,
    check_weights,
)
from kinema.apps.commands.generate import add_call_arguments, check_numbers, given_options, read_prompts
from kinema.errors import KinemaError
from kinema.files import check_other_file, check_output_file

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.eval.clips import Frames, Rate, ReadableClips
    from kinema.eval.fvd import FrechetVideoDistance, FVDResult, LenientDistance
    from kinema.eval.generation import GenerationReport
    from kinema.eval.report import Clips

HELP = "how well generated clips match their prompts, and how they move"

SHOWN = 8
"""Clips on the page, four in a row."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    add_option(parser, "--prompts", required=True)
    add_option(parser, "--model")
    parser.add_argument("--clips", metavar="DIR", help="clips that were made already, one a prompt, in this order")
    parser.add_argument("--out-dir", metavar="DIR", help="keep the clips here: 0000.mp4 is the first line's")
    add_option(
        parser,
        "--metrics",
        nargs="+",
        help="clip_score frame_consistency dynamic_degree motion_smoothness temporal_flickering, with --reference also"
        " stream_t stream_f stream_d; else all that need nothing that is not given",
    )
    add_option(parser, "--clip")
    parser.add_argument("--frame-network", metavar="NAME", help="features of frames; else efficientnet-lite0")
    parser.add_argument(
        "--flow-side",
        type=int,
        metavar="PIXELS",
        help="enlarge smaller frames to this for optical flow (256); less is faster",
    )
    parser.add_argument("--stream-frames", type=int, metavar="N", help="frames of a clip that STREAM looks at (16)")
    parser.add_argument("--reference", metavar="DIR", help="a folder of real clips, for STREAM and FVD")
    parser.add_argument("--reference-stride", type=int, metavar="N", help="take every Nth frame of the real clips (1)")
    parser.add_argument(
        "--reference-resolution",
        type=int,
        metavar="PIXELS",
        help="scale the real clips to this short side and cut out the square in the middle; else as they are",
    )
    parser.add_argument("--fvd", metavar="PROTOCOL", help="also FVD under this protocol, against --reference")
    add_option(parser, "--weights", help="I3D weights for FVD; else those of `kinema weights`")
    add_call_arguments(parser)
    add_option(parser, "--seed")
    parser.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="frames a second: of the clips that a model makes, and at which video files are sampled, by their times;"
        " else as the model says, and as the files are stored",
    )
    add_options(parser, OUTPUT_OPTIONS, READING_OPTIONS)


def run(arguments: argparse.Namespace) -> None:
    """Check, generate, measure, report."""
    run_measure(arguments, check, measure)


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_numbers(arguments)
    # Four frames: STREAM fits a line to two frequencies.
    least = {"flow_side": 1, "stream_frames": 4, "reference_stride": 1, "reference_resolution": 8}
    check_at_least(arguments, least)
    inputs = {f"--{name}": getattr(arguments, name) for name in ("prompts", "clips", "reference", "weights")}
    check_outputs(arguments, inputs)
    _check_combinations(arguments)
    check_weights(arguments)
    prompts = read_prompts(arguments.prompts)
    if arguments.out_dir is not None:
        for output in _outputs(arguments.out_dir, len(prompts)):
            check_output_file(output, overwrite=arguments.overwrite, name="--out-dir")

    from kinema.eval.generation import check_metrics

    check_metrics(
        chosen_metrics(arguments)[0],
        clip=arguments.clip is not None,
        reference=arguments.reference is not None,
        stream_frames=arguments.stream_frames,
        **known_numbers(arguments),
    )


def measure(arguments: argparse.Namespace, state: Processes, *, lenient: bool = False) -> Outcome:
    """What `run` reports.

    Args:
        arguments: The command's.
        state: The processes.
        lenient: Leave FVD and metrics of sets out where they cannot be measured, and say so.
    """
    from kinema.eval.clips import SideRates
    from kinema.eval.fvd import find_protocol
    from kinema.eval.generation import evaluate_generation
    from kinema.eval.generation.table import STREAM_FRAMES

    metrics, missing = chosen_metrics(arguments)
    if arguments.fvd is not None:
        find_protocol(arguments.fvd)  # a mistake in its name shows before weights are fetched
    source = _source(arguments, state)
    fetch_in_turn(state, *_networks(arguments, metrics))
    distance, real = None, []
    if arguments.fvd is not None:
        distance = make_distance(arguments.fvd, arguments, state, lenient=lenient)
        real.append(_reference(arguments, state, find_protocol(arguments.fvd).first_frames))
        distance.update_clips(real[0], real=True)  # first: what is wrong with them shows before the others are made
    reference = None
    if arguments.reference is not None:
        reference = _reference(arguments, state, num_frames=arguments.stream_frames or STREAM_FRAMES)
        real.append(reference)
    watcher = Watcher(state, distance)
    result = evaluate_generation(
        source.clips,
        metrics,
        reference=reference,
        watch=watcher,
        lenient=lenient,
        clip=arguments.clip,
        frame_network=arguments.frame_network,
        device=state.device,
        fps=source.fps,
        **_given(arguments, "flow_side", "stream_frames"),
    )
    fvd = None if distance is None else distance.result()
    outcome = Outcome(f"Clips of {source.name}", describe(result), result.as_dict())
    outcome.figures |= {"model": source.name, "generation": source.settings, "reference": _fitting(arguments)}
    outcome.unreadable = source.unreadable | {
        f"reference/{name}": reason for clips in real for name, reason in clips.unreadable.items()
    }
    rates = {name: rate for clips in real for name, rate in clips.rates.items()}
    sides = {"reference": SideRates.of(list(rates.values()))} if rates else {}
    outcome.add_rates({"clips": SideRates.of(list(source.rates.values())), **sides}, arguments.fps)
    if distance is not None and fvd is None:
        missing["fvd"] = str(getattr(distance, "failure", None))
    outcome.leave_out({**missing, **result.not_measured})
    if fvd is not None:
        details = fvd.as_dict()
        outcome.figures |= {key: details[key] for key in ("fvd", "fvd_infinity", "fvd_interval")}
        outcome.figures["fvd_details"] = details
        outcome.add_fvd(fvd)
    if arguments.html is not None and state.is_main:
        _add_page(outcome, result, watcher.rows(source.fps), fvd)
    return outcome


def _reference(arguments: argparse.Namespace, state: Processes, num_frames: int | None) -> "ReadableClips":
    """This process's share of the real clips: their first frames, or all of them."""
    from kinema.eval.clips import list_clips

    clips = list_clips(arguments.reference, argument="--reference")
    return state.clips(clips, arguments, "--reference", num_frames=num_frames, **_fitting(arguments))


def _fitting(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the real clips are read."""
    return {"stride": arguments.reference_stride or 1, "resolution": arguments.reference_resolution}


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that the user gave; `Networks` has its own values for the others."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}


def _networks(arguments: argparse.Namespace, metrics: tuple[str, ...]) -> list[str]:
    """Names of the weights that are needed and not given."""
    from kinema.eval.generation import METRICS
    from kinema.eval.motion.frame_networks import DEFAULT_FRAME_NETWORK

    kinds = {METRICS[name].network for name in metrics}
    names = ["raft"] if "raft" in kinds else []
    if "frames" in kinds and arguments.frame_network is None:
        names.append(DEFAULT_FRAME_NETWORK)
    return names + (["i3d"] if arguments.fvd is not None and arguments.weights is None else [])


def _add_page(outcome: Outcome, result: "GenerationReport", rows: "list[Clips]", fvd: "FVDResult | None") -> None:
    from kinema.eval.report.sections import fvd_headline, fvd_section, generation_headline, generation_section

    outcome.headline = generation_headline(result)
    outcome.sections = [generation_section(result, clips=rows)]
    if fvd is not None:
        outcome.headline += fvd_headline(fvd)
        outcome.sections.append(fvd_section(fvd))


def _check_combinations(arguments: argparse.Namespace) -> None:
    if arguments.fvd is not None and arguments.reference is None:
        raise KinemaError(f"`--fvd` (={arguments.fvd!r}) must go with `--reference DIR`, a folder of real clips")
    if arguments.clips is None:
        if arguments.out_dir is not None and Path(arguments.out_dir).exists() and not Path(arguments.out_dir).is_dir():
            raise KinemaError(f"`--out-dir` (={arguments.out_dir!r}) must be a folder, and it is a file")
        if arguments.out_dir is not None and arguments.reference is not None:
            check_other_file(arguments.out_dir, "--out-dir", {"--reference": arguments.reference})
            if Path(arguments.out_dir).resolve().is_relative_to(Path(arguments.reference).resolve()):
                raise KinemaError(
                    f"`--out-dir` (={arguments.out_dir!r}) must lie outside `--reference` (={arguments.reference!r}), "
                    "or its clips would count as real ones"
                )
        return
    for name in ("model", "out_dir", "num_frames", "height", "width", "num_steps", "guidance_scale"):
        value = getattr(arguments, name)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise KinemaError(f"`{option}` (={value!r}) must not go with `--clips`, which are made already")


def chosen_metrics(arguments: argparse.Namespace) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those that were asked for; else all that need nothing that was not given, and why some of them are left out."""
    from kinema.eval.generation import DEFAULT_METRICS, METRICS
    from kinema.eval.generation.table import too_little

    if arguments.metrics is not None:
        return tuple(arguments.metrics), {}
    text = ("clip_score",) if arguments.clip is not None else ()
    sets = [name for name in METRICS if METRICS[name].kind == "set"] if arguments.reference is not None else []
    numbers = known_numbers(arguments)
    reasons = {name: too_little(name, stream_frames=arguments.stream_frames, **numbers) for name in sets}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    return (*text, *DEFAULT_METRICS, *(name for name in sets if name not in missing)), missing


def known_numbers(arguments: argparse.Namespace) -> dict[str, int | None]:
    """Of clips and of frames, as far as they are known before the work."""
    from kinema.eval.clips import list_clips

    reference = None
    if arguments.reference is not None:
        reference = len(list_clips(arguments.reference, argument="--reference"))
    return {
        "num_clips": len(read_prompts(arguments.prompts)),
        "num_reference": reference,
        "num_frames": arguments.num_frames,
    }


@dataclass
class Source:
    """Where the clips come from.

    Attributes:
        clips: Name, frames and prompt of each of this process's.
        name: Of the model or the folder.
        fps: Frames a second.
        settings: How they were made.
        unreadable: Why clips were skipped; complete when all were read.
        rates: The rate of each clip, None for pictures and tensors; likewise.
    """

    clips: "Iterator[tuple[str, Frames, str]]"
    name: str
    fps: float
    settings: dict[str, Any]
    unreadable: dict[str, str]
    rates: "dict[str, Rate | None]"


def _source(arguments: argparse.Namespace, state: Processes) -> Source:
    prompts = read_prompts(arguments.prompts)
    return _generated(arguments, prompts, state) if arguments.clips is None else _existing(arguments, prompts, state)


def _existing(arguments: argparse.Namespace, prompts: list[str], state: Processes) -> Source:
    from kinema.eval.clips import Rate, first_fps, list_clips

    files = list_clips(arguments.clips, argument="--clips")
    if len(files) != len(prompts):
        raise KinemaError(f"`--clips` (={len(files)} clips) must be as many as `--prompts` has lines, {len(prompts)}")
    by_name = {clip.name: prompt for clip, prompt in zip(files, prompts, strict=True)}
    readable = state.clips(files, arguments, "--clips")
    unreadable: dict[str, str] = {}
    rates: dict[str, Rate | None] = {}

    def read() -> "Iterator[tuple[str, Frames, str]]":
        for name, frames in readable:
            yield name, frames, by_name[name]
        unreadable.update(readable.unreadable)
        rates.update(readable.rates)

    fps = arguments.fps or first_fps(files, 8.0)
    return Source(read(), Path(arguments.clips).resolve().name, fps, {}, unreadable, rates)


def _generated(arguments: argparse.Namespace, prompts: list[str], state: Processes) -> Source:
    from kinema.apps.any_pipeline import frames_per_second
    from kinema.apps.commands.generate import generate_clip
    from kinema.apps.loading import load_pipeline
    from kinema.eval.clips import Rate
    from kinema.video import write_video

    outputs = None if arguments.out_dir is None else _outputs(arguments.out_dir, len(prompts))
    pipeline: Any = load_pipeline(arguments.model, device=state.device)
    pipeline.set_progress_bar_config(disable=True)
    options = given_options(arguments)
    fps = arguments.fps or frames_per_second(pipeline)

    def generate() -> "Iterator[tuple[str, Frames, str]]":
        from tqdm import tqdm

        mine = range(state.rank, len(prompts), state.world_size)
        for index in tqdm(mine, desc="generated clips", unit="clip", disable=None):
            frames = generate_clip(pipeline, prompts[index], seed=arguments.seed + index, **options)
            if outputs is not None:
                write_video(outputs[index], frames, fps, overwrite=arguments.overwrite)
            yield f"{index:04d}", frames, prompts[index]

    name = "toybox (embedded)" if arguments.model is None else Path(arguments.model).resolve().name
    rates: dict[str, Rate | None] = {f"{index:04d}": Rate(fps) for index in range(len(prompts))}
    return Source(generate(), name, fps, options | {"seed": arguments.seed}, {}, rates)


def _outputs(folder: str, count: int) -> list[Path]:
    return [Path(folder, f"{index:04d}.mp4") for index in range(count)]


class Watcher:
    """What looks at each clip besides the metrics: the page, and FVD.

    Args:
        state: Only the main process keeps clips for the page.
        distance: Counts all clips.
    """

    def __init__(self, state: Processes, distance: "FrechetVideoDistance | LenientDistance | None") -> None:
        self.distance = distance
        self._most = SHOWN if state.is_main else 0
        self._kept: list[tuple[Tensor, str]] = []

    def __call__(self, name: str, frames: "Frames", prompt: str) -> None:
        """Take a clip."""
        from kinema.eval.report.media import MOST_FRAMES

        if len(self._kept) < self._most:
            self._kept.append((frames[:MOST_FRAMES].clone(), prompt))
        if self.distance is not None:
            self.distance.update_clips([(name, frames)], real=False)

    def rows(self, fps: float) -> "list[Clips]":
        """Four clips side by side in each row, under their prompts."""
        from kinema.eval.report.media import side_by_side

        rows = [self._kept[start : start + 4] for start in range(0, len(self._kept), 4)]
        return [side_by_side([f for f, _ in row], [p for _, p in row], "Generated clips", fps=fps) for row in rows]


def describe(result: "GenerationReport") -> list[str]:
    """The metrics as lines of text."""
    from kinema.eval.generation import METRICS
    from kinema.eval.report import number

    lines = [f"{len(result.clips)} clips, {result.num_frames} frames"]
    lines += [f"{METRICS[name].title:22}{number(value):>12}" for name, value in result.metrics.items()]
    for score in result.vbench():
        network = "" if score.network == "none" else f" (network {score.network}; VBench's: {score.vbench_network})"
        lines.append(f"VBench {score.name} {number(score.value)}{network}")
    return lines
