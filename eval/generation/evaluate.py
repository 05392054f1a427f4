"""Measures generated clips, one after the other; only their numbers are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.generation.looks import Look, Networks
from kinema.eval.generation.report import GeneratedClip, GenerationReport
from kinema.eval.generation.table import DEFAULT_METRICS, METRICS, check_metrics
from kinema.eval.summaries import gather, mean, naming, number

Frames = UInt8[Tensor, "_ _ _ 3"]
"""A clip `t h w 3` as it is in a file, of its own length and size."""


def evaluate_generation(
    clips: Iterable[tuple[str, Frames, str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    reference: Iterable[tuple[str, Frames]] | None = None,
    networks: Networks | None = None,
    watch: Callable[[str, Frames, str], None] | None = None,
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
        **options: Of `Networks` (`clip`, `frame_network`, `device`, `weights`, `fps`, ...), when `networks`
            is not given.

    Raises:
        KinemaError: No clip, an unknown metric or one whose CLIP or reference clips are not given, a clip that a metric
            cannot take (the message names it), or weights that cannot be had.
    """
    if networks is not None and options:
        raise KinemaError(f"`networks` must not be given together with {', '.join(f'`{name}`' for name in options)}")
    networks = networks or Networks(**options)
    check_metrics(metrics, clip=networks.has_clip, reference=reference is not None)
    measures = {name: METRICS[name].make(networks) for name in metrics if METRICS[name].kind == "clip"}
    # Metrics of one module come from one object, which sees every clip once.
    modules = {METRICS[name].module: METRICS[name].make for name in metrics if METRICS[name].kind == "set"}
    sets = [make(networks) for make in modules.values()]

    found: list[GeneratedClip] = []
    for name, frames, prompt in clips:
        with naming(name):
            found.append(_score(name, frames, prompt, networks, measures, sets))
        if watch is not None:
            watch(name, frames, prompt)
    num_reference = 0
    for name, frames in (reference or ()) if sets else ():
        with naming(name):
            _update(sets, Look(frames, "", networks), real=True)
        num_reference += 1

    shares = gather((found, num_reference))
    everything = sorted((clip for share, _ in shares for clip in share), key=lambda clip: clip.name)
    if not everything:
        raise KinemaError("`clips` (=0 of them) must be at least one clip")
    # Known to all processes, so that none waits for another.
    if sets and not all(share and count for share, count in shares):
        raise KinemaError(
            f"`clips` and `reference` must be at least one clip each for every one of {len(shares)} processes"
        )
    numbers = {key: number(value) for each in sets for key, value in each.compute().items()}
    return _summarize(everything, metrics, numbers, networks, sum(count for _, count in shares))


def _update(sets: Sequence[Any], look: Look, *, real: bool) -> None:
    for each in sets:
        each.update(look, real)


def _score(
    name: str,
    frames: Frames,
    prompt: str,
    networks: Networks,
    measures: Mapping[str, Callable[[Look], Any]],
    sets: Sequence[Any],
) -> GeneratedClip:
    if not len(frames):
        raise KinemaError("`clip` (=0 frames) must be at least one frame")
    look = Look(frames, prompt, networks)
    scores = {key: measure(look) for key, measure in measures.items()}
    _update(sets, look, real=False)
    return GeneratedClip(
        name=name,
        prompt=prompt,
        num_frames=len(frames),
        height=frames.shape[1],
        width=frames.shape[2],
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
    )
