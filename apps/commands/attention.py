"""Sparse attention before it runs: what patterns there are, and what one saves in a model."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.command_line import check_at_least
from kinema.errors import KinemaError
from kinema.files import atomic_path, check_other_file, check_output_file

if TYPE_CHECKING:
    from kinema.generation.attention import Grid

HELP = "patterns of sparse attention, and what they save"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    report = actions.add_parser(
        "report",
        help="density, FLOPs saved, the gain to expect from end to end, a picture of the mask",
        description="What a pattern saves: its density, FLOPs of a forward, and the gain to expect from end to end"
        " (by Amdahl, with time as FLOPs go; of the transformer's blocks, without text encoder and decoder).",
        allow_abbrev=False,
    )
    size = report.add_mutually_exclusive_group(required=True)
    size.add_argument("--grid", metavar="TxHxW", help="video tokens along time, height and width, such as 21x45x80")
    size.add_argument("--video", metavar="TxHxW", help="or frames, height and width in pixels, such as 81x720x1280")
    report.add_argument(
        "--pattern",
        required=True,
        metavar="TEXT",
        help="such as sliding-tile:3x3x3 or spatial+temporal (blocks in turns); see `kinema attention patterns`",
    )
    report.add_argument(
        "--model",
        default="wan-1.3b",
        metavar="NAME",
        help="a published model such as wan-14b or hunyuan-video, or a preset of kinema's own transformer; an unknown"
        " name lists them all (%(default)s)",
    )
    report.add_argument("--dense-layers", type=int, default=0, metavar="N", help="first layers that stay dense (none)")
    report.add_argument(
        "--dense-steps", default="0", metavar="N[,M]", help="first (and last) denoising steps that stay dense (none)"
    )
    report.add_argument("--num-steps", type=int, default=50, metavar="N", help="denoising steps (%(default)s)")
    report.add_argument(
        "--efficiency",
        type=float,
        default=1.0,
        metavar="E",
        help="speed of the sparse backend, as computed FLOPs a second over those of dense attention (%(default)g)",
    )
    report.add_argument("--picture", metavar="FILE", help="draw what each head sees, as a PNG")
    report.add_argument("--json", metavar="FILE", help="write all figures to a file")
    report.add_argument("--overwrite", action="store_true", help="replace files that exist")
    report.set_defaults(run=run_report)
    patterns = actions.add_parser("patterns", help="names of patterns, their settings and defaults", allow_abbrev=False)
    patterns.set_defaults(run=run_patterns)


def run_report(arguments: argparse.Namespace) -> None:
    """Count, print, draw."""
    dense_steps = check(arguments)
    from kinema.generation.attention import PatternSchedule, parse_patterns
    from kinema.generation.attention.report import attention_report

    patterns = parse_patterns(arguments.pattern)
    schedule = PatternSchedule(patterns, dense_layers=arguments.dense_layers, dense_steps=dense_steps)
    grid = find_grid(arguments)
    report = attention_report(
        schedule, grid, arguments.model, num_steps=arguments.num_steps, efficiency=arguments.efficiency
    )
    if arguments.picture is not None:
        from kinema.generation.attention.picture import draw_masks

        draw_masks(patterns, grid, arguments.picture)
    if arguments.json is not None:
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    print(report.table())


def check(arguments: argparse.Namespace) -> tuple[int, int]:
    """Raise `KinemaError` over a mistake that shows before the work; returns the dense steps at either end."""
    check_at_least(arguments, {"dense_layers": 0, "num_steps": 1})
    dense_steps = parse_dense_steps(arguments.dense_steps)
    outputs = {"--picture": arguments.picture, "--json": arguments.json}
    for name, path in outputs.items():
        if path is not None:
            check_output_file(path, overwrite=arguments.overwrite, name=name)
    if arguments.picture is not None and Path(arguments.picture).suffix.lower() != ".png":
        raise KinemaError(f"`--picture` (={arguments.picture!r}) must end in .png")
    if arguments.json is not None and arguments.picture is not None:
        check_other_file(arguments.json, "--json", {"--picture": arguments.picture})
    return dense_steps


def parse_dense_steps(text: str) -> tuple[int, int]:
    """First and last denoising steps that stay dense, of `--dense-steps N[,M]`.

    Raises:
        KinemaError: The text is neither a number nor two.
    """
    parts = text.split(",")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise KinemaError(f"`--dense-steps` (={text!r}) must be a number, or two such as 10,2")
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 0


def find_grid(arguments: argparse.Namespace) -> "Grid":
    """The grid of tokens: as given, or that of a clip in the model."""
    from kinema.generation.attention.architectures import find_architecture
    from kinema.generation.attention.text import parse_grid

    if arguments.grid is not None:
        return parse_grid(arguments.grid)
    model = find_architecture(arguments.model)
    if model.compression is None:
        raise KinemaError(
            f"`--video` (={arguments.video}) must be left out for `--model` (={arguments.model}), whose tokenizer"
            " decides how many tokens that is: give `--grid`"
        )
    parts = arguments.video.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise KinemaError(f"`--video` (={arguments.video}) must be FRAMESxHEIGHTxWIDTH, for example 81x720x1280")
    num_frames, height, width = map(int, parts)
    return model.grid(num_frames, height, width)


def run_patterns(arguments: argparse.Namespace) -> None:
    """Print each pattern's name, what it says of itself, and its settings with their defaults."""
    from kinema.generation.attention import PATTERNS
    from kinema.generation.attention.text import pattern_help

    for name, (_, main) in PATTERNS.items():
        pattern = pattern_help(name)
        print(f"{name}{f':{main.upper()}' if main else ''}\n    {pattern.summary}.")
        settings = [
            (setting + ("" if default is None else f"={default}"), text) for setting, default, text in pattern.settings
        ]
        width = max((len(setting) for setting, _ in settings), default=0)
        for setting, text in settings:
            print(f"      {setting:<{width}}  {text}")
    print("\nA+B: blocks alternate between patterns A and B. A*6&B*6: six heads use A, six use B.")
