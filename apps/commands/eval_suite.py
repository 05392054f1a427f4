"""All measures of a tokenizer and of a generator at once: one page, one JSON file."""

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from kinema.apps.commands import eval_generation, eval_reconstruction
from kinema.apps.commands.eval_common import Outcome, Processes, run_measure
from kinema.apps.commands.eval_options import (
    Fitting,
    MeasureOptions,
    OptionalFile,
    OptionalFolder,
    OptionalName,
    check_outputs,
)
from kinema.command_line import check_at_least
from kinema.errors import KinemaError

if TYPE_CHECKING:
    from kinema.eval.suite import Choice


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """All measures of a tokenizer and of a generator at once: one page, one JSON file.

    With `--data` the tokenizer is measured on these clips, with `--prompts` the generator; with both, the generator's
    clips are compared with the real ones, too. What cannot be measured (no weights, too few frames or clips) is named,
    and the rest is measured.

    Attributes:
        data: A folder of real clips.
        tokenizer: A tokenizer's folder, or a name as in `kinema reconstruct`; else the embedded one.
        prompts: A text file (UTF-8) with a prompt a line.
        model: A pipeline's folder; else the embedded model.
        clip: The CLIP of clip_score: a hub id or a folder.
        protocol: Protocol of FVD.
        num_frames: Frames of a clip.
        resolution: Side of the tokenizer's clips.
        seed: Seed of the first generated clip; each next clip takes one more.
    """

    data: OptionalFolder = None
    tokenizer: OptionalName = None
    prompts: OptionalFile = None
    model: OptionalFolder = None
    clip: OptionalName = None
    protocol: Annotated[str, arg(metavar="NAME")] = "styleganv"
    num_frames: Annotated[int, arg(metavar="N")] = 17
    resolution: Annotated[int, arg(metavar="PIXELS")] = 128
    seed: Annotated[int, arg(metavar="N")] = 0


def run(options: Options) -> None:
    """Checks, measures what can be measured, reports."""
    run_measure(options, check, measure)


def check(options: Options) -> None:
    """Raises `KinemaError` over a mistake that shows before the work."""
    check_at_least(options, {"num_frames": 9, "resolution": 32})
    check_outputs(options, {"--prompts": options.prompts, "--data": options.data})
    if options.data is None and options.prompts is None:
        raise KinemaError("`--data DIR` or `--prompts FILE` must be given, or both")

    from kinema.eval.fvd import find_protocol

    find_protocol(options.protocol)
    for module, part in _parts(options).values():
        module.check(part)


def measure(options: Options, state: Processes) -> Outcome:
    """Measures all that can be measured of each part, and says why the rest cannot."""
    whole = Outcome("Suite", [], {})
    failures: dict[str, KinemaError] = {}
    parts = _parts(options)
    for name, (module, part_options) in parts.items():
        if state.is_main:  # each takes minutes, and not every log shows bars
            print(f"measuring {name}", file=sys.stderr, flush=True)
        part_options, missing = _measurable(name, part_options, state)
        try:
            part = module.measure(part_options, state, lenient=True)
        except KinemaError as error:
            # Of several processes another may have found nothing wrong, and wait for this one.
            if state.world_size > 1:
                raise
            failures[name] = error
            part = Outcome(name.capitalize(), [], {})
            missing = {name: str(error)}
        part.leave_out(missing)
        _add(whole, name, part)
    if len(failures) == len(parts):
        raise next(iter(failures.values()))
    return whole


def _parts(options: Options) -> dict[str, tuple[Any, Any]]:
    """What is measured: name -> the command that does it, and its options."""
    shared = {"fps": options.fps, "outputs": replace(options.outputs, json=None), "reading": options.reading}
    parts: dict[str, tuple[Any, Any]] = {}
    if options.data is not None:
        parts["reconstruction"] = (
            eval_reconstruction,
            eval_reconstruction.Options(
                data=options.data,
                tokenizer=options.tokenizer,
                fvd=options.protocol,
                fitting=Fitting(num_frames=options.num_frames, resolution=options.resolution),
                **shared,
            ),
        )
    if options.prompts is not None:
        parts["generation"] = (
            eval_generation,
            eval_generation.Options(
                prompts=options.prompts,
                model=options.model,
                clip=options.clip,
                reference=options.data,
                fvd=None if options.data is None else options.protocol,
                num_frames=options.num_frames,
                seed=options.seed,
                **shared,
            ),
        )
    return parts


def _measurable(name: str, options: Any, state: Processes) -> tuple[Any, dict[str, str]]:
    """The options with the metrics that can be measured, and why the others cannot; the same in all processes."""
    chosen: list[Any] = [_choices(name, options) if state.is_main else None]
    if state.world_size > 1:
        import torch

        torch.distributed.broadcast_object_list(chosen)
    metrics, distance = chosen[0]
    options = replace(options, metrics=metrics.metrics, fvd=options.fvd if distance.metrics else None)
    prefix = "r" if name == "reconstruction" else ""
    return options, {**metrics.missing, **{f"{prefix}{key}": reason for key, reason in distance.missing.items()}}


def _choices(name: str, options: Any) -> "tuple[Choice, Choice]":
    """The metrics of a part, and FVD, as far as they can be measured."""
    from kinema.eval.clips import list_clips
    from kinema.eval.fvd import find_protocol
    from kinema.eval.motion.frame_networks import DEFAULT_FRAME_NETWORK
    from kinema.eval.suite import Choice, fvd_choice, generation_choice, reconstruction_choice
    from kinema.eval.weights import fetch_weights

    def distance(num_frames: int | None, *counts: int | None) -> Choice:
        if options.fvd is None:
            return Choice(())
        known = [count for count in counts if count is not None]
        return fvd_choice(fetch_weights, find_protocol(options.fvd), num_frames=num_frames, num_clips=known)

    if name == "reconstruction":
        num_clips = len(list_clips(options.data, argument="--data"))
        return reconstruction_choice(fetch_weights), distance(options.fitting.num_frames, num_clips)
    numbers = eval_generation.known_numbers(options)
    frames = generation_choice(
        fetch_weights,
        clip=options.clip is not None,
        reference=options.reference is not None,
        frame_network=DEFAULT_FRAME_NETWORK,
        **numbers,
    )
    return frames, distance(options.num_frames, numbers["num_clips"], numbers["num_reference"])


def _add(whole: Outcome, name: str, part: Outcome) -> None:
    """Adds a part of the suite to the whole."""
    whole.lines += [f"{part.title}:", *(f"  {line}" for line in part.lines)]
    whole.figures[name] = part.figures
    whole.unreadable |= part.unreadable
    whole.headline += part.headline
    whole.sections += part.sections
    whole.notes += [note for note in part.notes if note not in whole.notes]
