"""All measures of a tokenizer and of a generator at once: one page, one JSON file.

With `--data` the tokenizer is measured on these clips, with `--prompts` the generator; with both, the generator's clips
are compared with the real ones, too. What cannot be measured for want of weights is named, and the rest is measured.
"""

import argparse
from typing import Any

from kinema.apps.commands import eval_generation, eval_reconstruction
from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
    add_output_arguments,
    add_reading_arguments,
    check_at_least,
    check_outputs,
    processes,
    publish,
)
from kinema.errors import KinemaError

HELP = "all measures of a tokenizer and a generator at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("--data", metavar="DIR", help="a folder of real clips")
    parser.add_argument("--tokenizer", metavar="DIR", help="a tokenizer's folder; else the embedded general one")
    parser.add_argument("--prompts", metavar="FILE", help="a text file (UTF-8) with a prompt a line")
    parser.add_argument("--model", metavar="DIR", help="a pipeline's folder; else the embedded model")
    parser.add_argument("--clip", metavar="MODEL", help="the CLIP of clip_score: a hub id or a folder")
    parser.add_argument("--protocol", default="styleganv", metavar="NAME", help="of FVD (%(default)s)")
    parser.add_argument("--num-frames", type=int, default=17, metavar="N", help="frames of a clip (%(default)s)")
    parser.add_argument(
        "--resolution", type=int, default=128, metavar="PIXELS", help="side of the tokenizer's clips (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first clip; each next takes one more")
    add_output_arguments(parser)
    add_reading_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Check, measure what can be measured, report."""
    check_at_least(arguments, {"num_frames": 9, "resolution": 32})
    check_outputs(arguments, {"--prompts": arguments.prompts})
    if arguments.data is None and arguments.prompts is None:
        raise KinemaError("`--data DIR` or `--prompts FILE` must be given, or both")

    from kinema.eval.fvd import find_protocol

    find_protocol(arguments.protocol)
    parts = {}
    if arguments.data is not None:
        parts["reconstruction"] = eval_reconstruction, _reconstruction(arguments)
    if arguments.prompts is not None:
        parts["generation"] = eval_generation, _generation(arguments)
    for module, options in parts.values():
        module.check(options)
    with processes(arguments.device) as state:
        whole = Outcome("Suite", [], {})
        for name, (module, options) in parts.items():
            missing = _leave_out_what_is_missing(name, options, state)
            _add(whole, name, module.measure(options, state), missing)
        if state.is_main:
            publish(whole, arguments)


def _reconstruction(arguments: argparse.Namespace) -> argparse.Namespace:
    line = ["--data", arguments.data, "--num-frames", str(arguments.num_frames), "--fvd", arguments.protocol]
    line += ["--resolution", str(arguments.resolution), *_given(arguments, "tokenizer")]
    return _parse(eval_reconstruction, [*line, *_shared(arguments)])


def _generation(arguments: argparse.Namespace) -> argparse.Namespace:
    line = ["--prompts", arguments.prompts, "--seed", str(arguments.seed), "--num-frames", str(arguments.num_frames)]
    line += _given(arguments, "model", "clip")
    if arguments.data is not None:
        line += ["--reference", arguments.data, "--fvd", arguments.protocol]
    return _parse(eval_generation, [*line, *_shared(arguments)])


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """The options of these names that the user gave, as they would be written."""
    words: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return words


def _shared(arguments: argparse.Namespace) -> list[str]:
    flags = ["--overwrite"] if arguments.overwrite else []
    return [*_given(arguments, "html", "device", "max_unreadable"), *flags]


def _parse(module: Any, line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kinema eval suite", allow_abbrev=False)
    module.add_arguments(parser)
    return parser.parse_args(line)


def _leave_out_what_is_missing(name: str, options: argparse.Namespace, state: Processes) -> dict[str, str]:
    """Sets the metrics that can be measured, and says why the others cannot; all processes agree on it."""
    from kinema.eval.motion.frame_networks import DEFAULT_FRAME_NETWORK
    from kinema.eval.suite import Choice, choose, generation_choice, reconstruction_choice
    from kinema.eval.weights import fetch_weights

    def pick() -> tuple[Choice, Choice]:
        distance = choose(("fvd",) if options.fvd else (), {"fvd": "i3d"}, fetch_weights)
        if name == "reconstruction":
            return reconstruction_choice(fetch_weights), distance
        frames = generation_choice(
            fetch_weights,
            clip=options.clip is not None,
            reference=options.reference is not None,
            frame_network=DEFAULT_FRAME_NETWORK,
        )
        return frames, distance

    chosen: list[Any] = [pick() if state.is_main else None]
    if state.world_size > 1:
        import torch

        torch.distributed.broadcast_object_list(chosen)
    metrics, distance = chosen[0]
    options.metrics = list(metrics.metrics)
    options.fvd = options.fvd if distance.metrics else None
    return {**metrics.missing, **distance.missing}


def _add(whole: Outcome, name: str, part: Outcome, missing: dict[str, str]) -> None:
    """A part of the suite to the whole."""
    whole.lines += [f"{part.title}:", *(f"  {line}" for line in part.lines)]
    whole.lines += [f"  not measured: {metric}: {reason}" for metric, reason in missing.items()]
    whole.figures[name] = part.figures | {"not_measured": missing}
    whole.unreadable |= part.unreadable
    whole.headline += part.headline
    whole.sections += part.sections
    whole.notes += [note for note in part.notes if note not in whole.notes]
    whole.notes += [f"Not measured: {metric}: {reason}" for metric, reason in missing.items()]
