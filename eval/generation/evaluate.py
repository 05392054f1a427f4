"""Measures generated clips, one after the other; only their numbers are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.generation.looks import Look, Networks
from kinema.eval.generation.report import GeneratedClip, GenerationReport
from kinema.eval.generation.sets import SetMeasures
from kinema.eval.generation.table import DEFAULT_METRICS, METRICS, check_metrics
from kinema.eval.summaries import gather, mean, naming, number, total_length

Frames = UInt8[Tensor, "_ _ _ 3"]
"""A clip `t h w 3` as it is in a file, of its own length and size."""


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
    measures = {name: METRICS[name].make(networks) for name in metrics if METRICS[name].kind == "clip"}
    sets = SetMeasures(metrics, networks, lenient=lenient)

    num_reference = 0
    # First, as it is quick: a mistake in the reference clips shows before the others are made.
    for name, frames in reference if sets and reference is not None else ():
        sets.update(name, Look(frames, "", networks), real=True)
        num_reference += 1
    found: list[GeneratedClip] = []
    for name, frames, prompt in clips:
        with naming(name):
            look = _look(frames, prompt, networks)
            found.append(_score(name, look, measures))
        sets.update(name, look, real=False)
        if watch is not None:
            watch(name, frames, prompt)

    shares = gather((found, num_reference))
    everything = sorted((clip for share, _ in shares for clip in share), key=lambda clip: clip.name)
    if not everything:
        raise KinemaError("`clips` (=0 of them) must be at least one clip")
    total = sum(count for _, count in shares)
    numbers, missing = sets.compute(len(everything), total)
    return _summarize(everything, metrics, numbers, missing, networks, total)


def _look(frames: Frames, prompt: str, networks: Networks) -> Look:
    if not len(frames):
        raise KinemaError("`clip` (=0 frames) must be at least one frame")
    return Look(frames, prompt, networks)


def _score(name: str, look: Look, measures: Mapping[str, Callable[[Look], Any]]) -> GeneratedClip:
    scores = {key: measure(look) for key, measure in measures.items()}
    return GeneratedClip(
        name=name,
        prompt=look.prompt,
        num_frames=look.num_frames,
        height=look.clip.shape[3],
        width=look.clip.shape[4],
        metrics={key: number(score.value) for key, score in scores.items()},
        curves={
            key: [number(value) for value in score.curve.tolist()]
            for key, score in scores.items()
            if score.curve is not None
        },
    )


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
