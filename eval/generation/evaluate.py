"""Measures generated clips, one after the other, long ones window by window; only their numbers are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import lcm
from typing import Any

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips import Frames
from kinema.eval.generation.looks import ClipMeasure, Look, Networks
from kinema.eval.generation.report import GeneratedClip, GenerationReport
from kinema.eval.generation.requirements import DEFAULT_METRICS, check_metrics
from kinema.eval.generation.sets import SetMeasures
from kinema.eval.metrics import GENERATION_METRICS as METRICS
from kinema.eval.summaries import gather, mean, naming, number, total_length
from kinema.eval.windows import in_windows, window_length
from kinema.files import counting_order


def evaluate_generation(
    clips: Iterable[tuple[str, Frames, str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    reference: Iterable[tuple[str, Frames]] | None = None,
    networks: Networks | None = None,
    watch: Callable[[str, Frames, str], None] | None = None,
    lenient: bool = False,
    **options: Any,
) -> GenerationReport:
    """Measures how well generated clips match their prompts, and how they move.

    With torch.distributed, each process takes its share, and all get the whole report.

    Args:
        clips: Name, frames and prompt of each; in several processes, each its own share.
        metrics: Names of `METRICS`.
        reference: Name and frames of real clips, for STREAM; in several processes, each its own share.
        networks: The networks and their settings.
        watch: Is called with every clip's name, frames and prompt, to show or keep them.
        lenient: Where a clip is too short for a metric of sets, leave this metric out; the report says why.
        **options: Of `Networks` (`clip`, `frame_network`, `device`, `weights`, `fps`, ...), when `networks`
            is not given.

    Raises:
        KinemaError: No clip, an unknown metric or one whose CLIP or reference clips are not given, a clip that a metric
            cannot take (the message names it), weights that cannot be had, or fewer clips than a metric of sets needs,
            where their number is known beforehand. Where it is not, the metric is left out, and the report says why.
    """
    if networks is not None and options:
        raise KinemaError(f"`networks` must not be given together with {', '.join(f'`{name}`' for name in options)}")
    networks = networks or Networks(**options)
    check_metrics(
        metrics,
        clip=networks.has_clip,
        reference=reference is not None,
        num_clips=total_length(clips),
        num_reference=total_length(reference),
    )
    measures = {name: METRICS[name].make(networks) for name in metrics if METRICS[name].inputs == "clip"}
    sets = SetMeasures(metrics, networks, lenient=lenient)

    num_reference = 0
    # First, as it is quick: a mistake in the reference clips shows before the others are made.
    for name, frames in reference if sets and reference is not None else ():
        sets.update(name, Look(frames[: networks.stream_frames], "", networks), real=True)
        num_reference += 1
    found: list[GeneratedClip] = []
    for name, frames, prompt in clips:
        with naming(name):
            clip, opening = _score(name, frames, prompt, measures, networks)
        found.append(clip)
        sets.update(name, opening, real=False)
        if watch is not None:
            watch(name, frames, prompt)

    shares = gather((found, num_reference))
    everything = sorted((clip for share, _ in shares for clip in share), key=lambda clip: counting_order(clip.name))
    if not everything:
        raise KinemaError("`clips` (=0 of them) must be at least one clip")
    total = sum(count for _, count in shares)
    numbers, missing = sets.compute(len(everything), total)
    return _summarize(everything, metrics, numbers, missing, networks, total)


def _score(
    name: str, frames: Frames, prompt: str, measures: Mapping[str, ClipMeasure], networks: Networks
) -> tuple[GeneratedClip, Look]:
    """What all measures say of a clip, and the look at its first window."""
    if not len(frames):
        raise KinemaError("`clip` (=0 frames) must be at least one frame")
    num_frames, height, width, _ = frames.shape
    multiple = lcm(*(measure.multiple for measure in measures.values()))
    before = max((measure.before for measure in measures.values()), default=0)
    before = -(-before // multiple) * multiple
    after = max((measure.after for measure in measures.values()), default=0)
    length = window_length(height, width, multiple=multiple)
    while length < max(before, networks.stream_frames):  # the first window has what STREAM looks at
        length += multiple
    curves: dict[str, list[Tensor]] = {key: [] for key in measures}
    opening: Look | None = None
    for counted, (window,) in in_windows(((p,) for p in frames.split(length)), length, before=before, after=after):
        look = Look(window, prompt, networks, opening)
        opening = opening or look
        for key, measure in measures.items():
            curves[key].append(measure.curve(look)[counted])
    assert opening is not None
    whole = {key: torch.cat(parts) for key, parts in curves.items()}
    clip = GeneratedClip(
        name=name,
        prompt=prompt,
        num_frames=num_frames,
        height=height,
        width=width,
        metrics={key: number(measures[key].value(curve)) for key, curve in whole.items()},
        curves={key: [number(value) for value in curve.tolist()] for key, curve in whole.items()},
    )
    return clip, opening


def _summarize(
    clips: Sequence[GeneratedClip],
    metrics: Sequence[str],
    sets: Mapping[str, float | None],
    missing: Mapping[str, str],
    networks: Networks,
    num_reference: int,
) -> GenerationReport:
    longest = max(clip.num_frames for clip in clips)
    curves = [name for name in metrics if name in clips[0].curves]
    return GenerationReport(
        metrics={n: sets[n] if n in sets else mean(clip.metrics[n] for clip in clips) for n in metrics},
        protocol={
            "networks": dict(networks.used),
            **{setting: getattr(networks, setting) for name in metrics for setting in METRICS[name].settings},
        },
        curves={n: [mean(c.curves[n][i] for c in clips if i < c.num_frames) for i in range(longest)] for n in curves},
        clips=clips,
        num_reference=num_reference,
        not_measured=missing,
        consistency=networks.consistency,
    )
