"""How well generated clips match their prompts, and how they move; against real clips, STREAM and FVD too."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from kinema.apps.commands.eval_common import Outcome, Processes, fetch_in_turn, make_distance, run_measure
from kinema.apps.commands.eval_options import (
    MeasureOptions,
    OptionalFile,
    OptionalFolder,
    OptionalInt,
    OptionalName,
    OptionalPixels,
    check_outputs,
    check_weights,
)
from kinema.apps.commands.generate import check_numbers, given_options, read_prompts
from kinema.command_line import check_at_least
from kinema.errors import KinemaError
from kinema.eval.generation.requirements import STREAM_FRAMES, check_metrics, too_little
from kinema.eval.metrics import GENERATION_METRICS as METRICS
from kinema.files import check_other_file, check_output_file

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.eval.clips import Frames, Rate, ReadableClips
    from kinema.eval.fvd import FrechetVideoDistance, FVDResult, LenientDistance
    from kinema.eval.generation import GenerationReport
    from kinema.eval.report import Clips

SHOWN = 8
"""Clips on the page, four in a row."""


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """How well generated clips match their prompts, and how they move; against real clips, STREAM and FVD too.

    A model makes the clips (`--prompts FILE`, a prompt a line), or they are there already (`--clips DIR --prompts
    FILE`: the first clip by name is the first line's).
    `accelerate launch -m kinema eval generation ...` shares the work among processes, with the same result.

    Attributes:
        prompts: A text file (UTF-8) with a prompt a line.
        model: A pipeline's folder; else the embedded model.
        clips: Clips that were made already, one a prompt, in this order.
        out_dir: Keep the clips here: 0000.mp4 is the first line's.
        metrics: What to measure; else all that need nothing that is not given:
        clip: The CLIP of clip_score: a hub id or a folder.
        frame_network: Features of frames; else efficientnet-lite0.
        flow_side: Enlarge smaller frames to this for optical flow (256); less is faster.
        stream_frames: Frames of a clip that STREAM uses (16).
        reference: A folder of real clips, for STREAM and FVD.
        reference_stride: Take every Nth frame of the real clips (1).
        reference_resolution: Scale the real clips to this short side and crop the square in the middle; else as they
            are.
        fvd: Also measure FVD under this protocol, against --reference.
        weights: I3D weights for FVD; else those of `kinema weights`.
        num_frames: Frames in a clip; else the model's own number.
        height: Height of the clip; else the model's own.
        width: Width of the clip; else the model's own.
        num_steps: Sampling steps; else the model's own number.
        guidance_scale: How strictly to follow the prompt; else the model's own.
        guidance_interval: Noise levels in [0, 1] between which guidance is applied; else the model's own.
        seed: Seed of the first clip; each next clip takes one more.
        fps: Frames a second: of the clips that a model makes, and at which video files are sampled, by their times;
            else as the model says, and as the files are stored.
    """

    prompts: Annotated[str, arg(metavar="FILE")]
    model: OptionalFolder = None
    clips: OptionalFolder = None
    out_dir: OptionalFolder = None
    metrics: Annotated[tuple[str, ...] | None, arg(metavar="NAME", help_behavior_hint=lambda _: METRICS.describe())] = (
        None
    )
    clip: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    frame_network: OptionalName = None
    flow_side: OptionalPixels = None
    stream_frames: OptionalInt = None
    reference: OptionalFolder = None
    reference_stride: OptionalInt = None
    reference_resolution: OptionalPixels = None
    fvd: Annotated[str | None, arg(metavar="PROTOCOL", help_behavior_hint="")] = None
    weights: OptionalFile = None
    num_frames: OptionalInt = None
    height: OptionalPixels = None
    width: OptionalPixels = None
    num_steps: OptionalInt = None
    guidance_scale: Annotated[float | None, arg(metavar="SCALE", help_behavior_hint="")] = None
    guidance_interval: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH", help_behavior_hint="")] = None
    seed: Annotated[int, arg(metavar="N")] = 0


def run(options: Options) -> None:
    """Checks, generates, measures, reports."""
    run_measure(options, check, measure)


def check(options: Options) -> None:
    """Raises `KinemaError` over a mistake that shows before the work."""
    check_numbers(options)
    # Four frames: STREAM fits a line to two frequencies.
    least = {"flow_side": 1, "stream_frames": 4, "reference_stride": 1, "reference_resolution": 8}
    check_at_least(options, least)
    inputs = {f"--{name}": getattr(options, name) for name in ("prompts", "clips", "reference", "weights")}
    check_outputs(options, inputs)
    _check_combinations(options)
    check_weights(options.weights)
    prompts = read_prompts(options.prompts)
    if options.out_dir is not None:
        for output in _outputs(options.out_dir, len(prompts)):
            check_output_file(output, overwrite=options.outputs.overwrite, name="--out-dir")
    check_metrics(
        chosen_metrics(options)[0],
        clip=options.clip is not None,
        reference=options.reference is not None,
        stream_frames=options.stream_frames,
        **known_numbers(options),
    )


def measure(options: Options, state: Processes, *, lenient: bool = False) -> Outcome:
    """What `run` reports.

    Args:
        options: Of the command.
        state: The processes.
        lenient: Leave FVD and metrics of sets out where they cannot be measured, and say so.
    """
    from kinema.eval.clips import SideRates
    from kinema.eval.fvd import find_protocol
    from kinema.eval.generation import evaluate_generation

    metrics, missing = chosen_metrics(options)
    if options.fvd is not None:
        find_protocol(options.fvd)  # a mistake in its name shows before weights are fetched
    source = _source(options, state)
    fetch_in_turn(state, *_networks(options, metrics))
    distance, real = None, []
    if options.fvd is not None:
        distance = make_distance(options.fvd, options.weights, options.num_frames, state, lenient=lenient)
        real.append(_reference(options, state, find_protocol(options.fvd).first_frames))
        distance.update_clips(real[0], real=True)  # first: what is wrong with them shows before the others are made
    reference = None
    if options.reference is not None:
        reference = _reference(options, state, num_frames=options.stream_frames or STREAM_FRAMES)
        real.append(reference)
    watcher = Watcher(state, distance)
    result = evaluate_generation(
        source.clips,
        metrics,
        reference=reference,
        watch=watcher,
        lenient=lenient,
        clip=options.clip,
        frame_network=options.frame_network,
        device=state.device,
        fps=source.fps,
        **_given(options, "flow_side", "stream_frames"),
    )
    fvd = None if distance is None else distance.result()
    outcome = Outcome(f"Clips of {source.name}", describe(result), result.as_dict())
    outcome.figures |= {"model": source.name, "generation": source.settings, "reference": _fitting(options)}
    outcome.unreadable = source.unreadable | {
        f"reference/{name}": reason for clips in real for name, reason in clips.unreadable.items()
    }
    rates = {name: rate for clips in real for name, rate in clips.rates.items()}
    sides = {"reference": SideRates.of(list(rates.values()))} if rates else {}
    outcome.add_rates({"clips": SideRates.of(list(source.rates.values())), **sides}, options.fps)
    if distance is not None and fvd is None:
        missing["fvd"] = str(getattr(distance, "failure", None))
    outcome.leave_out({**missing, **result.not_measured})
    if fvd is not None:
        details = fvd.as_dict()
        outcome.figures |= {key: details[key] for key in ("fvd", "fvd_infinity", "fvd_interval")}
        outcome.figures["fvd_details"] = details
        outcome.add_fvd(fvd)
    if options.outputs.html is not None and state.is_main:
        _add_page(outcome, result, watcher.rows(source.fps), fvd)
    return outcome


def _reference(options: Options, state: Processes, num_frames: int | None) -> "ReadableClips":
    """This process's share of the real clips: their first frames, or all of them."""
    from kinema.eval.clips import list_clips

    assert options.reference is not None  # as `check` saw
    clips = list_clips(options.reference, argument="--reference")
    return state.clips(clips, options, "--reference", num_frames=num_frames, **_fitting(options))


def _fitting(options: Options) -> dict[str, Any]:
    """How the real clips are read."""
    return {"stride": options.reference_stride or 1, "resolution": options.reference_resolution}


def _given(options: Options, *names: str) -> dict[str, Any]:
    """The options that the user gave; `Networks` has its own values for the others."""
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}


def _networks(options: Options, metrics: tuple[str, ...]) -> list[str]:
    """Names of the weights that are needed and not given."""
    from kinema.eval.motion.frame_networks import DEFAULT_FRAME_NETWORK

    needed = set(METRICS.networks(metrics).values())
    names = [network for network in sorted(needed) if network not in ("clip", "frames")]
    if "frames" in needed and options.frame_network is None:
        names.append(DEFAULT_FRAME_NETWORK)
    return names + (["i3d"] if options.fvd is not None and options.weights is None else [])


def _add_page(outcome: Outcome, result: "GenerationReport", rows: "list[Clips]", fvd: "FVDResult | None") -> None:
    from kinema.eval.report.sections import fvd_headline, fvd_section, generation_section, metrics_headline

    outcome.headline = metrics_headline(result.metrics)
    outcome.sections = [generation_section(result, clips=rows)]
    if fvd is not None:
        outcome.headline += fvd_headline(fvd)
        outcome.sections.append(fvd_section(fvd))


def _check_combinations(options: Options) -> None:
    if options.fvd is not None and options.reference is None:
        raise KinemaError(f"`--fvd` (={options.fvd!r}) must go with `--reference DIR`, a folder of real clips")
    if options.clips is None:
        if options.out_dir is not None and Path(options.out_dir).exists() and not Path(options.out_dir).is_dir():
            raise KinemaError(f"`--out-dir` (={options.out_dir!r}) must be a folder, and it is a file")
        if options.out_dir is not None and options.reference is not None:
            check_other_file(options.out_dir, "--out-dir", {"--reference": options.reference})
            if Path(options.out_dir).resolve().is_relative_to(Path(options.reference).resolve()):
                raise KinemaError(
                    f"`--out-dir` (={options.out_dir!r}) must lie outside `--reference` (={options.reference!r}), "
                    "or its clips would count as real ones"
                )
        return
    for name in ("model", "out_dir", "num_frames", "height", "width", "num_steps", "guidance_scale"):
        value = getattr(options, name)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise KinemaError(f"`{option}` (={value!r}) must not go with `--clips`, which are made already")


def chosen_metrics(options: Options) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those that were asked for; else all that need nothing that was not given, and why some of them are left out."""
    from kinema.eval.generation import DEFAULT_METRICS

    if options.metrics is not None:
        return options.metrics, {}
    text = ("clip_score",) if options.clip is not None else ()
    sets = [name for name in METRICS if METRICS[name].inputs == "clip sets"] if options.reference is not None else []
    numbers = known_numbers(options)
    reasons = {name: too_little(name, stream_frames=options.stream_frames, **numbers) for name in sets}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    return (*text, *DEFAULT_METRICS, *(name for name in sets if name not in missing)), missing


def known_numbers(options: Options) -> dict[str, int | None]:
    """Of clips and of frames, as far as they are known before the work."""
    from kinema.eval.clips import list_clips

    reference = None
    if options.reference is not None:
        reference = len(list_clips(options.reference, argument="--reference"))
    return {
        "num_clips": len(read_prompts(options.prompts)),
        "num_reference": reference,
        "num_frames": options.num_frames,
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


def _source(options: Options, state: Processes) -> Source:
    prompts = read_prompts(options.prompts)
    if options.clips is None:
        return _generated(options, prompts, state)
    return _existing(options.clips, prompts, options, state)


def _existing(folder: str, prompts: list[str], options: Options, state: Processes) -> Source:
    from kinema.eval.clips import Rate, first_fps, list_clips

    files = list_clips(folder, argument="--clips")
    if len(files) != len(prompts):
        raise KinemaError(f"`--clips` (={len(files)} clips) must be as many as `--prompts` has lines, {len(prompts)}")
    by_name = {clip.name: prompt for clip, prompt in zip(files, prompts, strict=True)}
    readable = state.clips(files, options, "--clips")
    unreadable: dict[str, str] = {}
    rates: dict[str, Rate | None] = {}

    def read() -> "Iterator[tuple[str, Frames, str]]":
        for name, frames in readable:
            yield name, frames, by_name[name]
        unreadable.update(readable.unreadable)
        rates.update(readable.rates)

    fps = options.fps or first_fps(files, 8.0)
    return Source(read(), Path(folder).resolve().name, fps, {}, unreadable, rates)


def _generated(options: Options, prompts: list[str], state: Processes) -> Source:
    from kinema.apps.any_pipeline import frames_per_second
    from kinema.apps.commands.generate import generate_clip
    from kinema.apps.loading import load_pipeline
    from kinema.eval.clips import Rate
    from kinema.video import write_video

    outputs = None if options.out_dir is None else _outputs(options.out_dir, len(prompts))
    pipeline: Any = load_pipeline(options.model, device=state.device)
    pipeline.set_progress_bar_config(disable=True)
    call = given_options(options)
    fps = options.fps or frames_per_second(pipeline)

    def generate() -> "Iterator[tuple[str, Frames, str]]":
        from tqdm import tqdm

        mine = range(state.rank, len(prompts), state.world_size)
        for index in tqdm(mine, desc="generated clips", unit="clip", disable=None):
            frames = generate_clip(pipeline, prompts[index], seed=options.seed + index, **call)
            if outputs is not None:
                write_video(outputs[index], frames, fps, overwrite=options.outputs.overwrite)
            yield f"{index:04d}", frames, prompts[index]

    name = "toybox (embedded)" if options.model is None else Path(options.model).resolve().name
    rates: dict[str, Rate | None] = {f"{index:04d}": Rate(fps) for index in range(len(prompts))}
    return Source(generate(), name, fps, call | {"seed": options.seed}, {}, rates)


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
    from kinema.eval.report import number

    lines = [f"{len(result.clips)} clips, {result.num_frames} frames"]
    lines += [f"{METRICS[name].title:22}{number(value):>12}" for name, value in result.metrics.items()]
    for score in result.vbench():
        network = "" if score.network == "none" else f" (network {score.network}; VBench's: {score.vbench_network})"
        lines.append(f"VBench {score.name} {number(score.value)}{network}")
    return lines
