"""All measures of a tokenizer and of a generator at once: one page, one JSON file.

With `--data` the tokenizer is measured on these clips, with `--prompts` the generator; with both, the generator's clips
are compared with the real ones, too. What cannot be measured (no weights, too few frames or clips) is named, and
the rest is measured.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from kinema.apps.commands import eval_generation, eval_reconstruction
from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
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
)
from kinema.errors import KinemaError

if TYPE_CHECKING:
    from kinema.eval.suite import Choice

HELP = "all measures of a tokenizer and a generator at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("--data", metavar="DIR", help="a folder of real clips")
    for flag in ("--tokenizer", "--prompts", "--model", "--clip"):
        add_option(parser, flag)
    parser.add_argument("--protocol", default="styleganv", metavar="NAME", help="of FVD (%(default)s)")
    parser.add_argument("--num-frames", type=int, default=17, metavar="N", help="frames of a clip (%(default)s)")
    parser.add_argument(
        "--resolution", type=int, default=128, metavar="PIXELS", help="side of the tokenizer's clips (%(default)s)"
    )
    add_option(parser, "--seed")
    add_options(parser, RATE_OPTIONS, OUTPUT_OPTIONS, READING_OPTIONS)


def run(arguments: argparse.Namespace) -> None:
    """Check, measure what can be measured, report."""
    run_measure(arguments, check, measure)


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_at_least(arguments, {"num_frames": 9, "resolution": 32})
    check_outputs(arguments, {"--prompts": arguments.prompts, "--data": arguments.data})
    if arguments.data is None and arguments.prompts is None:
        raise KinemaError("`--data DIR` or `--prompts FILE` must be given, or both")

    from kinema.eval.fvd import find_protocol

    find_protocol(arguments.protocol)
    for module, options in _parts(arguments).values():
        module.check(options)


def measure(arguments: argparse.Namespace, state: Processes) -> Outcome:
    """What `run` reports: of each part all that can be measured, and why the rest cannot."""
    whole = Outcome("Suite", [], {})
    failures: dict[str, KinemaError] = {}
    parts = _parts(arguments)
    for name, (module, options) in parts.items():
        if state.is_main:  # each takes minutes, and not every log shows bars
            print(f"measuring {name}", file=sys.stderr, flush=True)
        missing = _leave_out_what_is_missing(name, options, state)
        try:
            part = module.measure(options, state, lenient=True)
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


def _parts(arguments: argparse.Namespace) -> dict[str, tuple[Any, argparse.Namespace]]:
    """What is measured: name -> the command that does it, and its options."""
    parts = {}
    if arguments.data is not None:
        parts["reconstruction"] = eval_reconstruction, _reconstruction(arguments)
    if arguments.prompts is not None:
        parts["generation"] = eval_generation, _generation(arguments)
    return parts


def _reconstruction(arguments: argparse.Namespace) -> argparse.Namespace:
    line = [*_given(arguments, "data", "num_frames", "resolution", "tokenizer"), f"--fvd={arguments.protocol}"]
    return _parse(eval_reconstruction, [*line, *_shared(arguments)])


def _generation(arguments: argparse.Namespace) -> argparse.Namespace:
    line = _given(arguments, "prompts", "seed", "num_frames", "model", "clip")
    if arguments.data is not None:
        line += [f"--reference={arguments.data}", f"--fvd={arguments.protocol}"]
    return _parse(eval_generation, [*line, *_shared(arguments)])


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """The options of these names that the user gave, as they would be written."""
    words: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}={value}"]
    return words


def _shared(arguments: argparse.Namespace) -> list[str]:
    flags = ["--overwrite"] if arguments.overwrite else []
    return [*_given(arguments, "html", "device", "max_unreadable", "fps", "value_range", "layout"), *flags]


def _parse(module: Any, line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kinema eval suite", allow_abbrev=False)
    module.add_arguments(parser)
    return parser.parse_args(line)


def _leave_out_what_is_missing(name: str, options: argparse.Namespace, state: Processes) -> dict[str, str]:
    """Sets the metrics that can be measured, and says why the others cannot; all processes agree on it."""
    chosen: list[Any] = [_choices(name, options) if state.is_main else None]
    if state.world_size > 1:
        import torch

        torch.distributed.broadcast_object_list(chosen)
    metrics, distance = chosen[0]
    options.metrics = list(metrics.metrics)
    options.fvd = options.fvd if distance.metrics else None
    prefix = "r" if name == "reconstruction" else ""
    return {**metrics.missing, **{f"{prefix}{key}": reason for key, reason in distance.missing.items()}}


def _choices(name: str, options: argparse.Namespace) -> "tuple[Choice, Choice]":
    """The metrics of a part, and FVD, as far as they can be measured."""
    from kinema.eval.clips import list_clips
    from kinema.eval.fvd import find_protocol
    from kinema.eval.motion.frame_networks import DEFAULT_FRAME_NETWORK
    from kinema.eval.suite import Choice, fvd_choice, generation_choice, reconstruction_choice
    from kinema.eval.weights import fetch_weights

    def distance(*counts: int | None) -> Choice:
        if options.fvd is None:
            return Choice(())
        known = [count for count in counts if count is not None]
        return fvd_choice(fetch_weights, find_protocol(options.fvd), num_frames=options.num_frames, num_clips=known)

    if name == "reconstruction":
        return reconstruction_choice(fetch_weights), distance(len(list_clips(options.data, argument="--data")))
    numbers = eval_generation.known_numbers(options)
    frames = generation_choice(
        fetch_weights,
        clip=options.clip is not None,
        reference=options.reference is not None,
        frame_network=DEFAULT_FRAME_NETWORK,
        **numbers,
    )
    return frames, distance(numbers["num_clips"], numbers["num_reference"])


def _add(whole: Outcome, name: str, part: Outcome) -> None:
    """A part of the suite to the whole."""
    whole.lines += [f"{part.title}:", *(f"  {line}" for line in part.lines)]
    whole.figures[name] = part.figures
    whole.unreadable |= part.unreadable
    whole.headline += part.headline
    whole.sections += part.sections
    whole.notes += [note for note in part.notes if note not in whole.notes]
